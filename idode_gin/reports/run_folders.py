"""Folders that programs wrote, read for a report: what is missing or damaged becomes a note."""

import dataclasses
import functools
import io
import json
import pathlib
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import numpy as np

from idode_gin.reports import differences, metrics

_Read = TypeVar("_Read")
_Rows: TypeAlias = tuple[dict[str, np.ndarray], np.ndarray | None]
_OPERATIVE = "operative_config.gin"


@dataclasses.dataclass(kw_only=True)
class RunFolder:
    """The contents of one folder, as far as they can be read.

    Attributes:
        path: of the folder, as it was given.
        program: that wrote it: `train`, `eval`, `sample`, `encode` or `interpolate`.
        notes: what is missing or damaged, a sentence each.
        config: text of the operative configuration; `bindings` are its values by name.
        summary: of summary.json, {} without it.
        rows: of metrics.jsonl.
        bpd: of each image by bound, `[N]`.
        places: of the images in the whole split, `[N]`; None if all of it was scored.
        pictures: PNG files by their path in the folder.
    """

    path: pathlib.Path
    program: str
    notes: list[str] = dataclasses.field(default_factory=list)
    config: str = ""
    bindings: dict[str, str] = dataclasses.field(default_factory=dict)
    summary: dict[str, Any] = dataclasses.field(default_factory=dict)
    rows: list[metrics.Row] = dataclasses.field(default_factory=list)
    bpd: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    places: np.ndarray | None = None
    pictures: dict[str, bytes] = dataclasses.field(default_factory=dict)

    def attempt(self, name: str, read: Callable[[], _Read], otherwise: _Read) -> _Read:
        """Return what `read` returns; if it fails, `otherwise`, and a note on `name`."""
        try:
            return read()
        except FileNotFoundError:
            self.notes.append(f"{name} is missing.")
        except Exception as error:  # damaged files raise errors of any type
            self.notes.append(f"{name} cannot be used: {str(error) or type(error).__name__}")
        return otherwise


def read(path: pathlib.Path, program: str) -> RunFolder:
    """Read the folder that `program` wrote. Never fails: see `RunFolder.notes`."""
    found = RunFolder(path=path, program=program)
    is_series = (path / "series.json").exists()
    if not (path.parent / "series.json").exists():  # the steps of a series share its configuration
        found.config = found.attempt(_OPERATIVE, (path / _OPERATIVE).read_text, "")
        found.bindings = differences.bindings(found.config)
    if not is_series:
        found.summary = found.attempt("summary.json", lambda: _object(path / "summary.json"), {})
    patterns, may_lack = ["*.png"], ""
    if program == "train":
        log = path / "metrics.jsonl"
        content = found.attempt(log.name, log.read_bytes, b"")
        found.rows = found.attempt(log.name, lambda: metrics.read_rows(log), [])
        if content and not content.endswith(b"\n"):
            found.notes.append("The last line of metrics.jsonl is incomplete and is left out.")
        patterns = ["train/integrand.png", "train/loss_by_gamma.png"]
        if found.summary.get("exit_reason") == "preempted":  # drawn when a run is done
            may_lack = patterns[0]
    elif program == "eval" and not is_series:
        nothing: _Rows = {}, None
        rows = found.attempt("results.npz", lambda: _bpd(path / "results.npz"), nothing)
        found.bpd, found.places = rows
        patterns = ["plots/bpd_*.png", "plots/nfe.png", "plots/integrand.png"]
    for pattern in patterns:
        names = sorted(each.relative_to(path).as_posix() for each in path.glob(pattern))
        if not names and pattern != may_lack:
            found.notes.append(f"{pattern} is missing.")
        pictures = {
            name: found.attempt(name, functools.partial(_png, path / name), b"") for name in names
        }
        found.pictures |= {name: each for name, each in pictures.items() if each}
    return found


def _object(path: pathlib.Path) -> dict[str, Any]:
    value = json.loads(path.read_bytes())
    if not isinstance(value, dict):
        raise ValueError(f"it holds {type(value).__name__}, not an object.")
    return value


def _bpd(path: pathlib.Path) -> _Rows:
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
        names = [each for each in archive.files if each.endswith("/bpd")]
        found = {each.removesuffix("/bpd"): np.asarray(archive[each], np.float64) for each in names}
        places = np.asarray(archive["place"]) if "place" in archive.files else None
    if any(each.ndim != 1 or not each.size for each in found.values()):
        raise ValueError("a figure of bits per dim is not one number for each image.")
    return found, places


def _png(path: pathlib.Path) -> bytes:
    from PIL import Image

    content = path.read_bytes()
    with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
        picture.load()  # raises for a truncated file
    return content
