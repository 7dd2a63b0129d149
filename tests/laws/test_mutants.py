"""Check that mutants match the code, without running them."""

import pathlib

import mutants
import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda each: each.before)
def test_the_line_it_breaks_is_there_once_and_its_tests_are(mutant):
    text = (ROOT / "idode_gin" / mutant.path).read_text(encoding="utf-8")
    assert text.count(mutant.before) == 1
    for arguments in (mutant.law, mutant.golden):
        assert (ROOT / arguments.split()[0]).is_file()
