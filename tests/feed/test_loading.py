"""Reading seqio tasks: every image of a split, or an error that says what to do."""

import dataclasses
import hashlib
import json
import sys
from collections import Counter

import made
import numpy as np
import pytest

from idode_gin.feed import augmentation, image_fingerprints, loading
from idode_gin.feed.sources import ImageSource, KnownSplit

# Reading seqio tasks.


@pytest.fixture
def register():
    """Registers a seqio task or mixture for one test."""
    import seqio
    import tensorflow as tf

    tasks, mixtures = [], []

    def add_task(name, examples, *, spec=None, preprocessors=(), splits=("train",), **options):
        def dataset_fn(split, shuffle_files=False):
            if spec is None:
                return tf.data.Dataset.from_tensor_slices(examples)
            return tf.data.Dataset.from_generator(lambda: iter(examples), output_signature=spec)

        image = (spec or dataset_fn("train").element_spec).get("image")
        features = {}
        if image is not None:
            rank = image.shape.rank
            features = {"image": seqio.ContinuousFeature(dtype=image.dtype, rank=rank)}
        source = seqio.FunctionDataSource(dataset_fn, splits=splits)
        tasks.append(name)
        seqio.TaskRegistry.add(
            name,
            source=options.pop("source", source),
            preprocessors=list(preprocessors),
            output_features=features,
        )

    def add_mixture(name, rates):
        mixtures.append(name)
        seqio.MixtureRegistry.add(name, list(rates.items()))

    add_task.mixture = add_mixture
    yield add_task
    for name in tasks:
        seqio.TaskRegistry.remove(name)
    for name in mixtures:
        seqio.MixtureRegistry.remove(name)


def random_images(num_images, shape=(4, 5, 1), dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, 200, (num_images, *shape)).astype(dtype)


def load(name, **changes):
    return loading.load_split(made.config(mixture_or_task_name=name, **changes))


def test_a_split_is_loaded_whole_and_in_order(register):
    images = random_images(700)  # more than two chunks
    register("made", {"image": images, "label": np.arange(700)})
    split = load("made", batch_size=64)
    np.testing.assert_array_equal(split.images, images)
    assert split.images.dtype == np.uint8
    np.testing.assert_array_equal(split.conditioning, np.zeros((700, 1), np.float32))
    assert (split.num_images, split.image_shape) == (700, (4, 5, 1))
    assert (split.name, split.split) == ("made", "train")
    assert not split.images.flags.writeable


def test_some_images_of_a_split_are_spread_evenly_with_their_labels(register):
    images, rows = random_images(10), np.arange(20.0).reshape(10, 2)
    register("made", {"image": images, "conditioning": rows, "label": np.arange(10) % 3})
    whole, some = load("made"), load("made", num_images=4)
    places = [0, 3, 6, 9]
    np.testing.assert_array_equal(some.images, images[places])
    np.testing.assert_array_equal(some.conditioning, rows[places])
    config = made.config(mixture_or_task_name="made", num_images=4)
    assert loading.load_labels(config, 3).tolist() == [0, 0, 0, 0]
    config = made.config(mixture_or_task_name="made", num_images=3)
    assert loading.load_labels(config, 3).tolist() == [0, 1, 0]  # of 0, 4 and 9: 4.5 rounds to 4
    assert some.facts()["whole_split"] == 10
    assert some.facts()["num_images"] == 4
    known = dataclasses.replace(whole, known_fingerprint=whole.fingerprint).some(4)
    for each in (some, known):
        assert each.fingerprint == image_fingerprints.fingerprint(images[places])
    load("made", num_images=4, fingerprint=some.fingerprint.sha256)
    with pytest.raises(ValueError, match="must have fingerprint="):
        load("made", num_images=4, fingerprint=whole.fingerprint.sha256)
    for enough in (10, 11):
        assert load("made", num_images=enough).facts() == whole.facts()
    with pytest.raises(ValueError, match="`num_images` must be"):
        load("made", num_images=0)


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint16])
def test_wider_integers_become_int32(register, dtype):
    images = random_images(5, dtype=dtype) * 100
    register("made", {"image": images})
    split = load("made")
    assert split.images.dtype == np.int32
    np.testing.assert_array_equal(split.images, images)


@pytest.mark.parametrize("shape", [(6,), (6, 1), (6, 3)])
def test_conditioning_becomes_one_float_row_per_image(register, shape):
    rows = np.arange(np.prod(shape)).reshape(shape)
    register("made", {"image": random_images(6), "conditioning": rows})
    split = load("made")
    assert split.conditioning.dtype == np.float32
    np.testing.assert_array_equal(split.conditioning, rows.reshape(6, -1))


def test_a_task_without_static_shape_is_read_too(register):
    import tensorflow as tf

    spec = {"image": tf.TensorSpec([None, None, 1], tf.uint8)}
    images = random_images(9)
    register("made", [{"image": each} for each in images], spec=spec)
    np.testing.assert_array_equal(load("made").images, images)


def test_images_of_two_sizes_are_refused(register):
    import tensorflow as tf

    spec = {"image": tf.TensorSpec([None, None, 1], tf.uint8)}
    images = [*random_images(3), *random_images(1, (4, 6, 1))]
    register("made", [{"image": each} for each in images], spec=spec)
    with pytest.raises(ValueError, match=r"number 3 is \[4, 6, 1\] and number 0 is \[4, 5, 1\]"):
        load("made")


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ({"image": np.zeros((3, 4, 4, 1), np.float32)}, "integer images .* got float32"),
        ({"image": np.zeros((3, 4, 4), np.uint8)}, r"integer images .* got uint8 \[3, 4, 4\]"),
        ({"image": np.zeros((0, 4, 4, 1), np.uint8)}, "'train' of task 'made' is empty"),
        ({"picture": np.zeros((3, 4, 4, 1), np.uint8)}, '"image" feature, got picture'),
    ],
    ids=["float", "rank", "empty", "no image"],
)
def test_tasks_that_are_not_images_are_refused(register, examples, message):
    register("made", examples)
    with pytest.raises(ValueError, match=message):
        load("made")


def test_an_unknown_task_names_the_nearest():
    with pytest.raises(ValueError, match="named 'digit' .*Did you mean 'digits'"):
        load("digit")


def test_an_unknown_split_lists_the_splits():
    with pytest.raises(ValueError, match="no split 'dev'.*'test', 'train', 'validation'"):
        load("digits", split="dev")


def test_an_unknown_module_is_named():
    with pytest.raises(ValueError, match="module='no_such_module'"):
        load("digits", module="no_such_module")


@pytest.mark.parametrize("statement", ["import not_there", "from math import not_there"])
def test_a_module_that_misses_something_itself_says_so(tmp_path, monkeypatch, statement):
    name = f"my_broken_tasks_{len(statement)}"
    (tmp_path / f"{name}.py").write_text(statement)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="cannot be imported: .*not_there.*Install"):
        load("digits", module=name)


def test_a_users_own_module_is_imported(register, tmp_path, monkeypatch):

    import seqio

    (tmp_path / "my_own_tasks.py").write_text(
        "import numpy as np\n"
        "from tasks import register_images\n"
        "register_images('my_own', {'train': 2}, lambda split: np.ones((2, 3, 3, 1), np.uint8))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_own_tasks", raising=False)
    try:
        np.testing.assert_array_equal(load("my_own", module="my_own_tasks").images, 1)
    finally:
        seqio.TaskRegistry.remove("my_own")


def test_a_mixture_with_rates_as_sizes_is_its_tasks_in_turn(register):
    first, second = random_images(4), random_images(12, seed=1)
    register("made_a", {"image": first})
    register("made_b", {"image": second})
    register.mixture("made_both", {"made_b": 3.0, "made_a": 1.0})
    split = load("made_both")
    np.testing.assert_array_equal(split.images, np.concatenate([first, second]))
    assert split.name == "made_both"


def test_a_mixture_of_one_task_may_have_any_rate(register):
    images = random_images(4)
    register("made", {"image": images})
    register.mixture("made_alone", {"made": 7.0})
    np.testing.assert_array_equal(load("made_alone").images, images)


def test_a_mixture_with_other_rates_is_refused(register):
    register("made_a", {"image": random_images(4)})
    register("made_b", {"image": random_images(12)})
    register.mixture("made_both", {"made_b": 1.0, "made_a": 1.0})
    with pytest.raises(ValueError, match="made_a: rate 1, 4 images, made_b: rate 1, 12 images"):
        load("made_both")


def test_tensorflow_datasets_on_disk_are_read_whole(register, tmp_path):
    import seqio
    import tensorflow_datasets as tfds

    images = random_images(40, (4, 4, 3))

    class Made(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            shape = tfds.features.Image(shape=(4, 4, 3), encoding_format="png")
            features = tfds.features.FeaturesDict({"image": shape})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield from ((number, {"image": image}) for number, image in enumerate(images))

    Made(data_dir=tmp_path).download_and_prepare(
        download_config=tfds.download.DownloadConfig(num_shards=3)
    )
    register(
        "made_tfds",
        {"image": images},  # only for the feature's type
        source=seqio.TfdsDataSource("made:1.0.0", read_only=True, splits=("train",)),
    )
    loading.set_data_dirs(tfds_data_dir=str(tmp_path))
    split, again = load("made_tfds"), load("made_tfds")
    assert Counter(each.tobytes() for each in split.images) == Counter(
        each.tobytes() for each in images
    )
    assert split.fingerprint == again.fingerprint


def test_a_seqio_cache_is_read_where_asked_for(register, tmp_path):
    import seqio
    import tensorflow as tf

    register(
        "made_cached",
        {"image": random_images(3, dtype=np.int32)},
        preprocessors=[seqio.CacheDatasetPlaceholder()],
    )
    with pytest.raises(ValueError, match="'made_cached' is in none of the seqio cache folders"):
        load("made_cached", use_cached=True)

    cached = random_images(6, dtype=np.int32, seed=1)
    folder = tmp_path / "made_cached"
    folder.mkdir()
    (folder / "COMPLETED").touch()
    (folder / "stats.train.json").write_text(json.dumps({"examples": 6}))
    description = {"image": {"shape": [4, 5, 1], "dtype": "int32"}}
    (folder / "info.train.json").write_text(
        json.dumps({"features": description, "num_shards": 1, "seqio_version": "0.0.20"})
    )
    with tf.io.TFRecordWriter(str(folder / "train.tfrecord-00000-of-00001")) as writer:
        for image in cached:
            values = tf.train.Feature(int64_list=tf.train.Int64List(value=image.reshape(-1)))
            example = tf.train.Example(features=tf.train.Features(feature={"image": values}))
            writer.write(example.SerializeToString())

    loading.set_data_dirs(seqio_cache_dirs=[str(tmp_path)])
    np.testing.assert_array_equal(load("made_cached", use_cached=True).images, cached)


def test_a_seqio_cache_of_bytes_is_refused(register):
    """TensorFlow itself would fail on reading it: "'dense_defaults' has DataType uint8"."""
    import seqio

    register(
        "made_bytes",
        {"image": random_images(3)},
        preprocessors=[seqio.CacheDatasetPlaceholder()],
    )
    with pytest.raises(
        ValueError, match="those of the task 'made_bytes' are uint8.*DatasetConfig.cache_dir"
    ):
        load("made_bytes", use_cached=True)


def test_gpus_are_hidden_from_tensorflow(monkeypatch):
    import tensorflow as tf

    hidden = []
    monkeypatch.setattr(
        tf.config, "set_visible_devices", lambda devices, kind: hidden.append((devices, kind))
    )
    load("digits", split="test")
    assert hidden == [([], "GPU")]


# Sources that know what they hold.


@pytest.fixture
def knowing(register):
    """Registers a task whose source says what it holds; returns it."""
    import seqio
    import tensorflow as tf

    class Knowing(seqio.FunctionDataSource, ImageSource):
        variant = "the real one"
        facts: KnownSplit | None = None
        key: str | None = "k1"
        reads = 0

        def cache_key(self, split):
            return self.key

        def known(self, split):
            return self.facts

        def at(self, path):
            assert path == "/mine"
            return self

    def make(name, images, **attributes):
        def dataset_fn(split, shuffle_files=False, seed=None):
            source.reads += 1
            return tf.data.Dataset.from_tensor_slices({"image": images})

        source = Knowing(dataset_fn, splits=("train",), num_input_examples={"train": len(images)})
        for attribute, value in attributes.items():
            setattr(source, attribute, value)
        register(name, {"image": images}, source=source)
        return source

    return make


def known(images, **changes):
    facts = {
        "num_images": len(images),
        "image_shape": images.shape[1:],
        "channel_mean": tuple(images.astype(float).mean((0, 1, 2))),
        "channel_mean_tolerance": 1e-6,
        "lookalikes": {9: "the other one"},
    }
    return KnownSplit(**(facts | changes))


def test_a_split_is_decoded_once_and_mapped(knowing, tmp_path):
    images = random_images(9)
    source = knowing("made_cached", images, facts=known(images))
    for memory_map in (True, False):
        split = load("made_cached", cache_dir=str(tmp_path), memory_map=memory_map)
        assert isinstance(split.images, np.memmap) == memory_map
        np.testing.assert_array_equal(split.images, images)
        assert split.facts()["variant"] == "the real one"
        assert split.facts()["sha256"] == hashlib.sha256(images.tobytes()).hexdigest()
    assert source.reads == 1
    load("made_cached", cache_dir="")
    assert source.reads == 2
    source.key = "k2"  # the files have changed
    load("made_cached", cache_dir=str(tmp_path))
    assert source.reads == 3
    source.key = None
    load("made_cached", cache_dir=str(tmp_path))
    assert source.reads == 4


def test_the_wrong_split_is_refused(knowing):
    images = random_images(9)
    source = knowing("made_wrong", images)
    for facts, message in (
        (
            known(images, num_images=10),
            r"must hold 10 images, got 9\. 9 images .* the other one\.",
        ),
        (known(images, image_shape=(5, 4, 1)), r"must be \(5, 4, 1\), got \(4, 5, 1\)"),
        (known(images, channel_mean=(1.0,)), r"channel means of 1\.000, got .*other pixels"),
    ):
        source.facts = facts
        with pytest.raises(ValueError, match=message):
            load("made_wrong", cache_dir="")


@pytest.mark.parametrize("order", [1, -1])
def test_a_mixture_of_cached_and_other_tasks_is_read_whole(knowing, register, tmp_path, order):
    first, second = random_images(4), random_images(12, seed=1)
    knowing("made_cached", first)
    register("made_other", {"image": second})
    rates = {"made_cached": 1.0, "made_other": 3.0}
    register.mixture("made_both", dict(list(rates.items())[::order]))
    split = load("made_both", cache_dir=str(tmp_path))
    np.testing.assert_array_equal(split.images, np.concatenate([first, second]))


def test_a_mixture_has_the_fingerprint_of_all_its_images(knowing, register, tmp_path):
    knowing("made_a", random_images(4))
    knowing("made_b", random_images(12, seed=1))
    register.mixture("made_both", {"made_a": 1.0, "made_b": 3.0})
    for cache_dir in ("", str(tmp_path)):
        split = load("made_both", cache_dir=cache_dir)
        assert split.fingerprint == image_fingerprints.fingerprint(split.images)


def test_a_fingerprint_can_be_insisted_on(knowing):
    images = random_images(9)
    knowing("made_pinned", images)
    found = load("made_pinned", cache_dir="").fingerprint
    for wanted in (found.sha256, found.content_sha256, found.sha256[:16]):
        load("made_pinned", cache_dir="", fingerprint=wanted)
    with pytest.raises(ValueError, match=f"fingerprint={'0' * 16}, got sha256 {found.sha256}"):
        load("made_pinned", cache_dir="", fingerprint="0" * 16)
    with pytest.raises(ValueError, match="at least 16 lowercase hex digits"):
        load("made_pinned", cache_dir="", fingerprint="0123")


def test_augmentation_is_the_tasks_or_the_configurations(knowing, register):
    images = random_images(9, (4, 4, 3))
    own = augmentation.Augmentation(channels=True)
    knowing("made_augmented", images, augmentation=own)
    knowing("made_plain", images[:3])
    register.mixture("made_both", {"made_augmented": 3.0, "made_plain": 1.0})
    with pytest.raises(ValueError, match="'made_both' are not: .*, or name one task"):
        load("made_both", cache_dir="")
    assert load("made_augmented", cache_dir="").augmentation == own
    other = augmentation.Augmentation(rotation=False, bits=augmentation.BitPerKind())
    split = load("made_augmented", cache_dir="", augmentation=other)
    assert split.augmentation == other
    np.testing.assert_array_equal(split.conditioning, np.zeros((9, 1)))
    wide = random_images(9, (4, 5, 3))
    knowing("made_wide", wide, augmentation=own)
    with pytest.raises(ValueError, match="square images"):
        load("made_wide", cache_dir="")


def test_a_path_is_for_tasks_that_read_one(knowing, register):
    images = random_images(9)
    knowing("made_of_files", images)
    assert load("made_of_files", cache_dir="", data_path="/mine").num_images == 9
    with pytest.raises(ValueError, match=r"reads no files of yours.*image_folder"):
        load("digits", split="test", data_path="/mine")


def test_a_damaged_record_is_an_error_with_a_way_out(register):
    import tensorflow as tf

    def fail(image):
        raise OSError("bad record")

    dataset = {"image": random_images(3)}
    register(
        "made_damaged",
        dataset,
        preprocessors=[
            lambda ds: ds.map(
                lambda each: {
                    "image": tf.ensure_shape(
                        tf.py_function(fail, [each["image"]], tf.uint8), (4, 5, 1)
                    )
                }
            )
        ],
    )
    with pytest.raises(ValueError, match=r"could not be read: .*bad record.*Prepare"):
        load("made_damaged")


def test_what_a_task_makes_of_images_is_what_is_read(knowing, register):
    """A task of one's own over a source that could be read directly."""
    images = random_images(9)
    source = knowing("made_original", images)
    register(
        "made_coarser",
        {"image": images},
        source=source,
        preprocessors=[lambda ds: ds.map(lambda each: {"image": each["image"] // 8})],
    )
    np.testing.assert_array_equal(load("made_coarser", cache_dir="").images, images // 8)
    np.testing.assert_array_equal(load("made_original", cache_dir="").images, images)
