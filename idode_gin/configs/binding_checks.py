"""Finds what gin leaves silent: misspelt macros and scopes, wrong types, all missing values.

Nothing is called. From the program's root function the references in the bound values are
followed as gin would follow them:

- a call in scope `a/b` reads the bindings of scope "", `a` and `a/b`, the innermost winning;
- `@s/f()` is called in scope `s`, whatever the scope around it; `@f()` in the scope around it;
- a macro `%M` is a call of `gin.macro` in scope `M`, so what its value builds is built in `M`;
- an uncalled `@f` may be called later, in any scope on the way from the root to where it is bound;
- what Python code itself made configurable, by `@gin.configurable`, may be called anywhere.

A binding that is never read this way is an error, with two exceptions:

- a later line replaced what used to read it: whoever swaps an objective need not unbind the old
  one's numbers;
- a building block binds a macro that other programs' files use: what is known about a dataset is
  written once, for training, evaluation and sampling.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from gin import config

from idode_gin import checks
from idode_gin.configs import readers as gin_readers
from idode_gin.configs import value_types
from idode_gin.configs.loading import MACRO, Binding, ConfigError, Key
from idode_gin.configs.readers import Reader

Scope: TypeAlias = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Call:
    """A function or class that the program calls in `scope`; `deferred` if only handed over."""

    selector: str
    scope: Scope
    deferred: bool


@dataclasses.dataclass(frozen=True)
class Reach:
    """What a program reads: each call with the bindings it uses."""

    calls: Mapping[Call, Mapping[str, Key]]

    @property
    def used(self) -> set[Key]:
        """The bindings that some call reads."""
        return {key for keys in self.calls.values() for key in keys.values()}


def check(
    root: Callable[..., Any], bindings: Sequence[Binding], search_paths: Sequence[str]
) -> Reach:
    """Checks everything that can be checked before anything is built.

    Args:
        root: the function that the program runs.
        bindings: everything that was read, in order, as `gin_loading.load` returns it.
        search_paths: folders with the gin files that there are. A building block may bind what
            any of them reads, without its being used here.

    Raises:
        ConfigError: with every finding, one a line: bindings that nothing reads, macros without
            a value, parameters without a value, and values of the wrong type.
    """
    final = {each.key: each for each in bindings}
    reach = reachable(root, bindings)
    missing, missing_macros = _missing(reach, bindings)
    findings = [
        *missing_macros,
        *_unused(root, bindings, search_paths, reach),
        *missing,
        *_wrong_types(reach, final),
    ] or [*_without_effect(bindings, reach)]
    if findings:
        raise ConfigError("\n  ".join(dict.fromkeys(findings)))
    return reach


def reachable(
    root: Callable[..., Any],
    bindings: Sequence[Binding],
    since: int | None = None,
    spare_macros: Iterable[str] = (),
) -> Reach:
    """What the program reads from the final values.

    With `since`, also what it would read from values that were replaced after binding number
    `since`: the program as it may have looked to whoever wrote that line. And what it would read
    if it used `spare_macros`.
    """
    values: dict[Key, list[Any]] = {}
    replaced_at: dict[Key, int] = {}
    for order, each in reversed(list(enumerate(bindings))):
        if each.key not in values:
            values[each.key] = [each.value]
        elif since is not None and replaced_at[each.key] > since:
            values[each.key].append(each.value)
        replaced_at[each.key] = order
    walk = _Walk(dict(reversed(values.items())))
    walk.call(Call(config._inverse_lookup(root).selector, (), False), ())
    for key in values:
        if _is_called_by_python(key.selector):
            walk.call(Call(key.selector, _split(key.scope), True), ())
    for name in spare_macros:
        walk.call(Call(MACRO, _split(name), True), ())
    return Reach(walk.calls)


class _Walk:
    """Follows references from a call on; `calls` fills up."""

    def __init__(self, values: Mapping[Key, Sequence[Any]]) -> None:
        self.calls: dict[Call, dict[str, Key]] = {}
        self._values = values
        self._seen: set[tuple[Call, tuple[Scope, ...]]] = set()
        self._bound: dict[tuple[str, str], list[Key]] = collections.defaultdict(list)
        for key in values:
            self._bound[key.scope, key.selector].append(key)

    def call(self, call: Call, outer_scopes: tuple[Scope, ...]) -> None:
        if (call, outer_scopes) in self._seen:
            return
        self._seen.add((call, outer_scopes))
        keys = {}
        for depth in range(len(call.scope) + 1):
            scope = "/".join(call.scope[:depth])
            keys.update({key.parameter: key for key in self._bound[scope, call.selector]})
        self.calls[call] = keys
        around = tuple(dict.fromkeys((*outer_scopes, call.scope)))
        for key in keys.values():
            for value in self._values[key]:
                for reference in references(value):
                    self._follow(reference, call, around)

    def _follow(self, reference: Any, call: Call, around: tuple[Scope, ...]) -> None:
        selector = reference.configurable.selector
        deferred = not reference.evaluate
        if selector == "gin.constant":
            return
        if reference.scopes:
            scopes: Iterable[Scope] = [tuple(reference.scopes)]
        else:
            scopes = around if deferred else [call.scope]
        for scope in scopes:
            self.call(Call(selector, scope, deferred), around)


def _split(scope: str) -> Scope:
    return tuple(scope.split("/")) if scope else ()


def _is_called_by_python(selector: str) -> bool:
    return not selector.startswith("gin.") and config._REGISTRY[selector].import_source is None


def references(value: Any) -> list[Any]:
    """The references in a bound value, at any depth of its containers."""
    return list(config.iterate_references(value))


def macro_name(value: Any) -> str | None:
    """`M` if `value` is `%M`, else None."""
    if isinstance(value, config.ConfigurableReference) and value.evaluate:
        return "/".join(value.scopes) if value.configurable.selector == MACRO else None
    return None


def is_required(value: Any) -> bool:
    """Whether `value` is `%gin.REQUIRED`."""
    return (
        isinstance(value, config.ConfigurableReference)
        and value.configurable.selector == "gin.constant"
        and config._CONSTANTS.get("/".join(value.scopes)) is config.REQUIRED
    )


def _without_effect(bindings: Sequence[Binding], reach: Reach) -> Iterable[str]:
    """Files that were asked for and have no part in the run.

    A building block may bind what this program does not use; one that was named for this very run
    means to have an effect.
    """
    bound: dict[str, list[Key]] = {}
    for each in bindings:
        bound.setdefault(each.named, []).append(each.key)
    for file, keys in bound.items():
        if reach.used.isdisjoint(keys):
            yield (
                f"--gin_file={file} has no effect: as it is set up, this program reads nothing of "
                f"what the file binds ({', '.join(map(str, dict.fromkeys(keys)))}). Leave it out, "
                "or add what reads it."
            )


def _unused(
    root: Callable[..., Any],
    bindings: Sequence[Binding],
    search_paths: Sequence[str],
    reach: Reach,
) -> Iterable[str]:
    known_macros = gin_readers.macro_readers(search_paths)
    named = {each.named for each in bindings}
    last = {each.key: order for order, each in enumerate(bindings)}
    unused = {key: order for key, order in last.items() if key not in reach.used}
    spare = [
        key.scope
        for key, order in unused.items()
        if key.selector == MACRO and key.scope in known_macros and bindings[order].is_part
    ]
    for key, order in unused.items():
        # Whoever binds a macro for this very run means it to have an effect.
        others = spare if bindings[order].is_part else []
        if key not in reachable(root, bindings, order, others).used:
            near = _near(key, reach)
            instead = _instead(key, known_macros, {each.key: each for each in bindings}, reach)
            if key.selector != MACRO and not any(c.selector == key.selector for c in reach.calls):
                files = gin_readers.builders(key.selector, search_paths)
                if files and named.isdisjoint(files):
                    near = gin_readers.none_uses(key.selector.rpartition(".")[2], files)
            if instead:  # the name is a right one: near is only what contains it
                near = f"{near} {instead}" if f"_{key.scope}'?" in near else instead
            elif key.selector == MACRO and (readers := known_macros.get(key.scope)):
                near = f"{readers[0].name} reads it, for something that is not built here."
            yield f"{key} is not used by anything [{bindings[order].where}]. {near}"


def _instead(
    key: Key,
    known_macros: Mapping[str, Sequence[Reader]],
    final: Mapping[Key, Binding],
    reach: Reach,
) -> str | None:
    """Which file that this program could use reads a macro, and what is in that one's place.

    That is so if the file defines a macro that the program uses, or one that such a file reads.
    """
    names, seen = [key.scope] if key.selector == MACRO else [], set[str]()
    used = {"/".join(call.scope) for call in reach.calls if call.selector == MACRO}
    while names:
        readers = [each for each in known_macros.get(names.pop(), ()) if each.is_choice]
        for place in sorted({each.defines for each in readers if each.defines} - seen):
            if place in used:
                files = [each.name for each in readers if each.defines == place]
                return f"It is read with {gin_readers.flags(files)}; {_chosen(place, final)}."
            seen.add(place)
            names.append(place)
    return None


def _chosen(name: str, final: Mapping[Key, Binding]) -> str:
    macro = _macro(name, final)
    here = None if macro is None else _resolve(macro.value, final, [])
    if not isinstance(here, value_types.Built):
        return f"{name} is {here!r} here"
    own = here.name.rpartition(".")[2]
    parameters = ", ".join(f"{own}.{each}" for each in value_types.parameters(here.type))
    return f"{name} is {own} here, which has {parameters}"


def _near(key: Key, reach: Reach) -> str:
    if key.selector == MACRO:
        same_name = {
            str(Key("", call.selector, key.scope))
            for call in reach.calls
            if call.selector != MACRO and key.scope in _parameters(call.selector)
        }
        if same_name:
            return f"Did you mean {' or '.join(sorted(same_name))}?"
        macros = {"/".join(call.scope) for call in reach.calls if call.selector == MACRO}
        return checks.nearest(key.scope, macros)
    instead = sorted(
        str(used) for used in reach.used if used[1:] == key[1:] and used.scope != key.scope
    )
    if instead and not key.scope:
        return f"Every use has its own: {', '.join(instead)}."
    possible = {
        str(Key("/".join(call.scope), call.selector, parameter))
        for call in reach.calls
        if call.selector != MACRO
        for parameter in _parameters(call.selector)
    }
    same_selector = {each for each in possible if each.endswith(str(key._replace(scope="")))}
    return checks.nearest(str(key), same_selector or possible)


def _missing(reach: Reach, bindings: Sequence[Binding]) -> tuple[list[str], list[str]]:
    """Parameters without a value, all in one line; and macros that are used but never bound."""
    final = {each.key: each for each in bindings}
    given = {each.key: each for each in bindings if not _is_needed(each)}
    parameters, macros, taken_back = [], [], []
    known = {key.scope for key in final if key.selector == MACRO}
    for call, keys in reach.calls.items():
        scope = "/".join(call.scope)
        if call.selector == MACRO and not keys:
            macros.append(f"%{scope} is used but has no value. {checks.nearest(scope, known)}")
            continue
        needed = [final[key] for key in keys.values() if _is_needed(final[key])]
        parameters += [f"{each.key} [{each.where}]" for each in needed]
        taken_back += [each for each in needed if each.key in given]
        if not call.deferred:
            parameters += [
                str(Key(scope, call.selector, name))
                for name, each in _parameters(call.selector).items()
                if each.required and name not in keys
            ]
    if not parameters:
        return [], macros
    found = f"These need a value: {', '.join(dict.fromkeys(parameters))}."
    if taken_back:
        last = taken_back[0]
        found += (
            f" {last.key} had one [{given[last.key].where}], which {last.where} took back: what is "
            "read later wins, so name the file with the value last."
        )
    return [found], macros


def _is_needed(binding: Binding) -> bool:
    return any(map(is_required, _leaves(binding.value)))


def _wrong_types(reach: Reach, final: Mapping[Key, Binding]) -> Iterable[str]:
    for call, keys in reach.calls.items():
        known = {} if call.selector == MACRO else _parameters(call.selector)
        for key in keys.values():
            if key.parameter in known:
                annotation = known[key.parameter].annotation
                yield from _wrong_type(key, annotation, final)


def _wrong_type(key: Key, annotation: Any, final: Mapping[Key, Binding]) -> Iterable[str]:
    through: list[Binding] = [final[key]]
    value = _resolve(final[key].value, final, through)
    if value is None and macro_name(through[-1].value) is not None:
        return  # a macro without a value: reported as such
    if any(map(is_required, _leaves(value))) or value_types.fits(value, annotation):
        return
    wanted, got = value_types.describe(annotation), value_types.describe_value(value)
    places = [f", through {each.key} [{each.where}]" for each in through[1:]]
    if macro_name(through[0].value) is None:
        places.insert(0, f" [{through[0].where}]")
    hint = value_types.hint(value, annotation)
    yield f"{key} must be {wanted}, got {got}{''.join(places)}.{hint and ' '}{hint}"


def _resolve(value: Any, final: Mapping[Key, Binding], through: list[Binding]) -> Any:
    """`value` with macros replaced by what they stand for and references by their types."""
    if isinstance(value, dict):
        return {k: _resolve(v, final, through) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_resolve(each, final, through) for each in value)
    if not isinstance(value, config.ConfigurableReference) or is_required(value):
        return value
    if value.configurable.selector == "gin.constant":
        return config._CONSTANTS["/".join(value.scopes)]
    if (name := macro_name(value)) is not None:
        binding = _macro(name, final)
        if binding is None or binding in through:
            return None
        through.append(binding)
        return _resolve(binding.value, final, through)
    target = value.configurable.wrapped
    if value.evaluate:
        return value_types.Built(value_types.result_type(target), value.selector)
    return value_types.Named(target, value.selector)


def _macro(name: str, final: Mapping[Key, Binding]) -> Binding | None:
    parts = name.split("/")
    scopes = ["/".join(parts[:depth]) for depth in range(len(parts), 0, -1)]
    found = (final.get(Key(scope, MACRO, "value")) for scope in scopes)
    return next(filter(None, found), None)


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [leaf for each in value for leaf in _leaves(each)]
    return [value]


def _parameters(selector: str) -> Mapping[str, value_types.Parameter]:
    return value_types.parameters(config._REGISTRY[selector].wrapped)
