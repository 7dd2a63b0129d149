"""The private names of libraries that the project uses: all are listed here, with the reason."""

import ast
import importlib
import importlib.metadata
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]
ORBAX = {
    "orbax.checkpoint._src",
    "orbax.checkpoint._src.path.gcs_utils._GCS_PATH_PREFIX",
    "orbax.checkpoint._src.serialization.tensorstore_utils._use_gcs_driver",
}
LIBRARIES = {"gin", "jax", "jaxlib", "orbax", "seqio"}
GIN = {
    "gin.config._CONFIG",
    "gin.config._CONSTANTS",
    "gin.config._IMPORTS",
    "gin.config._INVERSE_REGISTRY",
    "gin.config._OPERATIVE_CONFIG",
    "gin.config._REGISTRY",
    "gin.config._RENAMED_SELECTORS",
    "gin.config._SINGLETONS",
    "gin.config._inverse_lookup",
    "gin.config._parse_scope",
}
ALLOWED = {
    "idode_gin/configs/gin_internals.py": (
        "gin has no public way to list bindings, execute statements one by one, or save its state",
        GIN,
    ),
    "idode_gin/processes/jax_internals.py": (
        "jax has no public key-value store between processes, and no list of cluster types",
        {"jax._src.clusters", "jax._src.distributed"},
    ),
    "idode_gin/checkpoints/orbax_internals.py": (
        "orbax names tensorstore's drivers for gs:// and disks alone; it has no setting for S3",
        ORBAX,
    ),
}


def is_private(name: str) -> bool:
    return any(each.startswith("_") and not each.endswith("__") for each in name.split("."))


def private_names(source: str) -> set[str]:
    """Whole names below `LIBRARIES` with a private part: imported, or reached as attributes."""
    tree, aliases, found = ast.parse(source), {}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for each in node.names:
                top = each.name.split(".")[0]
                aliases[each.asname or top] = each.name if each.asname else top
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            aliases |= {
                each.asname or each.name: f"{node.module}.{each.name}" for each in node.names
            }
    names = set(aliases.values())
    for node in ast.walk(tree):
        parts = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if parts and isinstance(node, ast.Name) and node.id in aliases:
            names.add(".".join([aliases[node.id], *reversed(parts)]))
    for name in filter(is_private, names):
        if name.split(".")[0] in LIBRARIES:
            parts = name.split(".")
            last = max(i for i, part in enumerate(parts) if is_private(part))
            # A private module counts by what is taken from it, a private object by its own name.
            found.add(".".join(parts[: max(last, 2) + 1]))
    return found


def test_private_names_are_found() -> None:
    source = """
import jax
import orbax.checkpoint as ocp
from gin import config as c
from jax._src import distributed as d
def f():
    return c._CONFIG.items(), d.global_state.client, ocp.x._y.z, jax.numpy.abs, c.__name__, f._own
"""
    assert private_names(source) == {
        "gin.config._CONFIG",
        "jax._src.distributed",
        "orbax.checkpoint.x._y",
    }


def test_private_names_are_those_listed() -> None:
    found = {
        str(path.relative_to(ROOT)): names
        for folder in ("idode_gin", "tasks")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if (names := private_names(path.read_text(encoding="utf-8")))
    }
    assert found == {file: names for file, (_, names) in ALLOWED.items()}, (
        "Use public names, or give the reason in `ALLOWED`."
    )


OTHERS = {  # module, and the name in it; of jax and orbax other tests: `test_joining` and so on
    "etils": [("etils.epath.gpath", "_GPath._backend")],
    "s3fs": [("s3fs.core", "S3FileSystem._call_s3"), ("s3fs.core", "S3FileSystem.set_session")],
}
NAMES = [
    *(("gin-config", "gin.config", each.removeprefix("gin.config.")) for each in GIN),
    *((package, *each) for package, names in OTHERS.items() for each in names),
]


@pytest.mark.parametrize(("package", "module", "name"), sorted(NAMES))
def test_libraries_have_their_private_names(package: str, module: str, name: str) -> None:
    version = importlib.metadata.version(package)
    found = importlib.import_module(module)
    for part in name.split("."):
        assert hasattr(found, part), f"{package} {version} lacks {module}.{name}: who uses it?"
        found = getattr(found, part)


def test_gin_has_its_private_attributes() -> None:
    from idode_gin.configs import gin_internals

    version = importlib.metadata.version("gin-config")
    with gin_internals.file_scope() as context:
        assert gin_internals.imported(context) is None, f"gin-config {version}"
        context._enable_dynamic_registration()
        assert gin_internals.imported(context).keys() == {"gin"}, f"gin-config {version}"
        assert set(context.imports) == set(), f"gin-config {version}"
    record = gin_internals.registry["gin.macro"]
    assert record is gin_internals.lookup(record.wrapped), f"gin-config {version}"
    assert record.selector == "gin.macro", f"gin-config {version}"
    assert record.import_source is None, f"gin-config {version}"
