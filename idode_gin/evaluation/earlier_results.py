"""Results that an evaluation finds in its output folder, and whether it may replace them."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from idode_gin.reports import differences, files
from idode_gin.runs import facts as facts_lib
from idode_gin.runs import run_lock

SETTINGS = "settings.json"
_STALE = ("summary.json", "table.txt", "plots/bpd_*.png", "plots/nfe.png", "plots/integrand.png")


def are_in(directory: pathlib.Path) -> bool:
    """Return True if `directory` holds finished results."""
    return files.read_json(directory / "summary.json") is not None


def check(directory: pathlib.Path, settings: Mapping[str, Any] | None) -> None:
    """Check that results in `directory`, if any, may be replaced by those of these settings.

    None are the settings of a series of checkpoints, which compares its own. Settings that one side
    lacks are ignored: other versions may have more.

    Raises:
        ValueError: if a setting differs, or one side is a series and the other is not.
    """
    _check_kind(directory, is_series=settings is None)
    if settings is None or not are_in(directory):
        return
    saved = files.read_json(directory / SETTINGS) or {}
    current = json.loads(json.dumps(settings))
    if changes := facts_lib.changed(saved, current):
        raise ValueError(
            f"{directory} holds the results of another evaluation, which would be overwritten: "
            f"{differences.listed(changes)}. Nothing was changed. Choose another output directory, "
            f"such as --gin.EVAL_OUTPUT_DIR=\"'{directory}_2'\", or remove {directory}."
        )


def _check_kind(directory: pathlib.Path, *, is_series: bool) -> None:
    found = "summary.json" if is_series else "series.json"
    if not (directory / found).exists():
        return
    there, name = "a series of checkpoints", "single"
    if is_series:
        there, name = "the evaluation of one checkpoint", "series"
    raise ValueError(
        f"{directory} holds {there} ({found}). Nothing was changed. Choose another output "
        f"directory, such as --gin.EVAL_OUTPUT_DIR=\"'{directory}_{name}'\"."
    )


def announce(directory: pathlib.Path) -> None:
    """Print which results will be replaced, if there are finished ones."""
    if (found := files.read_json(directory / "summary.json")) is not None:
        of = f"{found.get('checkpoint')}, step {found.get('step')},"
        print(f"Replaces the results of {of} in {directory}, once all images are scored.")


def replace(directory: pathlib.Path, settings: Mapping[str, Any]) -> None:
    """Remove the files that new results may not overwrite, and save the settings of these.

    Raises:
        OSError: if another program may have begun there since.
    """
    run_lock.check(directory)
    for pattern in _STALE:
        for path in directory.glob(pattern):
            path.unlink(missing_ok=True)
    files.write_json_atomically(directory / SETTINGS, dict(settings))
