"""Find the classes that implement an interface in the folder of the interface.

A class in a new file of that folder is tested automatically. If it cannot be built without
arguments, add them to `ARGUMENTS`.
"""

import importlib
import inspect
import pkgutil
from typing import Any

import pytest

ARGUMENTS: dict[str, dict[str, Any]] = {
    "Ancestral": {"steps": 300},
    "Adams": {"steps": 512},
    "DiscreteSteps": {"steps": 1000},
    "Monotone": {"units": 32},
    "Tabulated": {"bins": 8},
    "OrthogonalHutchinson": {"num_probes": 4},
}


def classes(abstract: type) -> list[type]:
    """Return concrete subclasses of `abstract` in its package, sorted by name."""
    folder = importlib.import_module(abstract.__module__.rpartition(".")[0])
    for module in pkgutil.walk_packages(folder.__path__, folder.__name__ + "."):
        importlib.import_module(module.name)
    found = [
        each
        for each in _descendants(abstract)
        if not inspect.isabstract(each)
        and not each.__name__.startswith("_")  # made by another class
        and each.__module__.startswith(folder.__name__ + ".")
    ]
    assert found, f"nothing fulfils {abstract.__name__} in {folder.__name__}"
    return sorted(found, key=lambda each: each.__name__)


def instances(abstract: type) -> list[Any]:
    """Return one object of each of `classes(abstract)`."""
    return [each(**ARGUMENTS.get(each.__name__, {})) for each in classes(abstract)]


def each(name: str, abstract: type) -> pytest.MarkDecorator:
    """Parametrize the argument `name` of a test over `instances(abstract)`."""
    found = instances(abstract)
    return pytest.mark.parametrize(name, found, ids=[type(each).__name__ for each in found])


def _descendants(abstract: type) -> set[type]:
    children = set(abstract.__subclasses__())
    return children.union(*(_descendants(child) for child in children))
