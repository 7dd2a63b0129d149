"""Pages made when the documentation is built: the API by room, and the configuration reference.

Everything is read from the gin files and the signatures, through the project's own gin loading, so
that nothing here can be out of date.
"""

import dataclasses
import importlib
import inspect
import pathlib
import pkgutil
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from gin import config
from sphinx.application import Sphinx

import idode_gin
import tasks
from idode_gin.configs import flags, loading, reach, t5x_names, value_types

ROOT = pathlib.Path(idode_gin.__file__).parents[1]
sys.path.append(str(ROOT / "tests" / "configs"))
import bindable  # noqa: E402  what gin can bind; a test demands an effect of every field

MODULE = """
{name}
{line}

.. automodule:: {name}
"""


def setup(app: Sphinx) -> dict[str, bool]:
    """Write the pages before Sphinx looks for sources; gin macros and files are linked by name."""
    app.add_object_type("macro", "macro", objname="gin macro")
    app.add_object_type("ginfile", "ginfile", objname="gin file")
    app.connect("builder-inited", _write_pages)
    return {"parallel_read_safe": True}


def _write_pages(app: Sphinx) -> None:
    rooms = dict(_room_pages())
    pages = {
        **{f"{name}.rst": text for name, text in rooms.items()},
        "api.md": _api_page(rooms),
        "macros.md": _macros_page(),
        "gin_files.md": _gin_files_page(),
        "configurables.md": _configurables_page(),
        "flags.md": _flags_page(),
        "t5x_names.md": _t5x_names_page(),
    }
    folder = pathlib.Path(app.srcdir) / "generated"
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        if path.name not in pages:
            path.unlink()
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text("utf-8") != text:  # Sphinx reads what changed
            path.write_text(text, encoding="utf-8")


def _room_pages() -> Iterator[tuple[str, str]]:
    """Yield a page for each folder or module at the top of the packages."""
    for package in (idode_gin, tasks):
        for top in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
            inner = getattr(importlib.import_module(top.name), "__path__", ())
            names = [each.name for each in pkgutil.walk_packages(inner, top.name + ".")]
            public = [each for each in names if not each.rpartition(".")[2].startswith("_")]
            parts = [MODULE.format(name=top.name, line="=" * len(top.name))]
            parts += [MODULE.format(name=each, line="-" * len(each)) for each in public]
            yield top.name, "".join(parts)


def _api_page(rooms: Iterable[str]) -> str:
    lines = ["# API reference", "", "| room | holds |", "|---|---|"]
    for name in rooms:
        holds = _first_line(importlib.import_module(name))
        lines.append(f"| {{doc}}`{name} <{name}>` | {holds} |")
    return "\n".join([*lines, "", "```{toctree}", ":hidden:", *rooms, "```", ""])


def gin_files() -> list[str]:
    """Every gin file of the project, such as `gin_configs/runs/train.gin`."""
    paths = sorted((ROOT / "gin_configs").rglob("*.gin"))
    return [path.relative_to(ROOT).as_posix() for path in paths]


def own_gin_files() -> list[str]:
    """Every gin file of our own programs, and not of t5x's."""
    return [file for file in gin_files() if not file.startswith("gin_configs/t5x/")]


def own_bindings(file: str) -> list[loading.Binding]:
    """Bindings written in `file` itself, without those of the files that it includes."""
    config.clear_config()
    found = loading.load([file], folders=[str(ROOT)])
    return [each for each in found if each.where.rpartition(":")[0] == file]


def _line(where: str) -> str:
    file, _, number = where.rpartition(":")
    return (ROOT / file).read_text("utf-8").splitlines()[int(number) - 1]


def _comment(where: str) -> str:
    return _line(where).partition("  # ")[2]


def _written(where: str) -> str:
    """The right-hand side of a binding as its file has it."""
    return re.sub(r"\s+# .*", "", _line(where)).partition("=")[2].strip() or "…"


def _file_link(file: str) -> str:
    return f"{{ginfile}}`{file}`"


def _macros_page() -> str:
    defined: dict[str, list[loading.Binding]] = defaultdict(list)
    bound: dict[str, dict[str, None]] = defaultdict(dict)
    for file in own_gin_files():
        for each in own_bindings(file):
            if each.key.selector == loading.MACRO:
                defined[each.key.scope].append(each)
            for reference in config.iterate_references(each.value):
                if name := reach.macro_name(reference):
                    bound[name][str(each.key)] = None
    lines = ["# Macros", ""]
    lines += [
        "Every macro, its values and the files they are in, and the parameters bound to it.",
        "",
    ]
    for name in sorted({*defined, *bound}):
        lines += [f"```{{macro}} {name}", "```", ""]
        if bound[name]:
            lines += ["Bound to " + ", ".join(f"`{each}`" for each in bound[name]) + ".", ""]
        lines += ["| value | file | comment |", "|---|---|---|"]
        for each in defined[name]:
            file = each.where.rpartition(":")[0]
            comment = _comment(each.where).replace("|", "\\|")
            lines.append(f"| `{_written(each.where)}` | {_file_link(file)} | {comment} |")
        lines.append("")
    return "\n".join(lines)


def _gin_files_page() -> str:
    lines = ["# Gin files", "", "Every file of `gin_configs`, with its text.", ""]
    folder = None
    for file in gin_files():
        here = file.rpartition("/")[0]
        if here != folder:
            folder = here
            lines += [f"## {folder}", ""]
        lines += [f"````{{ginfile}} {file}", "```{literalinclude} ../../" + file, "```", "````", ""]
    return "\n".join(lines)


def _configurables_page() -> str:
    lines = [
        "# Configurable classes and functions",
        "",
        "Everything that a gin file can bind: `Name.parameter = value`, after an import of its "
        "module, or `--gin.Name.parameter=value`.",
        "",
    ]
    for target in bindable.targets():
        lines += _configurable(target)
    return "\n".join(lines)


def _configurable(target: Callable[..., Any]) -> Iterator[str]:
    role = "class" if isinstance(target, type) else "func"
    full = f"{target.__module__}.{target.__qualname__}"
    yield from (
        f"## {target.__qualname__}",
        "",
        f"{{py:{role}}}`{full}`: {_first_line(target)}",
        "",
    )
    yield from ("| parameter | type | default |", "|---|---|---|")
    defaults = _defaults(target)
    for name, each in value_types.parameters(target).items():
        kind = value_types.describe(each.annotation).replace("|", "\\|")
        default = "*required*" if each.required else f"`{defaults[name]}`"
        yield f"| `{name}` | `{kind}` | {default} |"
    yield ""


def _first_line(target: Any) -> str:
    return (target.__doc__ or "").partition("\n")[0]


def _defaults(target: Callable[..., Any]) -> dict[str, str]:
    """Return the defaults by parameter, as text; those that a factory makes are made."""
    factories = {}
    if dataclasses.is_dataclass(target):
        factories = {
            each.name: each.default_factory()
            for each in dataclasses.fields(target)
            if each.default_factory is not dataclasses.MISSING
        }
    found = {}
    for name, each in inspect.signature(target).parameters.items():
        value = factories.get(name, each.default)
        shown = getattr(value, "__name__", None) if callable(value) else None
        found[name] = (shown or repr(value)).replace("|", "\\|")
    return found


def _flags_page() -> str:
    lines = ["# Flags of the programs", ""]
    lines += ["`python -m idode_gin.train`, `.eval`, `.sample`, `.encode` and `.interpolate`:", ""]
    options = flags.parse([])
    for name in options:
        if len(name) > 1:
            text = options[name].help.partition(";\n")[0]
            lines += [f"```{{option}} --{name}", text, "```", ""]
    return "\n".join(lines)


def _t5x_names_page() -> str:
    rows = [f"| `{name}` | {text} |" for name, text in t5x_names.TABLE.items()]
    about = "Every other name that t5x and idode_gin share has the same meaning in both."
    return "\n".join(["# Names of t5x", "", about, "", "| t5x | here |", "|---|---|", *rows, ""])
