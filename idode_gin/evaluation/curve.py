"""Evaluation of a series of checkpoints: one folder each, and a curve over all of them."""

import csv
import hashlib
import io
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
from absl import logging

from idode_gin import checks
from idode_gin.checkpoints import meta
from idode_gin.checkpoints.saving import RestoredParams
from idode_gin.checkpoints.series import AbstractSeries
from idode_gin.evaluation import summary
from idode_gin.processes import agreement, exchange
from idode_gin.reports import differences, files, plots

Load = Callable[[pathlib.Path], RestoredParams]
Score = Callable[[RestoredParams, pathlib.Path, Mapping[str, Any]], Mapping[str, Any]]
"""`(restored, folder, more) -> summary`, which is written to the folder together with `more`."""
SETTINGS = "series.json"
DIGEST = "checkpoint_sha256"
"""Digest of the checksums of all leaves of a checkpoint."""


def score_each(
    series: AbstractSeries,
    run_dir: str,
    directory: pathlib.Path,
    settings: Mapping[str, Any],
    load: Load,
    score: Score,
) -> dict[str, Any]:
    """Score every checkpoint without scores into `step_<step>/`; update `curve.csv` and `.png`.

    Running again resumes: finished checkpoints are skipped, an interrupted one continues.
    `settings` are everything the scores depend on beside the parameters.

    Returns:
        `curve`: by step, mean, standard error and network evaluations of every bound.

    Raises:
        ValueError: if `directory` holds a curve of other settings, or there was no checkpoint.
        checks.NonFiniteError: after all are scored, if some scores are not finite.
    """
    _check_settings(directory / SETTINGS, settings)
    failed, prefix = dict[str, None](), "Nothing left to score. "
    scored = {row["step"]: row for row in curve(directory)}
    _write_curve(directory, scored.values())  # which a killed process may not have done

    def is_done(checkpoint: pathlib.Path) -> bool:
        found = files.read_json(folder(directory, checkpoint) / "summary.json")
        return found is not None and found.get(DIGEST) == _digest(checkpoint)

    for checkpoint in series.each(run_dir, is_done):
        more = {DIGEST: _digest(checkpoint)}
        restored = _loaded(checkpoint, load)
        if restored is None:
            continue
        try:
            found = score(restored, folder(directory, checkpoint), more)
        except checks.NonFiniteError as error:
            logging.error("%s: %s", checkpoint, error)
            failed[checkpoint.name] = None
        else:
            prefix = ""
            failed.pop(checkpoint.name, None)  # a checkpoint that was saved again
            scored[found["step"]] = _row(found)
            _write_curve(directory, scored.values())
    if failed:
        raise checks.NonFiniteError(
            f"The scores of {', '.join(failed)} are not finite; all others are in {directory}."
        )
    if not (rows := curve(directory)):
        raise ValueError(
            f"{run_dir} has no complete checkpoint to score. Give the directory of a run that "
            "saves some, or raise Watch.timeout."
        )
    if jax.process_index() == 0:
        table = f"{directory / 'curve.csv'} holds the scores of {len(rows)} checkpoints"
        print(f"{prefix}{table} of {run_dir}.", flush=True)
    return {"curve": rows}


def folder(directory: pathlib.Path, checkpoint: pathlib.Path) -> pathlib.Path:
    """Return the folder for the results of a checkpoint."""
    return directory / f"step_{checkpoint.name.rpartition('_')[2]}"


def curve(directory: pathlib.Path) -> list[dict[str, Any]]:
    """Return one row per finished checkpoint, sorted by step."""
    found = [files.read_json(each / "summary.json") for each in directory.glob("step_*")]
    rows = [_row(each) for each in found if each is not None]
    return sorted(rows, key=_step)


def _step(row: Mapping[str, Any]) -> int:
    return int(row["step"])


def _row(found: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"step": found["step"]}
    for name, each in summary.bounds(found).items():
        row |= {f"{name}/bpd": each["mean"], f"{name}/stderr": each["stderr"]}
        row[f"{name}/nfe"] = each["nfe"]
    return row


def _write_curve(directory: pathlib.Path, scored: Iterable[Mapping[str, Any]]) -> None:
    """Write the curve of these rows, in any order, unless it is there or there are none."""
    rows = sorted(scored, key=_step)
    if jax.process_index() != 0 or not rows:
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[-1]), restval="", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    table, plot = directory / "curve.csv", directory / "curve.png"
    content = text.getvalue().encode()
    if table.exists() and table.read_bytes() == content and plot.exists():
        return
    files.write_atomically(table, content)
    with plots.optional(str(plot)):
        plots.plot_bpd_curve(rows, plot)


def _loaded(checkpoint: pathlib.Path, load: Load) -> RestoredParams | None:
    """Restore the parameters; print why and return None if the checkpoint is deleted or damaged."""
    try:
        return load(checkpoint)
    except ValueError as error:  # on all processes: see `reading`
        if not exchange.from_first(lambda: b"there" if checkpoint.is_dir() else None):
            if jax.process_index() == 0:
                print(f"{checkpoint} was deleted before it was read, and is skipped.", flush=True)
            return None
        if isinstance(error, meta.DamagedError):
            logging.warning("%s It is skipped.", error)
            return None
        raise


def _digest(checkpoint: pathlib.Path) -> str | None:
    """Identify a checkpoint without reading its arrays; None if it cannot be read."""
    try:
        sums = meta.read_meta(checkpoint)["checksums"]
    except ValueError:
        return None
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()


def _check_settings(path: pathlib.Path, settings: Mapping[str, Any]) -> None:
    """Compare the settings with those saved at `path`; save them if there are none.

    Raises:
        ValueError: if they differ.
    """
    settings = json.loads(json.dumps(settings))  # with lists for tuples
    agreement.check("the evaluation", lambda: settings)
    if jax.process_index() != 0:
        return
    if (saved := files.read_json(path)) is None:
        files.write_json_atomically(path, settings)
        return
    if changes := differences.changes(saved, settings):
        raise ValueError(
            f"{path.parent} holds a curve with other settings, whose scores cannot be compared "
            f"with these: {differences.listed(changes)}. Restore the settings that it started "
            "with, or choose another output directory."
        )
