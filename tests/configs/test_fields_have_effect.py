"""Every field that gin can bind, of every class, changes a visible result or raises.

The tables are in `effects_maths`, `effects_runtime`, `effects_loops` and `effects_programs`.
"""

import bindable
import effects
import effects_loops
import effects_maths
import effects_programs
import effects_runtime
import pytest

TABLES: dict = {}
for table in (effects_maths, effects_runtime, effects_loops, effects_programs):
    for target, case in table.CASES.items():
        TABLES[target] = [*TABLES.get(target, []), *(case if isinstance(case, list) else [case])]
SHOWN = [
    pytest.param(
        target,
        case,
        id=f"{bindable.name(target)}-{min(case.others)}",
        marks=[pytest.mark.full] if case.is_slow else [],
    )
    for target, cases in TABLES.items()
    for case in cases
]


@pytest.mark.parametrize("target", bindable.targets(), ids=bindable.name)
def test_every_field_has_an_entry(target):
    shown = {field for case in TABLES.get(target, []) for field in case.others}
    missing = sorted(set(bindable.fields(target)) - shown)
    assert not missing, (
        f"Add to an `effects_*.CASES`, under {target.__name__}: another value of "
        f"{', '.join(missing)}, and something to `see` that depends on it; or a value that is "
        "`Refused`. If nothing depends on it, remove the field, or raise."
    )
    assert not shown - set(bindable.fields(target)), "fields that are no more"


def test_tables_are_of_what_gin_can_bind():
    assert not set(TABLES) - set(bindable.targets())


@pytest.mark.parametrize(("target", "case"), SHOWN)
def test_every_field_has_an_effect(target, case, tmp_path):
    found = effects.without_effect(case, target, tmp_path)
    assert not found, f"{bindable.name(target)}: " + "\n".join(found)
