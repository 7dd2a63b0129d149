"""The tests that reach a function, and forks of a warm process that run tests.

A copy of the repository is edited, never the repository. A fork takes over the imported libraries;
the parent computes nothing with jax, whose threads do not survive a fork. The library itself is
imported in the fork, so that processes that a test starts read the same files.
"""

import ast
import contextlib
import hashlib
import importlib
import itertools
import json
import os
import pathlib
import runpy
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator

import mutant_syntax
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
TESTS = ("laws", "generation", "evaluation", "runs", "training", "checkpoints", "golden")
TESTS += ("configs/test_output_folders.py",)
"""Folders and files of `tests/` that judge mutants."""

PARTS = ("idode_gin", "tests", "gin_configs", "tasks", "docs", "README.md", "pyproject.toml")

LIBRARIES = ("jax", "flax.linen", "optax", "scipy.stats", "hypothesis", "gin", "beartype")
LIBRARIES += ("orbax.checkpoint", "PIL.Image", "pyarrow", "matplotlib.pyplot", "jaxtyping")
HITS = '''"""Write the functions that are entered, once a test."""
import os
seen, of = set(), None
def hit(name):
    global of
    path = os.environ.get("MUTANT_HITS")
    if path != of:
        seen.clear()
        of = path
    if path and name not in seen:
        seen.add(name)
        with open(path, "a") as file:
            file.write(name + "\\n")
'''


def warm() -> None:
    """Import the libraries under the environment of the tests."""
    runpy.run_path(str(ROOT / "tests" / "conftest.py"))
    for name in LIBRARIES:
        importlib.import_module(name)


class Copy:
    """A copy of the repository, in which one file at a time is edited."""

    def __init__(self, folder: pathlib.Path) -> None:
        for name in PARTS:
            if (ROOT / name).is_dir():
                unread = shutil.ignore_patterns("__pycache__", "_build", "generated")
                shutil.copytree(ROOT / name, folder / name, ignore=unread)
            else:
                shutil.copy(ROOT / name, folder / name)
        self.folder, self._time = folder, time.time_ns()

    def write(self, path: str, source: bytes) -> None:
        """Write a file of the library, with a time of its own: compiled files are told by it."""
        file = self.folder / "idode_gin" / path
        file.write_bytes(source)
        self._time += 2 * 10**9
        os.utime(file, ns=(self._time, self._time))


class Fork:
    """A pytest run in a forked process, killed with all that it started after `seconds`."""

    def __init__(self, copy: Copy, arguments: list[str], seconds: float, plugin=None) -> None:
        self.copy, self.began, self._limit = copy, time.monotonic(), seconds
        self.log = copy.folder.with_suffix(".log")
        self._scratch = copy.folder.with_suffix(".tmp")
        self._scratch.mkdir(exist_ok=True)
        sys.stdout.flush()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                self._child(arguments, plugin)
            except BaseException:
                traceback.print_exc()
                os._exit(99)

    def _child(self, arguments: list[str], plugin) -> None:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        output = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(output, stream)
        os.chdir(self.copy.folder)
        sys.path[:] = [str(self.copy.folder), *(each for each in sys.path if each != str(ROOT))]
        os.environ |= {"PYTHONPATH": str(self.copy.folder), "TMPDIR": str(self._scratch)}
        fixed = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not full", "--tb=line"]
        code = pytest.main([*fixed, *arguments], [plugin] if plugin else [])
        sys.stdout.flush()
        os._exit(int(code))

    def ended(self) -> str | None:
        """Return None while it runs; then "passed", "failed" or "timeout"."""
        pid, status = os.waitpid(self._pid, os.WNOHANG)
        is_late = time.monotonic() - self.began > self._limit
        if not pid and not is_late:
            return None
        self.kill(reap=not pid)
        if not pid:
            return "timeout"
        return "passed" if status == 0 else "failed"

    def wait(self) -> str:
        """Wait until it has ended, and return how."""
        try:
            while (end := self.ended()) is None:
                time.sleep(0.05)
        except BaseException:
            self.kill()
            raise
        return end

    def kill(self, reap: bool = True) -> None:
        """Kill all processes of the fork and remove its temporary files."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)
        if reap:
            os.waitpid(self._pid, 0)
        shutil.rmtree(self._scratch, ignore_errors=True)


class Recorder:
    """A pytest plugin that writes, for every test that passes, its functions and seconds."""

    def __init__(self, folder: pathlib.Path, target: pathlib.Path) -> None:
        self._hits, self._target, self._found = folder / "hits", target, {}

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item):
        """Note what one test enters, in its own process and in those that it starts."""
        file = self._hits.with_suffix(f".{len(self._found)}")
        os.environ["MUTANT_HITS"] = str(file)
        self._found[item.nodeid] = {"seconds": 0.0, "passed": False, "functions": []}
        yield
        if file.exists():
            functions = sorted(set(file.read_text().split("\n")) - {""})
            self._found[item.nodeid]["functions"] = functions
            file.unlink()

    def pytest_runtest_logreport(self, report):
        """Add up the seconds of setup, call and teardown."""
        entry = self._found[report.nodeid]
        entry["seconds"] = round(entry["seconds"] + report.duration, 2)
        if report.when == "call":
            entry["passed"] = report.passed

    def pytest_sessionfinish(self):
        """Write what was found."""
        passed = {test: each for test, each in self._found.items() if each.pop("passed")}
        self._target.write_text(json.dumps(passed))


def noted(path: str, source: bytes) -> bytes:
    """Return a module whose functions note that they are entered."""
    tree = ast.parse(source)
    for name, node in mutant_syntax.functions(tree):
        call = ast.parse(f"__import__('mutant_hits').hit({f'{path}::{name}'!r})").body
        has_docstring = ast.get_docstring(node) is not None
        node.body[has_docstring:has_docstring] = call
    return ast.unparse(ast.fix_missing_locations(tree)).encode()


class Reach:
    """Which tests enter a function, measured once a test file and kept in `kept`.

    A test file is measured anew when it changes. Functions are known by name, so that an edit of
    the library leaves what is known true enough; remove the file after a large one.
    """

    def __init__(self, kept: pathlib.Path) -> None:
        self._kept = kept
        self.files: dict = json.loads(kept.read_text()) if kept.exists() else {}

    def measure(self, scratch: pathlib.Path, wanted: list[pathlib.Path], say: Callable) -> None:
        """Run every test file that has changed, in a copy whose functions note their names."""
        copy = None
        for file in wanted:
            name, digest = (
                str(file.relative_to(ROOT)),
                hashlib.sha256(file.read_bytes()).hexdigest(),
            )
            if self.files.get(name, {}).get("sha256") == digest:
                continue
            copy = copy or _noting_copy(scratch / "noting")
            target = scratch / "found.json"
            target.write_text("{}")
            end = Fork(copy, [name], 1200, Recorder(scratch, target)).wait()
            tests = json.loads(target.read_text())
            say(f"{name}: {len(tests)} tests ({end})")
            self.files[name] = {"sha256": digest, "tests": tests}
            self._kept.parent.mkdir(exist_ok=True)
            self._kept.write_text(json.dumps(self.files))

    def tests(
        self, path: str, function: str, names: set[str], budget: float
    ) -> tuple[list[str], float]:
        """Return tests of a function and their seconds, up to `budget`.

        First those that enter it, the quickest of every file by turns; then the others of these
        files, which may use what a test before them has compiled or built. They are sorted: files
        with the name of the module first, then those of its folder, then quick ones. What runs when
        the module is imported is everybody's.
        """
        folder, module = path.split("/")[0], pathlib.Path(path).stem
        source = (ROOT / "idode_gin" / path).read_bytes()
        at_import = function in mutant_syntax.called_at_import(source)

        every = {test: each for file in self.files.values() for test, each in file["tests"].items()}
        seconds = {test: each["seconds"] for test, each in every.items()}

        def enters(test: dict) -> bool:
            if at_import:
                return any(each.startswith(f"{path}::") for each in test["functions"])
            return f"{path}::{function}" in test["functions"]

        found = []
        for name in names & self.files.keys():
            tests = self.files[name]["tests"]
            entering = sorted(filter(lambda test: enters(tests[test]), tests), key=seconds.get)
            if entering:
                mean = sum(map(seconds.get, entering)) / len(entering)
                cost = (f"test_{module}.py" not in name, f"/{folder}/" not in name, mean)
                found.append((cost, entering, [test for test in tests if test not in entering]))
        found.sort()
        chosen, total = set(), 0.0
        for place in (1, 2):
            for turn in itertools.zip_longest(*(each[place] for each in found)):
                for test in filter(None, turn):
                    if total + seconds[test] <= budget or not chosen:
                        chosen.add(test)
                        total += seconds[test]
        return [t for _, *parts in found for t in itertools.chain(*parts) if t in chosen], total


def _noting_copy(folder: pathlib.Path) -> Copy:
    copy = Copy(folder)
    (folder / "mutant_hits.py").write_text(HITS)
    for file in sources():
        path = str(file.relative_to(ROOT / "idode_gin"))
        copy.write(path, noted(path, file.read_bytes()))
    return copy


def test_files() -> Iterator[pathlib.Path]:
    """Return the files of `TESTS`."""
    for name in TESTS:
        path = ROOT / "tests" / name
        yield from [path] if path.suffix else sorted(path.glob("test_*.py"))


def sources() -> Iterator[pathlib.Path]:
    """Return the files of the library."""
    return (each for each in sorted((ROOT / "idode_gin").rglob("*.py")) if each.stat().st_size)
