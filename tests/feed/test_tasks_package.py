"""This project and its tasks are imported whatever else has their names."""

import os
import subprocess
import sys
import types

import pytest

from idode_gin.feed import tasks_package

PROGRAM = """
from idode_gin.feed import data, loading
chosen = {"split": "test", "batch_size": 1}
print(len(loading.load_split(data.DatasetConfig(mixture_or_task_name="digits", **chosen)).images))
import tasks.formats.depth
for module in ("tasks", "tasks.mine"):
    try:
        loading.load_split(
            data.DatasetConfig(mixture_or_task_name="mine", module=module, **chosen)
        )
    except ValueError as error:
        print(error)
"""


@pytest.mark.parametrize("name", ["tasks.py", "tasks/__init__.py"])
def test_a_module_of_the_users_does_not_stand_in(name, tmp_path):
    own = tmp_path / name
    own.parent.mkdir(exist_ok=True)
    own.write_text("raise RuntimeError('of another tool')")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    number, *messages = done.stdout.splitlines()
    assert int(number) > 0
    assert len(messages) == 2
    for each in messages:
        assert each.endswith(f"{own} is not imported: rename it and bind DatasetConfig.module.")


def test_a_clone_beside_a_script_does_not_hide_the_package(tmp_path):
    for name in ("idode_gin", "tasks", "gin_configs"):
        (tmp_path / name).mkdir()
    script = tmp_path / "script.py"
    script.write_text(
        "import idode_gin, tasks, gin_configs as g\nidode_gin.load, tasks.__file__, g.__file__"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, script], cwd=tmp_path, env=environment, timeout=200, check=True)


def test_one_that_is_imported_already_is_named(monkeypatch):
    other = types.ModuleType("tasks")
    other.__file__ = "/elsewhere/tasks.py"
    monkeypatch.setitem(sys.modules, "tasks", other)
    with pytest.raises(ValueError, match=r"another one was imported before: /elsewhere/tasks\.py"):
        tasks_package.reserve()


def test_the_package_itself_is_no_namesake():
    tasks_package.reserve()
    tasks_package.reserve()
    assert sum(each.__class__.__module__ == tasks_package.__name__ for each in sys.meta_path) == 1
    assert tasks_package.namesake() is None
