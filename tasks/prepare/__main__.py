"""`python -m tasks.prepare <dataset> --source <files>`: a TFDS dataset from downloaded files.

Exit codes: 0 done, 2 refused, 75 stopped by a signal or Ctrl-C. In no case is an unfinished dataset
left where a finished one is expected.
"""

import argparse
import pathlib
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import idode_gin
from idode_gin import checks
from idode_gin.processes import output
from idode_gin.reports import commands, paths, progress
from tasks.prepare import datasets, splitting, stopping, targets
from tasks.prepare.datasets import Dataset
from tasks.prepare.refusals import SourceError, TargetError

if TYPE_CHECKING:
    from idode_gin.feed.image_fingerprints import ImageFingerprint
    from tasks.prepare.records import Source

IMAGE_FOLDER = "image_folder"
NO_EVALUATION = "--gin.train.train_eval_dataset_cfg=None"
_NAME = "my_images"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        with stopping.on_signals():
            _run(options)
    except (SourceError, TargetError) as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return checks.EXIT_BAD_INPUT
    except MemoryError:
        print("\nerror: not enough memory. --size reduces the images of a folder.", file=sys.stderr)
        return checks.EXIT_BAD_INPUT
    except BrokenPipeError:
        raise
    except OSError as error:  # such as a folder that may not be entered
        print(f"\nerror: {error}", file=sys.stderr)
        return checks.EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print(
            "\nStopped; nothing was left behind. The same command starts from the beginning.",
            file=sys.stderr,
        )
        return checks.EXIT_PREEMPTED
    return checks.EXIT_DONE


def _parser() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {name:15} {each.title}" for name, each in datasets.DATASETS.items())
    parser = argparse.ArgumentParser(
        prog="python -m tasks.prepare",
        description="Build a TFDS dataset on disk from files that you downloaded.",
        epilog=f"datasets:\n{listed}\n  {IMAGE_FOLDER:15} your own images",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "dataset", choices=[*datasets.DATASETS, IMAGE_FOLDER], metavar="dataset", help="see below"
    )
    parser.add_argument(
        "--source",
        nargs="+",
        action="extend",
        required=True,
        type=pathlib.Path,
        help="downloaded archives or their extracted folders; repeatable",
    )
    parser.add_argument(
        "--tfds_data_dir",
        type=pathlib.Path,
        help="folder of all TFDS datasets; default: $TFDS_DATA_DIR, else ~/tensorflow_datasets",
    )
    parser.add_argument("--name", help=f"name of an {IMAGE_FOLDER} dataset (default: {_NAME})")
    parser.add_argument(
        "--size",
        type=int,
        help=f"reduce the images of an {IMAGE_FOLDER}: crop to the square in the middle, then "
        "average areas to SIZE x SIZE; without it, all must have one size",
    )
    parser.add_argument(
        "--split",
        metavar="TRAIN,VALIDATION,TEST",
        help=f"shares of the splits of an {IMAGE_FOLDER} without folders of splits, such as "
        "0.8,0.1,0.1; a file's split depends on its path alone",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the dataset if it exists")
    parser.add_argument(
        "--allow_partial",
        action="store_true",
        help="accept any number of images; the dataset is marked as partial",
    )
    parser.add_argument("--version", action="version", version=f"idode_gin {idode_gin.__version__}")
    return parser


def _run(options: argparse.Namespace) -> None:
    if options.name is not None and options.dataset != IMAGE_FOLDER:
        raise SourceError(
            f"--name is for {IMAGE_FOLDER} alone, got {options.name!r}: {options.dataset} has its "
            "own."
        )
    if options.name is None:
        options.name = _NAME
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,63}", options.name):
        raise SourceError(
            "--name must be lower-case letters, digits and underscores, starting with a letter, "
            f"got {options.name!r}."
        )
    if options.size is not None and (options.dataset != IMAGE_FOLDER or options.size < 1):
        raise SourceError(
            f"--size must be a number of pixels, for {IMAGE_FOLDER} alone, got {options.size} for "
            f"{options.dataset}: the images of published datasets are left as they are."
        )
    shares = None if options.split is None else splitting.shares(options.split)
    if shares is not None and options.dataset != IMAGE_FOLDER:
        raise SourceError(
            f"--split is for {IMAGE_FOLDER} alone: the splits of {options.dataset} are published."
        )
    dataset = datasets.DATASETS.get(options.dataset) or datasets.image_folder(options.name)
    given = options.tfds_data_dir or targets.default_data_dir()
    data_dir = _local(given, "tfds_data_dir").absolute()
    targets.check_unused(data_dir, dataset.folder, overwrite=options.overwrite)
    if options.allow_partial:
        print(
            "WARNING: --allow_partial accepts any number of images. Bits per dim on a part of a "
            "dataset cannot be compared with published ones.",
            file=sys.stderr,
        )
    options.source = [_local(each, "source") for each in options.source]
    own = {"size": options.size, "shares": shares}
    with progress.phase(f"preparing {dataset.name}"):
        source = _open(dataset, options.source, partial=options.allow_partial, own=own)
        targets.check_free(data_dir, dataset.folder, source.bytes_needed())
        with targets.staged(data_dir, dataset.folder, overwrite=options.overwrite) as aside:
            from tasks.prepare import writer

            fingerprints = writer.write(source, aside)
    _report(options, data_dir, dataset, fingerprints, len(source.label_names))


def _local(path: pathlib.Path, flag: str) -> pathlib.Path:
    try:
        return pathlib.Path(paths.local(path, f"--{flag}"))
    except ValueError as error:
        raise SourceError(str(error)) from error


def _open(
    dataset: Dataset, sources: Sequence[pathlib.Path], *, partial: bool, own: Mapping[str, Any]
) -> "Source":
    """Open a dataset; `own` are the options of a user's own images."""
    from tasks.prepare import cifar10, idx, image_folder, imagenet_new, imagenet_old, tfrecords

    if dataset is datasets.CIFAR10:
        return cifar10.read(sources, partial=partial)
    if dataset.name in idx.NAMES:
        return idx.read(dataset, sources, partial=partial)
    if dataset.sizes is datasets.OLD_SIZES:
        return imagenet_old.read(dataset, sources, partial=partial)
    if dataset.sizes is not datasets.NEW_SIZES:
        print(f"reading the images in {sources[0]}", flush=True)
        return image_folder.read(dataset, sources, partial=partial, **own)
    if (folder := tfrecords.find(dataset, sources)) is not None:
        return tfrecords.read(dataset, folder, partial=partial)
    return imagenet_new.read(dataset, sources, partial=partial)


def _report(
    options: argparse.Namespace,
    data_dir: pathlib.Path,
    dataset: Dataset,
    fingerprints: "Mapping[str, ImageFingerprint]",
    num_classes: int,
) -> None:
    print(f"\n{data_dir / dataset.folder}{'  (PARTIAL)' if options.allow_partial else ''}")
    for split, each in fingerprints.items():
        size = "x".join(map(str, each.image_shape))
        mean = ", ".join(f"{value:.3f}" for value in each.channel_mean)
        print(f"  {split:10} {each.num_images:>9,} images of {size}, channel mean {mean}")
    train = f"python -m idode_gin.train --gin_file=gin_configs/experiments/{options.dataset}.gin"
    if options.dataset != IMAGE_FOLDER:
        if "train" in fingerprints:
            more = [NO_EVALUATION] if len(fingerprints) == 1 else []
            where = f"--tfds_data_dir={shlex.quote(str(data_dir))}"
            print("\nTrain on it:\n  " + " ".join([train, where, *more]))
        return
    name = f"{dataset.name}/{dataset.config}:{dataset.version}"
    shape = next(iter(fingerprints.values())).image_shape
    folder = data_dir / dataset.folder
    own = " ".join(
        [
            "--gin_file=gin_configs/sizes/small.gin",
            commands.bound("DATA_PATH", str(folder)),
            f'--gin.IMAGE_SHAPE="{shape}"',
            f"""--gin.MODEL_DIR="'runs/{options.name}'\"""",
            *([f"--gin.NUM_CLASSES={num_classes}"] if num_classes else []),
            *_evaluated(fingerprints),
        ]
    )
    print(
        f"\nRead it:\n  seqio.TfdsDataSource({name!r}, tfds_data_dir={str(data_dir)!r}, "
        "read_only=True)"
    )
    if "train" not in fingerprints:
        return
    print(f"or train on it, on a CPU (base.gin: on a GPU):\n  {train} {own}")
    if num_classes:
        print("Without NUM_CLASSES the model is not conditioned on the classes.")


def _evaluated(splits: Mapping[str, object]) -> list[str]:
    """Return what to bind so that training evaluates on a split that is there."""
    if "validation" in splits:
        return []
    return ["""--gin.EVAL_SPLIT="'test'\"""" if "test" in splits else NO_EVALUATION]


if __name__ == "__main__":
    from absl import logging

    output.make_safe()
    logging.set_verbosity(logging.ERROR)  # TFDS logs every step
    sys.exit(output.exit_code(main))
