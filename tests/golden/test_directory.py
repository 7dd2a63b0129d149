"""Every recorded case is tested."""

import pathlib

from . import cases


def test_there_are_cases():
    assert cases.paths(), f"no case files in {cases.DIRECTORY}"


def test_every_kind_is_known():
    kinds = {path.name: cases.kind(path) for path in cases.paths()}
    unknown = {name: kind for name, kind in kinds.items() if kind not in cases.KINDS}
    assert not unknown, f"no test checks {unknown}; kinds with a test: {cases.KINDS}"


def test_every_kind_is_tested():
    modules = pathlib.Path(__file__).parent.glob("test_*.py")
    text = "".join(module.read_text(encoding="utf-8") for module in modules)
    for kind in cases.KINDS:
        assert f'of_kind("{kind}")' in text, kind
