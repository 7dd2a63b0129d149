"""Compare evaluations of the same images: differences with their paired standard errors.

    python -m idode_gin.compare runs/a runs/b [more]

Each argument is the output folder of an evaluation, or a run directory that holds one. All are
compared with the first. The table is printed and written with `compare.json` and `compare.png`. The
picture shows the images that differ most if the dataset can be read; the rest needs neither data
nor devices. Exit codes: 0 done, 2 if they cannot be compared, with the reason.
"""

import argparse
import ast
import importlib
import json
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

import idode_gin
from idode_gin import checks
from idode_gin.processes import output
from idode_gin.reports import differences, files, paths
from idode_gin.runs import output_folders

_DATA = (
    *("mixture_or_task_name", "split", "use_cached", "module", "data_path", "cache_dir"),
    "num_images",
)
"""Fields of `DatasetConfig` that say which images an evaluation scored."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m idode_gin.compare",
        description="Compare evaluations of the same images, with paired standard errors.",
    )
    parser.add_argument("evaluations", nargs="+", help="their folders, or run directories")
    parser.add_argument("--bounds", help="names with commas between; default: all that are shared")
    parser.add_argument("--output", help="folder to write; default: beside the first evaluation")
    parser.add_argument("--tfds_data_dir", help="data of TensorFlow Datasets, for the picture")
    parser.add_argument("--version", action="version", version=f"idode_gin {idode_gin.__version__}")
    options = parser.parse_args(arguments)
    names = [each.strip() for each in (options.bounds or "").split(",") if each.strip()]
    try:
        folder = write(options.evaluations, options.output, names, options.tfds_data_dir)
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return checks.EXIT_BAD_INPUT
    print(f"Wrote {folder / 'compare.png'}, .json and .txt.")
    return checks.EXIT_DONE


def write(
    evaluations: Sequence[str],
    output: str | None = None,
    bounds: Sequence[str] = (),
    tfds_data_dir: str | None = None,
) -> pathlib.Path:
    """Compare, write the files and print the table; return their folder.

    Args:
        evaluations: two folders or more; the first is the reference.
        output: folder to write; None is the first evaluation's with `_compared` added.
        bounds: to compare; () compares all that are shared.
        tfds_data_dir: data of TensorFlow Datasets.

    Raises:
        ValueError: if the evaluations cannot be compared.
        OSError: if a file cannot be written.
    """
    from idode_gin.feed import quiet

    quiet.silence_tensorflow()
    if len(evaluations) < 2:
        raise ValueError(f"A comparison needs two evaluations or more, got {len(evaluations)}.")
    folders = [_evaluation(each) for each in evaluations]
    from idode_gin.evaluation import comparison, plots

    read = [comparison.read(each, _label(i)) for i, each in enumerate(folders)]
    found = comparison.compare(read, bounds)
    images, lack = _images(folders[0], found["images"], tfds_data_dir)
    if lack:
        found["notes"].append(f"compare.png shows no images: {lack}")
    text = comparison.table(found)
    folder = paths.of(paths.stored(output, "--output")) if output else _beside(folders[0])
    scores = {each.label: each.scores for each in read}
    pairs = [
        (
            f"{each['bound']}, {each['other']} - {each['first']}",
            scores[each["first"]][each["bound"]]["bpd"],
            scores[each["other"]][each["bound"]]["bpd"],
        )
        for each in found["differences"]
    ]
    levels = found["images"]["levels"]
    given = {"images": images, "levels": levels, "places": read[0].places}
    plots.plot_differences(pairs, folder / "compare.png", **given)
    files.write_atomically(folder / "compare.txt", f"{text}\n".encode("utf-8", "replace"))
    files.write_json_atomically(folder / "compare.json", found)
    print(text, flush=True)
    return folder


def _evaluation(name: str) -> pathlib.Path:
    """Return the folder of an evaluation: the one named, or the only one in a run directory."""
    folder = paths.of(paths.stored(name, "An evaluation's folder"))
    owner = output_folders.owner(folder)
    if owner == "eval":
        return folder
    if owner == "train":
        inner = [folder / "eval", *sorted((folder / "eval").glob("*/"))]
        found = [each for each in inner if output_folders.owner(each) == "eval"]
        if len(found) == 1:
            return found[0]
        start = f"A comparison needs one evaluation, and the run {name!r} holds"
        if found:
            listed = "".join(f"\n  {each}{_described(each)}" for each in found)
            raise ValueError(f"{start} several: name the folder of one.{listed}")
        raise ValueError(
            f"{start} none in eval/. Name one, or score the run: python -m idode_gin.eval "
            f"--gin.CHECKPOINT_PATH=\"'{name}'\""
        )
    reason = "holds none" if folder.is_symlink() or folder.exists() else "does not exist"
    raise ValueError(
        f"A comparison needs output folders of idode_gin.eval, and {name!r} {reason}. Name the "
        "EVAL_OUTPUT_DIR, or a run directory that holds it."
    )


def _described(folder: pathlib.Path) -> str:
    """Return dataset, split, step and bounds of an evaluation, as far as its summary says them."""
    if (folder / "series.json").exists():
        return ": a series of checkpoints; name a folder in it"
    try:
        found = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        bounds = [name for name, each in found.items() if isinstance(each, dict) and "nfe" in each]
        of = f"{found['dataset']} / {found['split']}, step {found['step']}"
        return f": {of}; {', '.join(bounds)}"
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return ": not finished"


def _beside(folder: pathlib.Path) -> pathlib.Path:
    folder = folder.absolute()
    return folder.with_name(f"{folder.name}_compared")


def _label(number: int) -> str:
    return chr(ord("A") + number) if number < 26 else f"E{number + 1}"


def _images(
    folder: pathlib.Path, wanted: dict[str, Any], tfds_data_dir: str | None
) -> tuple[np.ndarray | None, str]:
    """Return the images that an evaluation scored; or None, and why they cannot be read."""
    from idode_gin.feed import data, loading

    try:
        is_step = (folder.parent / "series.json").exists()  # a series has one configuration
        config_folder = folder.parent if is_step else folder
        text = (config_folder / "operative_config.gin").read_text(encoding="utf-8")
        _import_own(text)
        bound = differences.bindings(text)
        fields = {
            name: ast.literal_eval(_value(bound, f"data.DatasetConfig.{name}"))
            for name in _DATA
            if f"data.DatasetConfig.{name}" in bound
        }
        if tfds_data_dir:
            loading.set_data_dirs(tfds_data_dir=paths.stored(tfds_data_dir, "--tfds_data_dir"))
        config = data.DatasetConfig(**fields, batch_size=1, fingerprint=wanted["sha256"])
        return loading.load_split(config).images, ""
    except Exception as error:  # of the dataset's own code, of any type
        return None, f"{str(error) or type(error).__name__}"


def _import_own(configuration: str) -> None:
    """Import what a configuration does of a user's own modules: one may register the dataset."""
    for package, name in re.findall(r"^(?:from ([\w.]+) )?import ([\w.]+)", configuration, re.M):
        module = f"{package}.{name}" if package else name
        if module.partition(".")[0] not in ("__gin__", "idode_gin", "tasks"):
            importlib.import_module(module)


def _value(bound: dict[str, str], name: str) -> str:
    """Return the text of a value, with a macro replaced by its own."""
    value = bound[name]
    for _ in bound:  # more steps would be a ring
        if not value.startswith("%"):
            return value
        value = bound[value[1:]]
    return value


if __name__ == "__main__":
    output.make_safe()
    sys.exit(output.exit_code(main))
