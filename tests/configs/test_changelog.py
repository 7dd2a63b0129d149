"""The table of moved modules in the changelog names modules that exist."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[2]
ROW = re.compile(r"^\| `([\w.]+)` \| (.+) \|$", re.MULTILINE)
MODULE = re.compile(r"`((?:\w+\.)+\w+)`")


def test_moved_modules_are_gone_and_their_successors_are_there() -> None:
    rows = ROW.findall((ROOT / "CHANGELOG.md").read_text())
    assert len(rows) > 80
    for before, now in rows:
        assert not _file(before).is_file(), before
        for name in MODULE.findall(now):
            assert _file(name).is_file(), name


def _file(name: str) -> pathlib.Path:
    package = ROOT if name.startswith("tasks.") else ROOT / "idode_gin"
    return package.joinpath(*name.split(".")).with_suffix(".py")
