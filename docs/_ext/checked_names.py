"""A warning for every name in the pages that the project does not have, so that none can be stale.

Checked are identifiers in inline code, paths of files, modules after `python -m`, imports, and what
`--gin.NAME=` binds. Roles such as `{py:class}` and links are checked by Sphinx.
"""

import importlib.util
import pydoc
import re
from collections.abc import Iterator

from generated_pages import ROOT, bindable, own_bindings, own_gin_files
from sphinx.application import Sphinx
from sphinx.util import logging

from idode_gin.configs import loading

FOLDERS = ("idode_gin", "tasks", "gin_configs", "tests", "benchmarks", "launch", "docs/_ext", ".ci")
TEXTS = ("", ".py", ".gin", ".sh", ".sbatch", ".yaml", ".toml")
UNCHECKED = ("generated/", "changelog", "references", "guides/t5x")
_FENCE = re.compile(r"^([`:]{3,}).*?^\1", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"(?<![`}])`([^`\n]+)`")
_NAMES = re.compile(r"[\w./@%*]+")
_WORD = re.compile(r"[A-Za-z_]\w+")
_PATH = re.compile(r"(?:idode_gin|tasks|gin_configs|tests|benchmarks|launch|docs)/[\w./-]*\w")
_MODULE = re.compile(r"python -m ((?:idode_gin|tasks|benchmarks)[\w.]*)")
_IMPORTED = re.compile(r"^from ((?:idode_gin|tasks)[\w.]*) import (\w+)", re.MULTILINE)
_BOUND = re.compile(r"--gin\.((?:\w+/)?\w+(?:\.\w+)?)=")
OTHERS = {"dlpack", "torch", "SciPy", "seqio", "optax", "tfrecords"}  # names of other projects

log = logging.getLogger(__name__)


def setup(app: Sphinx) -> dict[str, bool]:
    """Check every page when it has been read."""
    app.connect("source-read", lambda app, page, source: _check(page, source[0]))
    return {"parallel_read_safe": True}


def _check(page: str, text: str) -> None:
    if page.startswith(UNCHECKED):
        return
    if page == "index":  # which includes it
        text += (ROOT / "README.md").read_text("utf-8")
    for found in _unknown(text):
        log.warning(f"the project has no {found}", location=page, type="names")


def _unknown(text: str) -> Iterator[str]:
    for path in _PATH.findall(text):
        if not (ROOT / path).exists() and not path.startswith("docs/_build"):
            yield f"file {path!r}"
    for module in _MODULE.findall(text):
        if importlib.util.find_spec(module) is None:
            yield f"module {module!r}"
    for module, name in _IMPORTED.findall(text):
        if pydoc.locate(f"{module}.{name}") is None:
            yield f"{name!r} in {module}"
    for name in _BOUND.findall(text):
        if name.rpartition("/")[2] not in {*BINDABLE, "NAME"}:
            yield f"macro or parameter {name!r}"
    known = WORDS | OTHERS | set(_WORD.findall(" ".join(each[0] for each in _FENCE.finditer(text))))
    for code in filter(_NAMES.fullmatch, _INLINE.findall(_FENCE.sub("", text))):
        for word in set(_WORD.findall(code)) - known:
            yield f"{word!r}, which `{code}` mentions"


def _bindable() -> set[str]:
    macros = {
        each.key.scope
        for file in own_gin_files()
        for each in own_bindings(file)
        if each.key.selector == loading.MACRO
    }
    parameters = {
        f"{target.__name__}.{field}"
        for target in bindable.targets()
        for field in bindable.fields(target)
    }
    return macros | parameters


def _words() -> set[str]:
    """Every word of the sources, and of the names of their files."""
    found: set[str] = set()
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    paths += [*ROOT.glob("*.*"), *ROOT.glob("docs/*/*.md"), ROOT / "Makefile"]
    for path in paths:
        found.update(_WORD.findall(path.relative_to(ROOT).as_posix()))
        if path.is_file() and path.suffix in (
            "",
            ".py",
            ".gin",
            ".sh",
            ".sbatch",
            ".yaml",
            ".toml",
        ):
            found.update(_WORD.findall(path.read_text("utf-8", errors="ignore")))
    return found


BINDABLE, WORDS = _bindable(), _words()
