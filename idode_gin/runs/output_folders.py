"""Ownership of output folders: no program overwrites the files of another one."""

import pathlib
import re
from typing import NamedTuple

from idode_gin.reports import paths

CONFIG = "config.gin"
_IMPORT = re.compile(r"^(?:from idode_gin import |import idode_gin\.)(\w+)\b", re.MULTILINE)


class _Program(NamedTuple):
    output: str
    files: tuple[str, ...]
    """Patterns of files that no other program writes."""


_PROGRAMS = {
    "train": _Program("a training run", ("checkpoint_*", "metrics.jsonl")),
    "eval": _Program("an evaluation", ("results.npz", "series.json")),
    "sample": _Program("samples", ("samples.npz",)),
    "encode": _Program("encoded images", ("latents.npz",)),
    "interpolate": _Program("an interpolation", ("interpolation.npz",)),
}


def refusal(directory: str | pathlib.Path, program: str, macro: str) -> str | None:
    """Return an error message if `directory` belongs to another program; None if it does not.

    A folder belongs to the last program that wrote `config.gin` there; without that file, to the
    programs whose files it holds.
    `macro` names the directory in gin files.
    """
    folder = paths.of(directory)
    if not folder.is_dir():
        return None
    owners = _owners(folder)
    if not owners or program in owners:
        return None
    owner = owners[0]
    found = [*(each for each in (CONFIG,) if (folder / each).exists()), *_files(folder, owner)]
    return (
        f"An output folder is for one program, and {macro} = {str(directory)!r} holds "
        f"{_PROGRAMS[owner].output} of idode_gin.{owner} ({', '.join(found)}), which would be "
        f"overwritten. Nothing was changed. Bind another folder, such as "
        f"--gin.{macro}=\"'{folder / program}'\"."
    )


def owner(folder: pathlib.Path) -> str | None:
    """Return the program whose output `folder` holds, the first of several; None without one."""
    return next(iter(_owners(folder)), None) if folder.is_dir() else None


def _owners(folder: pathlib.Path) -> list[str]:
    found = _configured(folder) or {name for name in _PROGRAMS if _files(folder, name)}
    return [name for name in _PROGRAMS if name in found]


def _configured(folder: pathlib.Path) -> set[str]:
    """Return the programs that the configuration in the folder names, if there is one."""
    try:
        text = (folder / CONFIG).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return set()
    return set(_IMPORT.findall(text)) & _PROGRAMS.keys()


def _files(folder: pathlib.Path, program: str) -> list[str]:
    """Return names of files that only `program` writes; the last of each kind."""
    kinds = (sorted(folder.glob(pattern)) for pattern in _PROGRAMS[program].files)
    return [found[-1].name for found in kinds if found]
