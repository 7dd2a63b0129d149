"""Find the bindings that a program reads, without calling anything.

References in bound values are followed from the program's function, as gin would follow them:

- a call in scope `a/b` reads the bindings of scope "", `a` and `a/b`; the innermost wins;
- `@s/f()` is called in scope `s`, whatever the scope around it; `@f()` in the scope around it;
- a macro `%M` is a call of `gin.macro` in scope `M`, so what its value builds is built in `M`;
- an uncalled `@f` may be called later, in any scope on the way from the root to its binding;
- what a decorator made configurable (`@gin.configurable`) may be called anywhere.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from gin import config

from idode_gin.configs import gin_internals
from idode_gin.configs.loading import MACRO, Binding, Key

Scope: TypeAlias = tuple[str, ...]
CONSTANT = "gin.constant"


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of a function or class in `scope`; `deferred` if it is only passed on uncalled."""

    selector: str
    scope: Scope
    deferred: bool


@dataclasses.dataclass(frozen=True)
class Reach:
    """The calls that a program makes, each with the bindings it reads, by parameter.

    `rings` are cycles: each binding in one needs the next, and the last needs the first.
    """

    calls: Mapping[Call, Mapping[str, Key]]
    rings: Sequence[Sequence[Key]] = ()

    @property
    def used(self) -> set[Key]:
        """The bindings that some call reads."""
        return {key for keys in self.calls.values() for key in keys.values()}

    @property
    def macros(self) -> set[str]:
        """The macros that are used, bound or not."""
        return {"/".join(call.scope) for call in self.calls if call.selector == MACRO}

    @property
    def selectors(self) -> set[str]:
        """The functions and classes that are called, macros left out."""
        return {call.selector for call in self.calls} - {MACRO}


def reachable(
    root: Callable[..., Any],
    bindings: Sequence[Binding],
    since: int | None = None,
    spare_macros: Iterable[str] = (),
) -> Reach:
    """Return the calls of a program and the bindings that they read.

    Args:
        root: the function that the program runs.
        bindings: everything that was read, in order; the last of each key counts.
        since: also follow values that were replaced after binding number `since`: the program as
            it may have looked to whoever wrote that line.
        spare_macros: macros to follow as if the program used them.
    """
    values = _values(bindings, since)
    bound: dict[tuple[str, str], list[Key]] = collections.defaultdict(list)
    for key in values:
        bound[key.scope, key.selector].append(key)
    calls: dict[Call, dict[str, Key]] = {}
    seen: set[tuple[Call, tuple[Scope, ...]]] = set()
    path: list[tuple[Call, Key]] = []  # from the root to the call that is visited
    rings: list[list[Key]] = []

    def visit(call: Call, outer_scopes: tuple[Scope, ...]) -> None:
        places = [place for place, (each, _) in enumerate(path) if each == call]
        if places and not any(each.deferred for each, _ in path[places[0] :]):
            rings.append([key for _, key in path[places[0] :]])
            return
        if (call, outer_scopes) in seen:
            return
        seen.add((call, outer_scopes))
        scopes = ("/".join(call.scope[:depth]) for depth in range(len(call.scope) + 1))
        keys = [key for scope in scopes for key in bound[scope, call.selector]]
        calls[call] = {key.parameter: key for key in keys}
        around = tuple(dict.fromkeys((*outer_scopes, call.scope)))
        for key in calls[call].values():
            path.append((call, key))
            for reference in config.iterate_references(values[key]):
                for each in _calls_of(reference, call, around):
                    visit(each, around)
            path.pop()

    visit(Call(gin_internals.lookup(root).selector, (), False), ())
    for scope, selector, _ in values:
        is_from_python = gin_internals.registry[selector].import_source is None
        if is_from_python and not selector.startswith("gin."):
            visit(Call(selector, _split(scope), True), ())
    for name in spare_macros:
        visit(Call(MACRO, _split(name), True), ())
    return Reach(calls, rings)


def macro_name(value: Any) -> str | None:
    """Return `M` if `value` is `%M`, else None."""
    if isinstance(value, config.ConfigurableReference) and value.evaluate:
        return "/".join(value.scopes) if value.configurable.selector == MACRO else None
    return None


def needs_value(value: Any) -> bool:
    """Return True if `value` is or contains `%gin.REQUIRED`."""
    constants = (
        gin_internals.constants["/".join(each.scopes)]
        for each in config.iterate_references(value)
        if each.configurable.selector == CONSTANT
    )
    return any(each is config.REQUIRED for each in constants)


def _values(bindings: Sequence[Binding], since: int | None) -> dict[Key, list[Any]]:
    """Return the last value of each key; also those replaced after binding number `since`."""
    values: dict[Key, list[Any]] = {}
    replaced_at: dict[Key, int] = {}
    for order, each in reversed(list(enumerate(bindings))):
        if each.key not in values:
            values[each.key] = [each.value]
        elif since is not None and replaced_at[each.key] > since:
            values[each.key].append(each.value)
        replaced_at[each.key] = order
    return dict(reversed(values.items()))


def _calls_of(reference: Any, call: Call, around: tuple[Scope, ...]) -> list[Call]:
    """Return the calls that a reference makes, read in `call` with the scopes `around` it."""
    selector, deferred = reference.configurable.selector, not reference.evaluate
    if selector == CONSTANT:
        return []
    scopes: Iterable[Scope] = around if deferred else [call.scope]
    if reference.scopes:
        scopes = [tuple(reference.scopes)]
    return [Call(selector, scope, deferred) for scope in scopes]


def _split(scope: str) -> Scope:
    return tuple(scope.split("/")) if scope else ()
