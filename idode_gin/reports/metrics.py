"""Write the metrics of a run: metrics.jsonl and TensorBoard."""

import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from idode_gin import checks
from idode_gin.reports import files, paths

Row: TypeAlias = dict[str, Any]

UPLOAD_PERIOD = 60.0
"""Seconds between two uploads of a file that grows."""
SMALL = 2**20
"""Bytes of a metrics.jsonl that is uploaded with every row."""
_IMAGES = "eval/images"
BPD = "eval/bpd"
"""Field of an evaluation: bits per dim, mean over images."""
TIME_PREFIX = "time/"
"""Prefix of the fields that differ between two runs of the same command; no others do."""


class MetricsLog:
    """The file metrics.jsonl: one JSON object per line, `step` first, in order of steps.

    A row is on disk before the next step begins. An object in a bucket cannot be appended to: it is
    rewritten with every row, and beyond `SMALL` bytes once in `UPLOAD_PERIOD` seconds and in
    `flush`. Opening the file drops a truncated last line and rows after the step that training
    resumes from.

    Args:
        path: path of the file; None keeps rows in memory only.
        keep_up_to: rows of later steps are removed; -1 removes all.
        writes: True if this process writes. All processes need the rows already present, which
            decide what they compute together.
        shared: returns on all processes what a function returns on the one that writes.

    Attributes:
        rows: rows kept and written.
        dropped: rows removed on opening.

    Raises:
        ValueError: if the file does not hold metrics.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        keep_up_to: int,
        *,
        writes: bool = True,
        shared: Callable[[Callable[[], bytes]], bytes] = lambda read: read(),
    ) -> None:
        self._path = paths.of(path) if path is not None and writes else None
        found = b"" if path is None else shared(lambda: _content(path))
        rows = _parsed(found, path)
        self.rows = [row for row in rows if row["step"] <= keep_up_to]
        self.dropped = [row for row in rows if row["step"] > keep_up_to]
        self._uploaded = time.monotonic()
        self._is_ahead = False  # of the object
        if self._path is not None:
            lines = "".join(json.dumps(row) + "\n" for row in self.rows)
            if lines.encode() != found or not found:
                files.write_atomically(self._path, lines)
            self._content = lines if paths.in_bucket(self._path) else ""

    def evaluated(self, step: int) -> tuple[float, int | None] | None:
        """Return the bits per dim of `step`, and of how many images; None without any."""
        row = self.row(step) or {}
        return None if row.get(BPD) is None else (row[BPD], row.get(_IMAGES))

    def row(self, step: int) -> Row | None:
        """Return the row of `step`, None without one."""
        return next((row for row in reversed(self.rows) if row["step"] == step), None)

    def write(self, step: int, values: Mapping[str, Any]) -> Row:
        """Append a row, and wait until it is written: see the class."""
        row: Row = {"step": step, **values}
        self.rows.append(row)
        if self._path is None:
            return row
        line = json.dumps(row, allow_nan=False) + "\n"
        if paths.in_bucket(self._path):
            self._content += line
            self._is_ahead = True
            is_due = time.monotonic() - self._uploaded >= UPLOAD_PERIOD
            if is_due or len(self._content) <= SMALL:
                self.flush()
        else:
            with files.naming(self._path), self._path.open("a", encoding="utf-8") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        return row

    def flush(self) -> None:
        """Upload the rows that are not in the bucket yet.

        Called before each checkpoint: a run that resumes from it has all rows before its step.
        """
        if self._path is not None and self._is_ahead:
            files.write_atomically(self._path, self._content)
            self._is_ahead, self._uploaded = False, time.monotonic()


def evaluations(rows: Iterable[Row]) -> list[Row]:
    """Return the evaluations of the number of images of the last one: others do not compare."""
    found = [row for row in rows if row.get(BPD) is not None]
    return [row for row in found if row.get(_IMAGES) == found[-1].get(_IMAGES)]


def read_rows(path: str | os.PathLike[str]) -> list[Row]:
    """Return the rows of a metrics.jsonl without a truncated last line; [] without the file.

    Raises:
        ValueError: if a line before the last is not a row.
    """
    return _parsed(_content(path), path)


def _content(path: str | os.PathLike[str]) -> bytes:
    path = paths.of(path)
    return path.read_bytes() if path.exists() else b""


def _parsed(content: bytes, path: str | os.PathLike[str] | None) -> list[Row]:
    rows: list[Row] = []
    lines = content.split(b"\n")  # after the last newline: truncated, or empty
    for number, line in enumerate(lines[:-1], start=1):
        try:
            row = json.loads(line)
            checks.check_integer("step", row["step"], at_least=0)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"Line {number} of {path} is not a row of metrics: {line[:80]!r}. Was the file "
                "edited? Correct it, or move the file away to continue without the earlier rows; "
                "keep_best then knows nothing of the checkpoints so far, and keeps those alone in "
                "whose folder you put a file PINNED."
            ) from error
        rows.append(row)
    return rows


def reproducible(row: Row) -> Row:
    """Return the row without timings, which two runs of one command share bit for bit."""
    return {name: value for name, value in row.items() if not name.startswith(TIME_PREFIX)}


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the entries of a row that are numbers."""
    return {name: each for name, each in values.items() if isinstance(each, int | float)}


class TensorBoard:
    """TensorBoard event files of a run: `train/`, and `training_eval/<task>/` for `eval/…`.

    Those of a run in a bucket grow in a temporary folder; they are uploaded every `UPLOAD_PERIOD`
    seconds and on closing. metrics.jsonl has every row at once.

    Args:
        run_directory: the run directory; None writes nothing.
        eval_name: the evaluation task, None without one.

    Raises:
        OSError: if they cannot be created.
    """

    def __init__(self, run_directory: str | os.PathLike[str] | None, eval_name: str | None) -> None:
        self._writers: dict[tuple[str, ...], Any] = {}
        self._root = run_directory
        self._local: tempfile.TemporaryDirectory[str] | None = None
        self._last_upload = time.monotonic()
        if run_directory is None:
            return
        from clu.metric_writers import SummaryWriter  # imports TensorFlow

        root = os.fspath(run_directory)
        if paths.in_bucket(root):
            self._local = tempfile.TemporaryDirectory(prefix="idode_gin_events_")
            root = self._local.name
        with self._explained():
            self._writers["train/", TIME_PREFIX] = SummaryWriter(os.path.join(root, "train"))
            if eval_name is not None:
                folder = os.path.join(root, "training_eval", eval_name)
                self._writers["eval/",] = SummaryWriter(folder)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Write each number to the event file of its prefix.

        Raises:
            OSError: if the write fails; TensorFlow's own errors are converted.
        """
        for prefixes, writer in self._writers.items():
            own = {k: each for k, each in numbers(values).items() if k.startswith(prefixes)}
            if not own:
                continue
            with self._explained():
                writer.write_scalars(step, own)
                writer.flush()
        if time.monotonic() - self._last_upload >= UPLOAD_PERIOD:
            self._upload()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn TensorFlow's errors, which have several types, into an OSError with a way out."""
        try:
            yield
        except Exception as error:
            reason = " ".join(str(error).split())[-200:]
            raise OSError(
                f"The TensorBoard events of {self._root} cannot be written: {reason}. Free space "
                "there, see that you may write there, or switch them off: "
                "--gin.Trainer.tensorboard=False"
            ) from error

    def close(self) -> None:
        """Close the event files; while an error of the bucket is raised, without an upload."""
        for writer in self._writers.values():
            writer.close()
        if self._local is not None:
            try:
                if not isinstance(sys.exc_info()[1], paths.StoreError):  # it would fail as late
                    self._upload()
            finally:
                self._local.cleanup()

    def _upload(self) -> None:
        self._last_upload = time.monotonic()
        if self._local is not None and self._root is not None:
            files.copy_folder(self._local.name, self._root)
