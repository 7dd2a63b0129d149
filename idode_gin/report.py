"""Write a report on runs, evaluations and samples: one HTML file that needs no network.

    python -m idode_gin.report runs/a [more runs, evaluations or folders of samples]

Folders inside those given are included. What is missing or damaged is listed in the report. Exit
codes: 0 done, 2 for a folder that no program of this project wrote.
"""

import argparse
import os
import pathlib
import sys
from collections.abc import Sequence

import idode_gin
from idode_gin import checks
from idode_gin.checkpoints import names
from idode_gin.processes import output
from idode_gin.reports import files, paths, run_folders, run_report
from idode_gin.runs import output_folders

_DEPTH = 2  # folders within a folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m idode_gin.report",
        description="Write a report on runs, evaluations and samples as one HTML file.",
    )
    parser.add_argument("folders", nargs="+", help="output folders, or folders that hold some")
    parser.add_argument("--output", help="file to write; default: report.html in the first folder")
    parser.add_argument("--version", action="version", version=f"idode_gin {idode_gin.__version__}")
    options = parser.parse_args(arguments)
    try:
        path = write(options.folders, options.output)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return checks.EXIT_BAD_INPUT
    print(f"Wrote {path}.")
    return checks.EXIT_DONE


def write(folders: Sequence[str], output: str | None = None) -> pathlib.Path:
    """Write the report on `folders` and return its path.

    Raises:
        ValueError: for a folder that neither is an output of a program nor holds one.
        OSError: if the report cannot be written.
    """
    found: dict[str, run_folders.RunFolder] = {}
    for name in folders:
        folder = paths.of(paths.stored(name, "A report's folder"))
        within = _outputs(folder, _DEPTH) if name else []
        if not within:
            is_there = name and (folder.is_symlink() or folder.exists())
            reason = "holds no such output" if is_there else "does not exist"
            raise ValueError(
                "A report needs output folders of idode_gin.train, .eval, .sample, .encode or "
                f".interpolate, and {name!r} {reason}. Name a run's MODEL_DIR or output folder."
            )
        for path, program in within:
            key = os.fspath(path) if paths.in_bucket(path) else os.path.realpath(path)
            if key not in found:
                found[key] = run_folders.read(path, program)
    path = paths.of(paths.stored(output or f"{folders[0]}/report.html", "--output"))
    content = run_report.page(list(found.values()))
    # A file's name may hold bytes that are not text.
    files.write_atomically(path, content.encode("utf-8", "replace"))
    return path


def _outputs(folder: pathlib.Path, depth: int) -> list[tuple[pathlib.Path, str]]:
    """Return the outputs at and below a folder, with the programs that wrote them."""
    try:
        owner = output_folders.owner(folder)
        there = sorted(folder.iterdir()) if depth and folder.is_dir() else []
        others = [each for each in there if not each.name.startswith(".")]
        inner = [each for each in others if not names.is_checkpoint(each.name) and each.is_dir()]
    except PermissionError:  # a neighbour's folder; an outage is no such error
        return []
    found = [] if owner is None else [(folder, owner)]
    return found + [each for path in inner for each in _outputs(path, depth - 1)]


if __name__ == "__main__":
    output.make_safe()
    sys.exit(output.exit_code(main))
