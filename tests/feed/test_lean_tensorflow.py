"""TensorFlow's import finds no packages that only Keras wants; everything else finds them."""

import os
import subprocess
import sys

FAKE = """
import importlib, threading
from idode_gin.feed import lean_tensorflow

def found(name):
    try:
        return importlib.import_module(name).__name__
    except ImportError as error:
        return error.name

def elsewhere():
    inside.append(found("pandas"))

for name in lean_tensorflow.OPTIONAL:
    print("without" if found(name + ".part") == name else "with", name)
print(found("yaml"), found("no_such_module"))
inside = []
thread = threading.Thread(target=elsewhere)
thread.start()
thread.join()
print(inside)
"""
PROGRAM = """
import sys
import sklearn
from idode_gin.feed import lean_tensorflow
before = list(sys.meta_path)
lean_tensorflow.load()
lean_tensorflow.load()
print(sys.meta_path == before)
import matplotlib
"""


def test_packages_of_keras_are_hidden_from_its_import_alone(tmp_path):
    for name in ("IPython", "matplotlib", "pandas", "sklearn"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
        (tmp_path / name / "part.py").write_text("")
    (tmp_path / "tensorflow.py").write_text(FAKE)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{os.getcwd()}"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.splitlines() == [
        "without IPython",
        "without matplotlib",
        "without pandas",
        "with sklearn",  # it was imported before
        "yaml no_such_module",
        "['pandas']",
        "True",
    ]


def test_a_module_that_cannot_be_imported_leaves_nothing_hidden(tmp_path):
    (tmp_path / "tensorflow.py").write_text("raise ImportError('broken')")
    program = (
        "import sys\n"
        "from idode_gin.feed import lean_tensorflow\n"
        "before = list(sys.meta_path)\n"
        "try:\n"
        "    lean_tensorflow.load()\n"
        "except ImportError as error:\n"
        "    print(error, sys.meta_path == before)\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.getcwd()}"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "broken True\n"
