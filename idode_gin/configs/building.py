"""Load a program's configuration, check it, and build the arguments of the program's function."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from gin import config

from idode_gin.configs import binding_checks, from_training, gin_internals, loading
from idode_gin.configs.loading import ConfigError, Key
from idode_gin.configs.reach import Reach, macro_name


def load_and_check(
    root: Callable[..., Any],
    gin_files: Sequence[str],
    gin_bindings: Sequence[str] = (),
    gin_search_paths: Sequence[str] = (),
) -> Reach:
    """Replace gin's configuration by the given files and bindings, and check it for `root`.

    Bindings that later lines put out of use are dropped, so that config.gin holds what is used.

    Args:
        root: the function that the program runs.
        gin_files: see `from_training.read`.
        gin_bindings: likewise.
        gin_search_paths: folders that are searched first.

    Raises:
        ConfigError: with everything that is wrong, before anything has been built.
    """
    config.clear_config()
    loading.files_read.clear()
    paths = loading.search_paths(gin_search_paths)
    bindings = from_training.read(root, gin_files, gin_bindings, paths)
    _check_program(root, bindings)
    reach = binding_checks.check(root, bindings, paths)
    binding_checks.expand_paths(reach, bindings)
    table = gin_internals.bindings
    for key in {each.key for each in bindings} - reach.used:
        bound = table[key.scope, key.selector]
        del bound[key.parameter]
        if not bound:
            del table[key.scope, key.selector]
    return reach


def build(root: Callable[..., Any]) -> dict[str, Any]:
    """Return the arguments that gin gives to `root`: constructors run, `root` does not."""
    return config.get_bindings(root)


def refuse_bindings(target: Callable[..., Any], parameters: Iterable[str], reason: str) -> None:
    """Raise ConfigError if gin binds one of `parameters` of `target`, which its caller sets."""
    for (scope, selector), bound in gin_internals.bindings.items():
        wasted = sorted(set(bound) & set(parameters))
        if wasted and gin_internals.registry[selector].wrapped is target:
            raise ConfigError(f"{Key(scope, selector, wasted[0])} has no effect: {reason}.")


def macros_bound_to(owner: str, parameter: str) -> list[str]:
    """Return the macros `M` of bindings `owner.parameter = %M`; an empty `owner` is any."""
    return [
        macro
        for (_, selector), bound in gin_internals.bindings.items()
        if owner in ("", selector.rpartition(".")[2])
        and (macro := macro_name(bound.get(parameter))) is not None
    ]


def _check_program(root: Callable[..., Any], bindings: Sequence[loading.Binding]) -> None:
    """Raise ConfigError if the files, or some of them, were written for another program."""
    targets = [gin_internals.registry[each.key.selector].wrapped for each in bindings]
    ours, theirs = root.__module__, set(from_training.PROGRAMS) - {root.__module__}
    others = {
        each.named: target.__module__
        for each, target in zip(bindings, targets, strict=True)
        if target.__module__ in theirs
    }
    if root in targets and others:
        found = " and ".join(f"{named} binds {module}" for named, module in others.items())
        raise ConfigError(
            f"A file configures one program. This is {ours}, but {found}: leave that file out, or "
            "those lines."
        )
    if root not in targets:
        other = next(iter(others.values()), "")
        near = f" They are files of {other}: run `python -m {other} …`." if other else ""
        raise ConfigError(f"The gin files bind nothing of `{ours}.{root.__name__}`.{near}")
