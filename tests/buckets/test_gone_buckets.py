"""A bucket that is gone for good: a program ends with an error. Most of the time it waits."""

import re
import time
import urllib.parse

import pytest
from bucket_programs import TRAIN, announced, kill_when, start

from idode_gin import checks

pytestmark = pytest.mark.full

SECONDS = {"refused": 120, "silent": 420}


@pytest.mark.parametrize("gone", ["refused", "silent"])
@pytest.mark.parametrize("moment", ["a save", "a row", "a restore"])
def test_a_bucket_that_is_gone_for_good(gone, moment, network, root, monkeypatch):
    """A program ends in the time that the page of buckets states."""
    known, since, is_resumed = [], [], []

    def lose(is_moment):
        if is_moment and not since:
            since.append(time.monotonic())
            network.gone = gone

    def asked(command, path):
        name = urllib.parse.unquote(path)
        if moment == "a save":
            lose("checkpoint_8/params" in name and announced(known))
        elif moment == "a restore":
            lose(is_resumed and command == "GET" and "/params/" in name and "/d/" in name)

    def acknowledged(*written):
        known.append(written)
        if moment == "a row":
            lose([name for name, _ in known].count("run/metrics.jsonl") == 2)

    monkeypatch.setattr(network, "acknowledged", acknowledged)
    monkeypatch.setattr(network, "asked", asked)
    arguments = [*TRAIN, f"--gin.MODEL_DIR='{root}/run'"]
    if moment == "a restore":
        kill_when(lambda: announced(known), "train", *arguments)
        is_resumed.append(True)
    process = start("train", *arguments)
    output = process.communicate(timeout=500)[0].decode()
    took = time.monotonic() - since[0]
    assert process.returncode == checks.EXIT_BAD_INPUT, output
    assert "Traceback" not in output, output
    error = output[output.index("error: ") :]
    print(f"{moment}, {gone}: {took:.0f} s\n{error}")
    good = rf"(No checkpoint|checkpoint_\d+ of {root}/run) is known to be complete"
    assert re.search(good, error), output
    assert moment != "a save" or "checkpoint_4 of" in error
    assert took < SECONDS[gone]
