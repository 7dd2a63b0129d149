"""Small archives in exactly the formats that the publishers of each dataset use.

Every function writes files and returns, per split, the images it wrote: uint8 `[N, H, W, C]`, in
the publisher's own order.
"""

import gzip
import io
import json
import pathlib
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

# As in batches.meta.
CIFAR10_LABELS = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
Splits = dict[str, np.ndarray]


def photos(num: int, size: int = 32, seed: int = 0, channels: int = 3) -> np.ndarray:
    """Return different images of smooth colours and a little noise: they compress like photos."""
    rng = np.random.default_rng([seed, num, size, channels])
    coarse = rng.integers(0, 256, (num, 4, 4, channels)).repeat(-(-size // 4), 1)
    coarse = coarse.repeat(-(-size // 4), 2)[:, :size, :size]
    return (coarse + rng.integers(-8, 9, coarse.shape)).clip(0, 255).astype(np.uint8)


def labels(num: int, num_classes: int = 10) -> np.ndarray:
    """Return the labels of every archive here, from 0, int `[num]`."""
    return np.arange(num) * 7 % num_classes


def channel_first(images: np.ndarray) -> np.ndarray:
    """Return uint8 `[N, 3 * H * W]`: per image the red plane, then the green, then the blue."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)


def png(image: np.ndarray, **options) -> bytes:
    """Return an image `[H, W, C]` as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(
        file, "PNG", **options
    )
    return file.getvalue()


def tar(path: pathlib.Path, files: Mapping[str, bytes], mode: str = "w") -> None:
    """Write a tar file of `files`; a name that ends in a slash is a folder."""
    with tarfile.open(path, mode, format=tarfile.GNU_FORMAT) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name.rstrip("/"))
            member.size = len(content)
            if name.endswith("/"):
                member.type = tarfile.DIRTYPE
            archive.addfile(member, io.BytesIO(content))


def zipped(path: pathlib.Path, files: Mapping[str, bytes]) -> None:
    """Write a zip file of `files`."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)


# CIFAR-10


def cifar10_python(path: pathlib.Path, n_train: int, n_test: int, seed: int = 0) -> Splits:
    """Write `cifar-10-python.tar.gz`: batches pickled by Python 2, in the real archive's order."""
    images, batches = _cifar_batches(n_train, n_test, seed)
    meta = {b"num_cases_per_batch": 10000, b"label_names": _bytes(CIFAR10_LABELS), b"num_vis": 3072}
    files = {"batches.meta": python2_pickle(meta), "readme.html": b"<html></html>"}
    for name, (rows, batch_labels) in batches.items():
        content = {
            b"batch_label": f"batch {name}".encode(),
            b"labels": batch_labels.tolist(),
            b"data": rows,
            b"filenames": [f"image_{name}_{i}.png".encode() for i in range(len(rows))],
        }
        files[name] = python2_pickle(content)
    order = ["data_batch_4", "readme.html", "test_batch", "data_batch_3", "batches.meta"]
    order += ["data_batch_2", "data_batch_5", "data_batch_1"]
    members = {"cifar-10-batches-py/": b""} | {f"cifar-10-batches-py/{n}": files[n] for n in order}
    tar(path, members, "w:gz")
    return images


def cifar10_binary(path: pathlib.Path, n_train: int, n_test: int, seed: int = 0) -> Splits:
    """Write `cifar-10-binary.tar.gz`: per image a byte of its label, then the three planes."""
    images, batches = _cifar_batches(n_train, n_test, seed)
    files = {"batches.meta.txt": "".join(f"{n}\n" for n in CIFAR10_LABELS).encode() + b"\n"}
    for name, (rows, batch_labels) in batches.items():
        records = np.concatenate([batch_labels[:, None].astype(np.uint8), rows], axis=1)
        files[f"{name}.bin"] = records.tobytes()
    files["readme.html"] = b"<html></html>"
    members = {f"cifar-10-batches-bin/{name}": content for name, content in files.items()}
    tar(path, {"cifar-10-batches-bin/": b"", **members}, "w:gz")
    return images


def cifar100_python(path: pathlib.Path, n_train: int, n_test: int, seed: int = 0) -> Splits:
    """Write `cifar-100-python.tar.gz`, which is not CIFAR-10."""
    images = {"train": photos(n_train, seed=seed), "test": photos(n_test, seed=seed + 1)}
    files = {"cifar-100-python/meta": python2_pickle({b"fine_label_names": [b"apple"]})}
    for split, each in images.items():
        fields = {b"fine_labels": labels(len(each), 100).tolist(), b"data": channel_first(each)}
        files[f"cifar-100-python/{split}"] = python2_pickle(fields)
    tar(path, files, "w:gz")
    return images


def _cifar_batches(n_train: int, n_test: int, seed: int):
    images = {"train": photos(n_train, seed=seed), "test": photos(n_test, seed=seed + 1)}
    parts = zip(
        np.array_split(channel_first(images["train"]), 5),
        np.array_split(labels(n_train), 5),
        strict=True,
    )
    batches = {f"data_batch_{i}": part for i, part in enumerate(parts, 1)}
    batches["test_batch"] = (channel_first(images["test"]), labels(n_test))
    return images, batches


def _bytes(names: Sequence[str]) -> list[bytes]:
    return [name.encode() for name in names]


# MNIST


def mnist(
    folder: pathlib.Path, n_train: int, n_test: int, seed: int = 0, packed: bool = True
) -> Splits:
    """Write the four IDX files of MNIST or Fashion-MNIST, as gzip files or unpacked."""
    folder.mkdir(parents=True, exist_ok=True)
    images = {
        "train": photos(n_train, 28, seed, channels=1),
        "test": photos(n_test, 28, seed + 1, channels=1),
    }
    for each, start in zip(images.values(), ("train", "t10k"), strict=True):
        values = labels(n := len(each)).astype(np.uint8)
        files = {
            f"{start}-images-idx3-ubyte": struct.pack(">4I", 0x803, n, 28, 28) + each.tobytes(),
            f"{start}-labels-idx1-ubyte": struct.pack(">2I", 0x801, n) + values.tobytes(),
        }
        for name, content in files.items():
            path = folder / (f"{name}.gz" if packed else name)
            path.write_bytes(gzip.compress(content, 1) if packed else content)
    return images


# Downsampled ImageNet of Chrabaszcz et al.


def imagenet_zip_pickles(
    folder: pathlib.Path, n_train: int, n_val: int, seed: int = 0, size: int = 32
) -> Splits:
    """Write `Imagenet32_train.zip` and `_val.zip`; 64 x 64 has two parts for training."""
    images, batches = _imagenet_batches(n_train, n_val, seed, size)
    contents = {}
    for name, fields in batches.items():
        fields = {**fields, "labels": fields["labels"].tolist()}
        # Pickled by Python 3 and NumPy 1, which called this module by another name.
        content = pickle.dumps(fields, protocol=3)
        contents[name] = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    for archive, names in _imagenet_archives(size).items():
        zipped(folder / f"{archive}.zip", {name: contents[name] for name in names})
    return images


def imagenet_npz(
    folder: pathlib.Path, n_train: int, n_val: int, seed: int = 0, size: int = 32
) -> Splits:
    """Write `Imagenet32_train_npz.zip` and `_val_npz.zip`: npz files in a folder in a zip."""
    images, batches = _imagenet_batches(n_train, n_val, seed, size)
    for archive, names in _imagenet_archives(size).items():
        files = {f"{archive}_npz/": b""}
        for name in names:
            buffer = io.BytesIO()
            np.savez(buffer, **batches[name])
            files[f"{archive}_npz/{name}.npz"] = buffer.getvalue()
        zipped(folder / f"{archive}_npz.zip", files)
    return images


def _imagenet_batches(n_train: int, n_val: int, seed: int, size: int):
    images = {
        "train": photos(n_train, size, seed=seed),
        "validation": photos(n_val, size, seed=seed + 1),
    }
    rows = channel_first(images["train"])
    size_of_batch = n_train // 10  # as published: the last batch takes the remainder
    cuts = [size_of_batch * i for i in range(1, 10)]
    parts = zip(np.split(rows, cuts), np.split(labels(n_train, 1000) + 1, cuts), strict=True)
    batches = {
        f"train_data_batch_{i}": {"data": data, "labels": part, "mean": rows.mean(axis=0)}
        for i, (data, part) in enumerate(parts, 1)
    }
    batches["val_data"] = {
        "data": channel_first(images["validation"]),
        "labels": labels(n_val, 1000) + 1,
    }
    return images, batches


def _imagenet_archives(size: int) -> dict[str, list[str]]:
    train = [f"train_data_batch_{i}" for i in range(1, 11)]
    val = {f"Imagenet{size}_val": ["val_data"]}
    if size == 32:
        return {f"Imagenet{size}_train": train, **val}
    parts = {f"Imagenet{size}_train_part{i + 1}": train[5 * i : 5 * i + 5] for i in range(2)}
    return {**parts, **val}


# Downsampled ImageNet of van den Oord et al.


def imagenet_old_tars(
    folder: pathlib.Path, n_train: int, n_val: int, seed: int = 0, size: int = 32
) -> Splits:
    """Write `train_32x32.tar` and `valid_32x32.tar`: PNG files in a folder."""
    images = {
        "train": photos(n_train, size, seed=seed),
        "validation": photos(n_val, size, seed=seed + 1),
    }
    for split, each in images.items():
        name = f"{'train' if split == 'train' else 'valid'}_{size}x{size}"
        # Not as tightly packed as ours would be.
        pngs = (png(image, compress_level=1) for image in each)
        files = {f"{name}/{i:07d}.png": content for i, content in enumerate(pngs, 1)}
        tar(folder / f"{name}.tar", {f"{name}/": b"", **files})
    return images


def authors_tfrecords(
    folder: pathlib.Path,
    n_train: int,
    n_val: int,
    seed: int = 0,
    num_shards: int = 3,
    size: int = 32,
) -> Splits:
    """Write `folder/downsampled_imagenet_new/32x32/2.0.0`: shards, dataset_info.json."""
    import tensorflow as tf

    name = "downsampled_imagenet_new"
    home = folder / name / f"{size}x{size}" / "2.0.0"
    home.mkdir(parents=True)
    images = {
        "train": photos(n_train, size, seed=seed),
        "validation": photos(n_val, size, seed=seed + 1),
    }
    split_infos = []
    for split, each in images.items():
        shards = np.array_split(each, num_shards if split == "train" else 1)
        num_bytes = 0
        for i, shard in enumerate(shards):
            path = home / f"{name}-{split}.tfrecord-{i:05d}-of-{len(shards):05d}"
            with tf.io.TFRecordWriter(str(path)) as writer:
                for image in shard:
                    record = example(png(image))
                    num_bytes += len(record)
                    writer.write(record)
        split_infos.append(
            {
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "name": split,
                "numBytes": str(num_bytes),
                "shardLengths": [str(len(shard)) for shard in shards],
            }
        )
    info = {
        "configName": f"{size}x{size}",
        "description": "Downsampled ImageNet.",
        "fileFormat": "tfrecord",
        "name": name,
        "splits": split_infos,
        "version": "2.0.0",
    }
    (home / "dataset_info.json").write_text(json.dumps(info, indent=2))
    return images


def example(image: bytes, name: bytes = b"image") -> bytes:
    """Return a serialized `tf.train.Example` of one encoded image, made by hand."""

    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2]) + _varint(len(content)) + content

    feature = field(1, field(1, image))
    return field(1, field(1, field(1, name) + field(2, feature)))


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


# A user's own images


def image_folder(
    folder: pathlib.Path,
    sizes: Mapping[str, int],
    seed: int = 0,
    shape: tuple[int, int, int] = (8, 12, 3),
) -> Splits:
    """Write `folder/<split>/<letter>/<number>.png`; images in the order of their sorted paths."""
    images = {}
    for number, (split, size) in enumerate(sizes.items()):
        height, width, channels = shape
        each = photos(size, max(height, width), seed + number, channels)[:, :height, :width]
        for i, image in enumerate(each):
            path = folder / split / "ab"[2 * i // size] / f"{i:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(image))
        images[split] = each
    return images


def not_8_bits() -> dict[str, tuple[bytes, str]]:
    """Return files that Pillow opens as 8 bits: name -> content and its true depth, in words."""
    rgb = np.random.default_rng(0).integers(0, 1 << 16, (6, 5, 3)).astype(">u2")
    grey, alpha = rgb[..., :1], np.concatenate([rgb, rgb[..., :1]], axis=-1)
    ten_bits, coarse = rgb % 1024, (rgb % 16).astype(np.uint8)
    plain = " ".join(map(str, ten_bits.ravel().tolist())).encode()
    return {
        "rgb.png": (_deep_png(rgb, colour=2), "16 bits per channel"),
        "rgba.png": (_deep_png(alpha, colour=6), "16 bits per channel"),
        "grey_alpha.png": (_deep_png(rgb[..., :2], colour=4), "16 bits per channel"),
        "rgb.ppm": (b"P6 5 6 65535\n" + rgb.tobytes(), "values 0 to 65,535"),
        "ten.ppm": (b"P6\n# a\n5 6\n1023\n" + ten_bits.tobytes(), "values 0 to 1,023"),
        "plain.ppm": (b"P3 5 6 1023\n" + plain, "values 0 to 1,023"),
        "coarse.pgm": (b"P5 5 6 15\n" + coarse[..., 0].tobytes(), "values 0 to 15"),
        "rgb.tif": (_deep_tiff(rgb), "16 bits per channel"),
        # Pillow has a colour mode of its own for these.
        "grey.pgm": (b"P5 5 6 65535\n" + grey.tobytes(), "values 0 to 65,535"),
        "grey.png": (_deep_png(grey, colour=0), "16 bits per channel"),
        "grey.tif": (_grey_tiff(grey, np.uint16), "16 bits per channel"),
        "float.tif": (_grey_tiff(grey, np.float32), "32-bit floating-point values"),
    }


def _deep_png(image: np.ndarray, colour: int) -> bytes:
    height, width, _ = image.shape
    rows = b"".join(b"\0" + row.tobytes() for row in image)
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def _grey_tiff(image: np.ndarray, dtype: type) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image[..., 0].astype(dtype)).save(file, "TIFF")
    return file.getvalue()


def _deep_tiff(image: np.ndarray) -> bytes:
    """Return a TIFF: big-endian, one strip; 9 entries, the three depths, the pixels."""
    height, width, channels = image.shape
    depths_at = 8 + 2 + 9 * 12 + 4
    short, long = 3, 4
    entries = (
        *((256, long, 1, width), (257, long, 1, height), (258, short, channels, depths_at)),
        *((259, long, 1, 1), (262, long, 1, 2), (273, long, 1, depths_at + 2 * channels)),
        *((277, long, 1, channels), (278, long, 1, height), (279, long, 1, image.nbytes)),
    )
    directory = struct.pack(">H", len(entries))
    directory += b"".join(struct.pack(">HHII", *each) for each in entries) + bytes(4)
    depths = struct.pack(f">{channels}H", *[16] * channels)
    return b"MM\0*" + struct.pack(">I", 8) + directory + depths + image.tobytes()


# Pickles as Python 2 wrote them


def python2_pickle(fields: Mapping[bytes, object]) -> bytes:
    """Return a pickle of protocol 2: a dict of byte strings, ints, lists and uint8 arrays.

    Python 3 cannot write Python 2's strings, and those are what the published files hold.
    """
    memo = [0]

    def put() -> bytes:
        memo[0] += 1
        return b"r" + struct.pack("<I", memo[0]) if memo[0] > 255 else b"q" + bytes([memo[0]])

    def dump(value: object) -> bytes:
        if isinstance(value, bytes):
            short = len(value) < 256
            head = b"U" + bytes([len(value)]) if short else b"T" + struct.pack("<i", len(value))
            return head + value + put()
        if isinstance(value, int):
            return b"K" + bytes([value]) if value < 256 else b"M" + struct.pack("<H", value)
        if isinstance(value, list):
            start = b"]" + put()
            return start + b"(" + b"".join(dump(each) for each in value) + b"e"
        assert isinstance(value, np.ndarray)
        assert value.dtype == np.uint8
        start = b"cnumpy.core.multiarray\n_reconstruct\n" + put() + b"cnumpy\nndarray\n" + put()
        start += b"K\x00\x85" + put() + b"U\x01b" + put() + b"\x87" + put() + b"R" + put()
        shape = b"".join(dump(size) for size in value.shape)
        dtype = b"cnumpy\ndtype\n" + put() + b"U\x02u1" + put() + b"K\x00K\x01\x87" + put()
        dtype += b"R" + put() + b"(K\x03U\x01|" + put() + b"NNN"
        dtype += b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t" + put() + b"b"
        # Not a short string, even when it would fit: the published arrays are long.
        raw = b"T" + struct.pack("<i", value.size) + value.tobytes() + put()
        tuple2 = {1: b"\x85", 2: b"\x86"}[value.ndim]
        return (
            start + b"(K\x01" + shape + tuple2 + put() + dtype + b"\x89" + raw + b"t" + put() + b"b"
        )

    start = b"\x80\x02}" + put() + b"("
    return start + b"".join(dump(key) + dump(value) for key, value in fields.items()) + b"u."
