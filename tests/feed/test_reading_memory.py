"""A split takes the memory of its pixels once, or none of its own where it is mapped."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

SUPPORT = pathlib.Path(__file__).parents[1] / "support"


@pytest.mark.full
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux")
def test_no_way_to_read_a_split_holds_it_twice(tmp_path):
    done = subprocess.run(
        [sys.executable, SUPPORT / "reading_memory.py", tmp_path],
        env=os.environ | {"PYTHONPATH": str(SUPPORT.parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 13
    for way, each in found.items():
        # Of memory of its own: mapped pages, which are any process's, are not counted.
        assert each["peak"] <= 1.2, f"{way}: {each}"
        if "mapped" in way:
            assert each["private"] <= 0.05, f"{way}: {each}"
        else:
            assert each["private"] >= 0.95, f"{way}: {each}"  # the measure measures
