"""The evaluation of checkpoint after checkpoint: each in a folder of its own, and one curve."""

import csv
import hashlib
import io
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
from absl import logging

from idode_gin import checks
from idode_gin.checkpoints import meta
from idode_gin.checkpoints.saving import RestoredParams
from idode_gin.checkpoints.series import AbstractSeries
from idode_gin.processes import agreement
from idode_gin.reports import files, plots

Load = Callable[[pathlib.Path], RestoredParams]
Score = Callable[[RestoredParams, pathlib.Path, Mapping[str, Any]], Mapping[str, Any]]
"""`(restored, folder, more) -> summary`, which is written to the folder together with `more`."""
SETTINGS = "series.json"
DIGEST = "checkpoint_sha256"
"""Of the checksums of all leaves of a checkpoint."""
_SHOWN = 5


def score_each(
    series: AbstractSeries,
    run_dir: str,
    directory: pathlib.Path,
    settings: Mapping[str, Any],
    load: Load,
    score: Score,
) -> dict[str, Any]:
    """Scores every checkpoint that was not yet, into `step_<step>/`, and keeps `curve.csv` and
    `curve.png` up to date.

    Run again, it goes on: what is scored stays, what was begun is gone on with.

    Args:
        series: which checkpoints.
        run_dir: their directory.
        directory: for the files.
        settings: what decides the figures beside the parameters; the same for the whole curve.
        load: the parameters of a checkpoint.
        score: scores them.

    Returns:
        `curve`: per step, mean, standard error and network evaluations of every bound.

    Raises:
        ValueError: if `directory` holds a curve of other settings, or there was no checkpoint.
        checks.NonFiniteError: after all, if figures of some of them are not finite.
    """
    _check_settings(directory / SETTINGS, settings)
    failed: list[str] = []
    scored = 0

    def is_done(checkpoint: pathlib.Path) -> bool:
        summary = _summary(folder(directory, checkpoint))
        return summary is not None and summary.get(DIGEST) == _digest(checkpoint)

    for checkpoint in series.each(run_dir, is_done):
        more = {DIGEST: _digest(checkpoint)}
        restored = _loaded(checkpoint, load)
        if restored is None:
            continue
        try:
            score(restored, folder(directory, checkpoint), more)
        except checks.NonFiniteError as error:
            logging.error("%s: %s", checkpoint, error)
            failed.append(checkpoint.name)
        else:
            scored += 1
            _write_curve(directory, curve(directory))
    rows = curve(directory)
    if failed:
        raise checks.NonFiniteError(
            f"The figures of {', '.join(failed)} are not finite; those of all others are in "
            f"{directory}."
        )
    if not rows:
        raise ValueError(
            f"There was no whole checkpoint in {run_dir} to be scored. Give the directory of a "
            "run that saves some, or a longer Watch.timeout."
        )
    if jax.process_index() == 0:
        began = "" if scored else "Nothing left to score. "
        table = directory / "curve.csv"
        print(
            f"{began}The figures of {len(rows)} checkpoints of {run_dir} are in {table}.",
            flush=True,
        )
    return {"curve": rows}


def folder(directory: pathlib.Path, checkpoint: pathlib.Path) -> pathlib.Path:
    """Where the results of a checkpoint go."""
    return directory / f"step_{checkpoint.name.rpartition('_')[2]}"


def curve(directory: pathlib.Path) -> list[dict[str, Any]]:
    """One row per checkpoint that is scored, by rising step."""
    found = [_summary(each) for each in directory.glob("step_*")]
    rows = [_row(each) for each in found if each is not None]
    return sorted(rows, key=lambda row: row["step"])


def _row(summary: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"step": summary["step"]}
    for name, each in summary.items():
        if isinstance(each, Mapping) and "nfe" in each:
            row |= {f"{name}/bpd": each["mean"], f"{name}/stderr": each["stderr"]}
            row[f"{name}/nfe"] = each["nfe"]
    return row


def _write_curve(directory: pathlib.Path, rows: list[dict[str, Any]]) -> None:
    if jax.process_index() != 0:
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[-1]), restval="", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    files.write_atomically(directory / "curve.csv", text.getvalue())
    plots.plot_bpd_curve(rows, directory / "curve.png")


def _loaded(checkpoint: pathlib.Path, load: Load) -> RestoredParams | None:
    """The parameters; None, with a message, of a checkpoint that is gone by now or damaged."""
    try:
        return load(checkpoint)
    except ValueError as error:
        if jax.process_count() > 1:  # the others may have read it, and wait
            raise
        if not checkpoint.is_dir():
            print(f"{checkpoint} was deleted before it was read, and is left out.", flush=True)
            return None
        if isinstance(error, meta.DamagedError):
            logging.warning("%s It is left out.", error)
            return None
        raise


def _summary(folder: pathlib.Path) -> dict[str, Any] | None:
    """What was written last of the results of a checkpoint; None if they are not all there."""
    try:
        return dict(json.loads((folder / "summary.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def _digest(checkpoint: pathlib.Path) -> str | None:
    """Tells checkpoints apart without reading their arrays; None of one that cannot be read."""
    try:
        sums = meta.read_meta(checkpoint)["checksums"]
    except ValueError:
        return None
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()


def _check_settings(path: pathlib.Path, settings: Mapping[str, Any]) -> None:
    """Writes the settings where there are none yet.

    Raises:
        ValueError: if others are there.
    """
    settings = json.loads(json.dumps(settings))
    agreement.check("the evaluation", lambda: settings)
    if jax.process_index() != 0:
        return
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        files.write_atomically(path, json.dumps(settings, indent=2, sort_keys=True) + "\n")
        return
    changed = [
        f"{name} was {saved.get(name, 'nothing')} and is {settings.get(name, 'nothing')} now"
        for name in sorted(saved.keys() | settings.keys())
        if saved.get(name, "nothing") != settings.get(name, "nothing")
    ]
    if changed:
        more = f"; and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        raise ValueError(
            f"{path.parent} holds a curve of other settings, whose figures do not belong beside "
            f"these: {'; '.join(changed[:_SHOWN])}{more}. Go on with what it was begun with, or "
            "choose another output directory."
        )
