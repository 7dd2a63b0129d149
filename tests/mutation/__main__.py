"""Break the library in one place at a time, and see if its tests notice.

    python tests/mutation --sample 200 --seed 0                a sample over all folders
    python tests/mutation --folder solvers --sample 40         of one folder or module
    python tests/mutation --name 'velocity.py'                 mutants whose name has these letters
    python tests/mutation --report                             write the report of all that was run

A mutant is an edit by syntax (`mutant_syntax`), so it follows the code wherever it moves. It is
judged by the tests that enter its function (`mutant_tests`), the quickest first, up to the first
that fails. What was run is kept in `.mutants/`, and is run again only with `--again`. The exit code
is 1 if a mutant survives that `survivors.toml` does not explain.

Why not cosmic-ray or mutmut: cosmic-ray has one test command for all mutants and starts it anew for
each, ten seconds of imports before the first test. mutmut selects tests by function, but runs tests
in the process that it forks from, which jax does not survive; it leaves out whatever is decorated,
and knows no keys, axes, `stop_gradient`, dropped entries or swapped fields.
"""

import argparse
import collections
import datetime
import itertools
import json
import os
import pathlib
import platform
import random
import signal
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable

import mutant_syntax
import mutant_tests
from mutant_syntax import Mutant

HERE = pathlib.Path(__file__).resolve().parent
ROOT = mutant_tests.ROOT
KEPT = pathlib.Path(os.environ.get("MUTANTS_DIR") or ROOT / ".mutants")
REPORT = ROOT / "benchmarks" / "results" / "mutants.md"
MATHS = ("schedules", "parameterizations", "losses", "dequantizers", "time_samplers", "solvers")
MATHS += ("integration_variables", "likelihood", "samplers", "models.py", "ode.py", "numerics.py")
MATHS += ("encoding.py",)
ALIVE = ("survived", "not reached")
LOOPS = ("evaluation", "generation", "training", "runs", "checkpoints")


def folder_of(path: str) -> str:
    """Return the folder of a module, or its name if it is in none."""
    return path.split("/")[0]


def sampled(mutants: list[Mutant], number: int, seed: int) -> list[Mutant]:
    """Return a sample in which folders, and kinds within a folder, take turns."""
    shuffled = random.Random(seed).sample(mutants, len(mutants))
    queues: dict[str, dict[str, list[Mutant]]] = {}
    for each in shuffled:
        kinds = queues.setdefault(folder_of(each.path), {})
        kinds.setdefault(each.kind, []).append(each)
    turns = [_in_turn(list(kinds.values())) for kinds in queues.values()]
    return _in_turn(turns)[:number]


def _in_turn(lists: list[list[Mutant]]) -> list[Mutant]:
    return [each for row in itertools.zip_longest(*lists) for each in row if each is not None]


class Run:
    """Mutants that are run by some processes at a time, and what became of them."""

    def __init__(self, reach: mutant_tests.Reach, tests: set[str], options) -> None:
        self._reach, self._tests, self._options = reach, tests, options
        self._forks: list[tuple[Mutant, mutant_tests.Fork]] = []
        self.results: dict[str, dict] = {}

    def run(self, mutants: list[Mutant], scratch: pathlib.Path) -> None:
        """Run them all, or those that `minutes` allow."""
        began, waiting = time.monotonic(), collections.deque(mutants)
        free = [mutant_tests.Copy(scratch / f"copy{n}") for n in range(self._options.workers)]
        try:
            while waiting or self._forks:
                if time.monotonic() - began > 60 * self._options.minutes:
                    waiting.clear()
                while waiting and free:
                    self._start(waiting.popleft(), free)
                self._collect(free)
                time.sleep(0.05)
        finally:
            for _, fork in self._forks:
                fork.kill()

    def _start(self, mutant: Mutant, free: list[mutant_tests.Copy]) -> None:
        tests, seconds = self._reach.tests(
            mutant.path, mutant.function, self._tests, self._options.budget
        )
        if not tests:
            self._note(mutant, "not reached", 0.0, "")
            return
        copy = free.pop()
        source = (ROOT / "idode_gin" / mutant.path).read_bytes()
        copy.write(mutant.path, mutant.apply(source))
        fork = mutant_tests.Fork(copy, ["-x", *tests], 30 + 3 * seconds)
        self._forks.append((mutant, fork))

    def _collect(self, free: list[mutant_tests.Copy]) -> None:
        for mutant, fork in list(self._forks):
            end = fork.ended()
            if end is None:
                continue
            self._forks.remove((mutant, fork))
            source = (ROOT / "idode_gin" / mutant.path).read_bytes()
            fork.copy.write(mutant.path, source)
            free.append(fork.copy)
            result = {"passed": "survived", "failed": "killed"}.get(end, end)
            log = fork.log.read_text(errors="replace").splitlines()
            by = [line for line in log if line.startswith(("FAILED", "ERROR"))]
            self._note(mutant, result, time.monotonic() - fork.began, by[0] if by else "")

    def _note(self, mutant: Mutant, result: str, seconds: float, by: str) -> None:
        found = {"kind": mutant.kind, "result": result, "seconds": round(seconds, 1), "by": by}
        self.results[mutant.name] = found
        line = f"{result:<12}{seconds:6.1f}s  {mutant.kind}: {mutant.name}"
        print(line, by[:120], sep="\n    " if by else "", flush=True)
        if not self._options.unkept:
            with (KEPT / "results.jsonl").open("a") as file:
                file.write(json.dumps({"name": mutant.name, **found}) + "\n")


def kept_results() -> dict[str, dict]:
    """Return what was run before, the last run of a mutant counts."""
    file = KEPT / "results.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return {each["name"]: each for each in map(json.loads, lines)}


def explained() -> dict[str, str]:
    """Return the reasons of survivors by the name of the mutant."""
    return tomllib.loads((HERE / "survivors.toml").read_text())


def report(results: dict[str, dict]) -> str:
    """Return the report: counts by folder, survivors with reasons, the time."""
    reasons = explained()
    counts: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for name, each in results.items():
        is_killed = each["result"] in ("killed", "timeout")
        kind = "killed" if is_killed else "explained" if name in reasons else "survived"
        counts[folder_of(name.split("::")[0])][kind] += 1
    rows = []
    for title, folders in (("maths", MATHS), ("loops", LOOPS)):
        here = {each: counts[each] for each in folders if each in counts}
        here[f"**{title}**"] = sum(here.values(), start=collections.Counter())
        for name, count in here.items():
            total = sum(count.values())
            share = f"{100 * count['killed'] / total:.0f} %" if total else ""
            cells = (name, total, count["killed"], count["explained"], count["survived"], share)
            rows.append("| " + " | ".join(map(str, cells)) + " |")
    alive = sorted(name for name, each in results.items() if each["result"] in ALIVE)
    lines = [f"- `{name}` ({results[name]['kind']}): {reasons.get(name, 'open')}" for name in alive]
    minutes = sum(each["seconds"] for each in results.values()) / 60
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    return "\n".join(
        [
            "# Mutants\n",
            f"{len(results)} edits, one at a time; {minutes:.0f} minutes of forks on {machine}, "
            f"{datetime.date.today()}.",
            "`make mutants` runs a sample; `python tests/mutation --report` writes this page of",
            "all that was run. Folders and kinds of edits have equal shares of a sample. A mutant",
            "is judged by up to 90 seconds of the tests that enter its function. Survivors were",
            "run again once tests had been written for them.\n",
            "| folder | mutants | killed | survived, explained | survived, open | killed |",
            "|---|--:|--:|--:|--:|--:|",
            *rows,
            "\n## Survivors\n",
            *lines,
            "",
        ]
    )


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sample", type=int, default=20, help="mutants")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", action="append", help="folder or module; repeatable")
    parser.add_argument("--name", action="append", help="part of a mutant's name; repeatable")
    parser.add_argument("--kind", action="append", help="kind of edit, such as key; repeatable")
    parser.add_argument("--tests", action="append", help="these test files only; implies --unkept")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--budget", type=float, default=90, help="seconds of tests for a mutant")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no mutant after these")
    parser.add_argument("--again", action="store_true", help="also those that were run before")
    parser.add_argument("--alive", action="store_true", help="again those that survived before")
    parser.add_argument("--unkept", action="store_true", help="neither read nor keep results")
    parser.add_argument("--measured", action="store_true", help="measure no test file anew")
    parser.add_argument("--report", action="store_true", help="write the report and end")
    options = parser.parse_args(arguments)
    options.unkept |= bool(options.tests)
    return options


def generated(folders: Iterable[str]) -> list[Mutant]:
    """Return all mutants of folders and modules."""
    found = []
    for file in mutant_tests.sources():
        path = str(file.relative_to(ROOT / "idode_gin"))
        if folder_of(path) in folders or path in folders:
            found += mutant_syntax.mutants(path, file.read_bytes())
    return found


def chosen(options: argparse.Namespace) -> list[Mutant]:
    """Return the mutants that the options name."""
    found = generated(options.folder or [*MATHS, *LOOPS])
    if options.alive:
        known = kept_results()
        return [each for each in found if known.get(each.name, {}).get("result") in ALIVE]
    if options.kind:
        found = [each for each in found if each.kind in options.kind]
    if options.name:
        return [each for each in found if any(part in each.name for part in options.name)]
    return sampled(found, options.sample, options.seed)


def main() -> int:
    """Run the mutants; 1 if one survives unexplained."""
    options = parse()
    if options.report:
        names = {each.name for each in generated([*MATHS, *LOOPS])}
        current = {name: each for name, each in kept_results().items() if name in names}
        REPORT.write_text(report(current))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    KEPT.mkdir(exist_ok=True)
    mutants = chosen(options)
    if not (options.again or options.alive or options.unkept):
        known = kept_results()
        mutants = [each for each in mutants if each.name not in known]
    files = [pathlib.Path(each).resolve() for each in options.tests or mutant_tests.test_files()]
    mutant_tests.warm()
    with tempfile.TemporaryDirectory(prefix="mutants_") as folder:
        scratch = pathlib.Path(folder)
        reach = mutant_tests.Reach(KEPT / "reach.json")
        if not options.measured:
            reach.measure(scratch, files, print)
        run = Run(reach, {str(each.relative_to(ROOT)) for each in files}, options)
        run.run(mutants, scratch)
    reasons = explained()
    alive = [name for name, each in run.results.items() if each["result"] in ALIVE]
    opened = [name for name in alive if name not in reasons]
    print(f"{len(run.results)} mutants, {len(alive)} survived, {len(opened)} without a reason.")
    return 1 if opened else 0


if __name__ == "__main__":
    sys.exit(main())
