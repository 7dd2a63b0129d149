"""A training run that is disturbed at random and started again ends where an undisturbed one ends.

Real processes on this machine, in a run directory on a small disk of its own where this may be
mounted (as root); elsewhere the disk is never full. `CHAOS_SEED=<seed>` draws the same disturbances
again; the moments are those of the machine.
"""

import collections
import contextlib
import dataclasses
import functools
import os
import pathlib
import random
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import several
from several import HASHES, Processes, params_of, rows_of, summary, train

from idode_gin import checks
from idode_gin.checkpoints import saving
from idode_gin.reports import metrics

PERIOD = 3
DISK = "24m"
PATIENCE = 120
"""Seconds for processes to end: jax's heartbeat, for one killed before it has a lifeline."""
SOON = 30
"""Seconds for them to end after a kill once they train; on an idle machine it is three."""
IN_THE_START = 0.2
"""Of the disturbances by a signal, the share that falls before training begins."""
FEW = {"kill in a save": 1, "terminate": 1, "fill the disk": 1}
MANY = {"kill": 6, "terminate": 4, "kill in a save": 4, "kill and damage": 3, "fill the disk": 3}


class Layout(NamedTuple):
    """Processes, devices of each, and over how many of them parameters are split."""

    count: int
    devices: int
    fsdp: int

    def settings(self, steps: int) -> list[str]:
        data = self.count * self.devices // self.fsdp
        return [
            f"--gin.MESH_SHAPE={{'data': {data}, 'fsdp': {self.fsdp}}}",
            f"--gin.TRAIN_STEPS={steps}",
            f"--gin.CHECKPOINT_PERIOD={PERIOD}",
            "--gin.EVAL_PERIOD=40",
            "--gin.Trainer.log_period=1",
        ]


USUAL = Layout(2, 1, 1)
OTHERS = [USUAL, USUAL, Layout(1, 2, 1), Layout(2, 1, 2), Layout(1, 2, 2), Layout(1, 1, 1)]


@dataclasses.dataclass
class Chaos:
    """A run directory, and what is done to the processes that work in it one after the other."""

    folder: pathlib.Path
    steps: int
    layouts: list[Layout]
    random: random.Random
    can_fill: bool
    sessions: int = 0
    damaged: int | None = None

    def start(self, layout: Layout) -> Processes:
        self.sessions += 1
        logs = self.folder.parent.parent / "logs" / str(self.sessions)
        command = train(self.folder, *layout.settings(self.steps), "--initialization_timeout=40")
        return Processes(logs, command, layout.count, layout.devices)

    def disturb(self, kind: str, victim: int | None = None) -> None:
        """Starts processes, does one thing to one of them and looks at what they leave."""
        began, layout = time.monotonic(), self.random.choice(self.layouts)
        victim = self.random.randrange(layout.count) if victim is None else victim
        may_start = self._may_start_from()
        with self.start(layout) as started:
            self._await_moment(started, kind)
            acknowledged = self.saved()[-1:]
            done = time.monotonic()
            try:
                codes = self._do(kind, started, victim)
            finally:
                (self.folder.parent / "ballast").unlink(missing_ok=True)
            took, begun = time.monotonic() - done, _begun_from(started)
            said = f"{self.sessions}: {kind}, process {victim} of {tuple(layout)}, "
            said += f"from {begun} at {self.last_row()}, saved {self.saved()}, codes {codes}"
            print(f"{said}, {time.monotonic() - began:.0f} s, {took:.1f} s to end", flush=True)
            output = "\n".join([said, *started.outputs()])
        self._check_codes(kind, codes, victim, begun is not None, output)
        assert not _at_work_in(self.folder), output
        if begun is not None:
            assert took < SOON or "kill" not in kind, output
            assert begun in may_start, output
            assert self.saved()[-1:] >= acknowledged, output
            self._check_loss(codes, output)
            self.damaged = None
        if kind == "kill and damage":
            self._damage()

    def _await_moment(self, started: Processes, kind: str) -> None:
        if kind in ("kill", "terminate") and self.random.random() < IN_THE_START:
            seconds = self.random.uniform(1, 20)
            with contextlib.suppress(AssertionError):
                started.wait_until(lambda: _begun_from(started) is not None, seconds)
            return
        started.wait_until(lambda: _begun_from(started) is not None)
        # A third is the latest: processes take a while to agree on the step to stop at.
        ahead = self.random.randrange(2 * PERIOD)
        target = min((_begun_from(started) or 0) + ahead, self.steps // 3)
        started.wait_until(lambda: self.last_row() >= target)
        time.sleep(self.random.uniform(0, 0.1))
        if kind == "kill and damage":  # and the one before is to be whole
            started.wait_until(lambda: len(self.saved()) > 1)
        if kind == "kill in a save" or (kind == "fill the disk" and self.random.random() < 0.5):
            started.wait_until(lambda: bool(self.being_saved()))

    def _do(self, kind: str, started: Processes, victim: int) -> list[int]:
        if kind == "fill the disk":
            _fill(self.folder.parent / "ballast", started)
        else:
            number = signal.SIGTERM if kind == "terminate" else signal.SIGKILL
            started.all[victim].send_signal(number)
        return started.codes(PATIENCE)

    def _check_codes(
        self, kind: str, codes: list[int], victim: int, has_begun: bool, output: str
    ) -> None:
        assert -999 not in codes, f"a process hangs: {output}"
        if kind == "fill the disk":
            assert codes == [checks.EXIT_BAD_INPUT] * len(codes), output
        elif kind == "terminate" and has_begun:
            assert codes == [checks.EXIT_PREEMPTED] * len(codes), output
        elif kind == "terminate":  # perhaps before Python could be told what to do with it
            assert codes[victim] in (checks.EXIT_PREEMPTED, -signal.SIGTERM), output
            assert 0 not in codes, output
        else:
            assert codes[victim] == -signal.SIGKILL, output
            wrong = (0, checks.EXIT_NON_FINITE, checks.EXIT_PREEMPTED)
            assert not set(codes) & set(wrong), output

    def _check_loss(self, codes: list[int], output: str) -> None:
        """Asked, a run leaves nothing out; killed, what it had not yet said to be saved.

        The row of a step, in which a save may be due, says that the save due before that is whole:
        a save begins when the one before has ended, and training does not wait for its end.
        """
        saved = self.saved()[-1] if self.saved() else 0
        if set(codes) == {checks.EXIT_PREEMPTED}:
            assert saved >= self.last_row(), output
            if "was compiled. Nothing is lost" not in output:  # or there was nothing to write
                left = summary(self.folder)
                assert (left["exit_reason"], left["step"]) == ("preempted", saved), output
        else:
            assert saved >= (self.last_row() // PERIOD - 1) * PERIOD, output

    def _may_start_from(self) -> set[int]:
        """The newest checkpoint; where damage may or may not have hit it, the one before too."""
        saved = self.saved() or [0]
        return {saved[-1], *[step for step in saved if step != self.damaged][-1:]}

    def _damage(self) -> None:
        """Cuts a file of the newest checkpoint, or flips a bit of it, if there is one before it."""
        saved = self.saved()
        if len(saved) < 2 or self.damaged is not None:
            print(f"  nothing damaged: {saved} saved, {self.damaged} damaged already")
            return
        self.damaged = saved[-1]
        folder = saving.checkpoint_path(self.folder, self.damaged)
        files = sorted(each for each in folder.rglob("*") if each.is_file())
        path = self.random.choice([each for each in files if each.stat().st_size])
        content = bytearray(path.read_bytes())
        place = self.random.randrange(len(content))
        if self.random.random() < 0.5:
            del content[place:]
        else:
            content[place] ^= 1 << self.random.randrange(8)
        path.write_bytes(content)
        print(f"  damaged {path.relative_to(self.folder)} at byte {place}, now {len(content)} long")

    def finish(self, layout: Layout) -> None:
        may_start = self._may_start_from()
        with self.start(layout) as started:
            started.expect(0)
            assert _begun_from(started) in may_start
        assert not _at_work_in(self.folder)

    def saved(self) -> list[int]:
        return saving.saved_steps(self.folder)

    def last_row(self) -> int:
        rows = metrics.read_rows(self.folder / "metrics.jsonl")
        return rows[-1]["step"] if rows else 0

    def being_saved(self) -> list[str]:
        names = os.listdir(self.folder)
        return [name for name in names if name.startswith("checkpoint_") and "tmp" in name]


def _begun_from(started: Processes) -> int | None:
    """The step that training began from, once it has."""
    found = re.search(r"^Training from (scratch|.*, step (\d+),) to", started.outputs()[0], re.M)
    return None if found is None else int(found[2] or 0)


def _fill(path: pathlib.Path, started: Processes) -> None:
    """Takes all space, and what a deleted checkpoint frees, until a process ends."""
    deadline = time.monotonic() + PATIENCE
    with path.open("wb", buffering=0) as file:
        while time.monotonic() < deadline and all(each.poll() is None for each in started.all):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))
            time.sleep(0.02)


def _at_work_in(folder: pathlib.Path) -> list[str]:
    """Of all processes of this machine, the arguments of those that were told of `folder`."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_bytes().decode(errors="replace"))
    return [each for each in found if repr(str(folder)) in each]


@contextlib.contextmanager
def _small_disk(folder: pathlib.Path) -> Iterator[bool]:
    """Mounts a small file system at `folder`; whether it could.

    A process of its own unmounts it when its input ends: even if this one is killed.
    """
    folder.mkdir()
    command = f'mount -t tmpfs -o size={DISK} tmpfs "$1" && echo mounted && read _; umount -l "$1"'
    with subprocess.Popen(
        ["sh", "-c", command, "sh", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # what ends this group of processes is not to end it
    ) as keeper:
        assert keeper.stdin is not None
        assert keeper.stdout is not None
        could = keeper.stdout.readline() == b"mounted\n"
        try:
            yield could
        finally:
            keeper.stdin.close()
            keeper.wait(30)


@pytest.fixture
def chaos(tmp_path, request) -> Iterator[Chaos]:
    seed = int(os.environ.get("CHAOS_SEED", random.SystemRandom().randrange(10**6)))
    steps, layouts = request.param
    with _small_disk(tmp_path / "disk") as could:
        how = "on a disk that can be filled" if could else "no disk could be mounted"
        print(f"CHAOS_SEED={seed}, {how}", flush=True)
        yield Chaos(tmp_path / "disk" / "run", steps, layouts, random.Random(seed), could)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Gives the run directory of a run of so many steps, trained when first asked for."""

    @functools.cache
    def run_directory(steps: int) -> pathlib.Path:
        folder = tmp_path_factory.mktemp("undisturbed") / "run"
        command = train(folder, *USUAL.settings(steps))
        with Processes(folder.parent / "logs", command, USUAL.count, USUAL.devices) as started:
            started.expect(0)
        assert [row["step"] for row in rows_of(folder)] == list(range(1, steps + 1))
        return folder

    return run_directory


def _shuffled(chaos: Chaos, kinds: dict[str, int]) -> list[str]:
    counted = collections.Counter(kinds)
    if not chaos.can_fill:
        counted["kill"] += counted.pop("fill the disk", 0)
    found = list(counted.elements())
    chaos.random.shuffle(found)
    return found


def _assert_same(found: pathlib.Path, expected: pathlib.Path) -> None:
    one, other = summary(found), summary(expected)
    assert {name: one[name] for name in HASHES} == {name: other[name] for name in HASHES}
    assert rows_of(found) == rows_of(expected)


def _assert_close(found: pathlib.Path, expected: pathlib.Path) -> None:
    several.assert_rows_close(rows_of(found), rows_of(expected), rtol=1e-5)
    for ema in (False, True):
        several.assert_close(params_of(found, ema=ema), params_of(expected, ema=ema))


@pytest.mark.full
@pytest.mark.parametrize("chaos", [(60, [USUAL])], indirect=True, ids=["short"])
def test_disturbed_thrice(chaos, undisturbed):
    for kind in _shuffled(chaos, FEW):
        chaos.disturb(kind)
    chaos.finish(USUAL)
    _assert_same(chaos.folder, undisturbed(chaos.steps))


@pytest.mark.full
@pytest.mark.parametrize("chaos", [(60, OTHERS[2:])], indirect=True, ids=["short, other meshes"])
def test_disturbed_thrice_and_moved(chaos, undisturbed):
    for kind in _shuffled(chaos, FEW):
        chaos.disturb(kind)
    chaos.finish(USUAL)
    _assert_close(chaos.folder, undisturbed(chaos.steps))


@pytest.mark.full
@pytest.mark.parametrize("chaos", [(240, [USUAL])], indirect=True, ids=["one mesh"])
def test_disturbed_on_one_mesh(chaos, undisturbed):
    for kind in _shuffled(chaos, MANY):
        chaos.disturb(kind)
    chaos.finish(USUAL)
    _assert_same(chaos.folder, undisturbed(chaos.steps))


@pytest.mark.full
@pytest.mark.parametrize("chaos", [(240, OTHERS)], indirect=True, ids=["other meshes"])
def test_disturbed_and_moved(chaos, undisturbed):
    for kind in _shuffled(chaos, MANY):
        chaos.disturb(kind)
    chaos.finish(USUAL)
    _assert_close(chaos.folder, undisturbed(chaos.steps))
