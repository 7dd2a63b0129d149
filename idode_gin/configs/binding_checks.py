"""Find the mistakes that gin does not report, before anything is built.

These are misspelt macros and scopes, values of the wrong type, and missing values (gin reports one
at a time). A binding that the program does not read is an error, with two exceptions:

- a later line replaced what used to read it: if you swap an objective, you need not unbind the old
  one's numbers;
- a building block binds a macro that other programs read: the facts of a dataset are written once,
  for training, evaluation and sampling.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from gin import config

from idode_gin import checks
from idode_gin.configs import gin_internals, readers, t5x_names, t5x_values, value_types
from idode_gin.configs.loading import MACRO, Binding, ConfigError, Key
from idode_gin.configs.reach import CONSTANT, Reach, macro_name, needs_value, reachable


def check(
    root: Callable[..., Any], bindings: Sequence[Binding], search_paths: Sequence[str]
) -> Reach:
    """Check everything that can be checked before anything is built.

    Args:
        root: the function that the program runs.
        bindings: everything that was read, in order, as `loading.load` returns it.
        search_paths: folders that hold gin files. A building block may bind a macro that any of
            these files reads.

    Raises:
        ConfigError: with all findings, one per line: bindings that nothing reads, macros and
            parameters without a value, values of the wrong type.
    """
    reach = reachable(root, bindings)
    missing, missing_macros = _missing(reach, bindings)
    findings = (
        [*_rings(reach, bindings)]
        or [
            *missing_macros,
            *_Unused(root, bindings, search_paths, reach).findings(),
            *missing,
            *_wrong_types(reach, bindings),
        ]
        or [*_without_effect(bindings, reach)]
    )
    if findings:
        raise ConfigError("\n  ".join(dict.fromkeys(findings)))
    return reach


def _rings(reach: Reach, bindings: Sequence[Binding]) -> Iterator[str]:
    final = {each.key: each for each in bindings}
    for ring in reach.rings:
        first = min(range(len(ring)), key=lambda place: str(ring[place]))  # each ring once
        lines = (final[key] for key in (*ring[first:], *ring[:first]))
        written = ", ".join(f"{each.key} = {each.value!r} [{each.where}]" for each in lines)
        yield f"The value of {ring[first]} depends on itself: {written}. Give one of them a value."


def expand_paths(reach: Reach, bindings: Sequence[Binding]) -> None:
    """Put the home folder in place of `~` in every path that the program reads.

    Raises:
        ConfigError: for addresses that the program cannot read.
    """
    final, macros, findings = {each.key: each for each in bindings}, _macros(reach, bindings), []
    for call, keys in reach.calls.items():
        known = {} if call.selector == MACRO else _parameters(call.selector)
        for key in keys.values():
            if key.parameter not in known or not (read := known[key.parameter].read_path):
                continue
            through = [final[key]]
            if not isinstance(_resolve(final[key].value, macros, through), str):
                continue
            found, where = through[-1].key, through[-1].where
            try:
                path = read(through[-1].value, str(found))
                gin_internals.bindings[found.scope, found.selector][found.parameter] = path
            except ValueError as error:
                findings.append(f"{error} [{where}]")
    if findings:
        raise ConfigError("\n  ".join(dict.fromkeys(findings)))


def _without_effect(bindings: Sequence[Binding], reach: Reach) -> Iterator[str]:
    """Report files and bindings of the command line that the program never reads.

    Of a file it also reads nothing if later ones replaced all that it binds. A file that is
    included may bind what this program does not use, but it must not replace what is bound above
    its include.
    """
    bound: dict[str, list[Key]] = {}
    last = {each.key: each for each in bindings}
    for each in bindings:
        bound.setdefault(each.named, []).append(each.key)
    for named, keys in bound.items():
        winners = dict.fromkeys(last[key].named for key in keys if key in reach.used)
        if not winners:
            yield (
                f"{_flag(named)} has no effect: as configured, this program reads nothing of what "
                f"it binds ({', '.join(map(str, dict.fromkeys(keys)))}). Leave it out, or add a "
                "file that reads it."
            )
        elif named not in winners and not named.startswith("--"):
            yield (
                f"{_flag(named)} has no effect: what is read later wins, and all that this program "
                f"reads of it is replaced by {' and '.join(map(_flag, winners))}. Leave it out, or "
                "name it last."
            )
    for each in bindings:
        winner = last[each.key]
        is_included = winner.is_part and winner.named == each.named and not each.is_part
        is_lost = repr(winner.value) != repr(each.value) and not needs_value(each.value)
        if is_included and is_lost and each.key in reach.used:
            yield (
                f"{each.key} has no effect [{each.where}]: {winner.where}, included below it, "
                "replaces it. Include files first, and bind after them."
            )


def _flag(named: str) -> str:
    return named if named.startswith("--") else f"--gin_file={named}"


@dataclasses.dataclass(frozen=True)
class _Unused:
    """Finds bindings that nothing reads, and what may have been meant."""

    root: Callable[..., Any]
    bindings: Sequence[Binding]
    search_paths: Sequence[str]
    reach: Reach

    @functools.cached_property
    def files(self) -> list[readers.GinFile]:
        return readers.gin_files(self.search_paths)

    def findings(self) -> Iterator[str]:
        last = {each.key: order for order, each in enumerate(self.bindings)}
        unused = {key: order for key, order in last.items() if key not in self.reach.used}
        spare = [
            key.scope
            for key, order in unused.items()
            if key.selector == MACRO and self.bindings[order].is_part and self._readers(key.scope)
        ]
        for key, order in unused.items():
            binding = self.bindings[order]
            # A macro that is bound for this very run must have an effect.
            others = spare if binding.is_part else []
            if key not in reachable(self.root, self.bindings, order, others).used:
                hint = self._macro_hint(key.scope) if key.selector == MACRO else self._hint(key)
                yield f"{key} is not used by anything [{binding.where}]. {hint}"

    def _readers(self, macro: str) -> list[readers.GinFile]:
        return [each for each in self.files if each.reads(macro)]

    def _macro_hint(self, name: str) -> str:
        if advice := t5x_names.about_macro(name):
            return advice
        parameters = {
            str(Key("", selector, name))
            for selector in self.reach.selectors
            if name in _parameters(selector)
        }
        near = checks.nearest(name, self.reach.macros)
        if parameters:
            near = f"Did you mean {' or '.join(sorted(parameters))}?"
        if instead := self._instead(name):
            # The name exists, so only a longer one that ends in it may have been meant.
            return f"{near} {instead}" if f"_{name}'?" in near else instead
        if files := self._readers(name):
            return f"{files[0].name} reads it, for something that is not built here."
        return near if parameters else t5x_names.about_bare(name) or near

    def _instead(self, macro: str) -> str | None:
        """Return the files that read a macro, if the program could use them, and what it uses now.

        It could if such a file defines a macro that the program uses, or one that is read by a file
        that the program could use.
        """
        names, seen = [macro], set[str]()
        while names:
            files = [each for each in self._readers(names.pop()) if each.is_choice]
            for place in sorted({each.defines for each in files if each.defines} - seen):
                if place in self.reach.macros:
                    choices = readers.flags(each.name for each in files if each.defines == place)
                    chosen = _chosen(place, _macros(self.reach, self.bindings))
                    return f"It is read with {choices}; {chosen}."
                seen.add(place)
                names.append(place)
        return None

    def _hint(self, key: Key) -> str:
        is_idle = key.selector not in self.reach.selectors
        if advice := t5x_names.about_idle(key.selector if is_idle else "", key.scope):
            return advice
        if is_idle:
            files = readers.builders(key.selector, self.files)
            if files and {each.named for each in self.bindings}.isdisjoint(files):
                return readers.none_uses(key.selector.rpartition(".")[2], files)
        scoped = sorted(
            str(used) for used in self.reach.used if used[1:] == key[1:] and used.scope != key.scope
        )
        if scoped and not key.scope:
            return f"Every use has its own: {', '.join(scoped)}."
        possible = {
            str(Key("/".join(call.scope), call.selector, parameter))
            for call in self.reach.calls
            if call.selector != MACRO
            for parameter in _parameters(call.selector)
        }
        same_parameter = {each for each in possible if each.endswith(str(key._replace(scope="")))}
        return checks.nearest(str(key), same_parameter or possible)


def _chosen(macro: str, macros: Mapping[str, Binding]) -> str:
    """Return what a macro stands for, with the parameters that it has."""
    here = _resolve(macros[macro].value, macros, []) if macro in macros else None
    if not isinstance(here, value_types.Built):
        return f"{macro} is {here!r} here"
    own = here.name.rpartition(".")[2]
    parameters = ", ".join(f"{own}.{each}" for each in value_types.parameters(here.type))
    return f"{macro} is {own} here, which has {parameters}"


def _missing(reach: Reach, bindings: Sequence[Binding]) -> tuple[list[str], list[str]]:
    """Report parameters without a value, all in one line; and macros that are never bound."""
    final = {each.key: each for each in bindings}
    given = {each.key: each for each in bindings if not needs_value(each.value)}
    parameters, macros, taken_back = [], [], []
    known = {key.scope for key in final if key.selector == MACRO}
    for call, keys in reach.calls.items():
        scope = "/".join(call.scope)
        if call.selector == MACRO and not keys:
            near = t5x_names.about_macro(scope) or checks.nearest(scope, known)
            macros.append(f"%{scope} is used but has no value. {near}")
            continue
        needed = [final[key] for key in keys.values() if needs_value(final[key].value)]
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


def _wrong_types(reach: Reach, bindings: Sequence[Binding]) -> Iterator[str]:
    final, macros = {each.key: each for each in bindings}, _macros(reach, bindings)
    for call, keys in reach.calls.items():
        known = {} if call.selector == MACRO else _parameters(call.selector)
        for key in keys.values():
            if key.parameter in known:
                yield from _wrong_type(final[key], known[key.parameter].annotation, macros)


def _wrong_type(binding: Binding, annotation: Any, macros: Mapping[str, Binding]) -> Iterator[str]:
    through: list[Binding] = []
    value = _resolve(binding.value, macros, through)
    if value is None and macro_name([binding, *through][-1].value) is not None:
        return  # a macro without a value: reported as such
    if needs_value(value) or value_types.fits(value, annotation):
        return
    wanted, got = value_types.describe(annotation), value_types.describe_value(value)
    where = "" if macro_name(binding.value) else f" [{binding.where}]"
    where += "".join(f", through {each.key} [{each.where}]" for each in through)
    is_ours = binding.key.selector.startswith("idode_gin.")
    hint = (
        (is_ours and t5x_values.about(binding.key.parameter, value))
        or value_types.hint(value, annotation)
        or _namesake(value, annotation)
    )
    yield f"{binding.key} must be {wanted}, got {got}{where}.{hint and ' '}{hint}"


def _namesake(value: Any, annotation: Any) -> str:
    """Return a hint at a class of the wanted kind that has the name of the one that was given."""
    if not isinstance(value, value_types.Built):
        return ""
    name = value.name.rpartition(".")[2]
    wanted = getattr(annotation, "__module__", "").rpartition(".")[0]
    for module in readers.modules_that_define(name):
        package, _, short = module.rpartition(".")
        if package == wanted:
            return (
                f"For that of {module}, write into a gin file: from {package} import {short}, and "
                f"@{short}.{name}() there."
            )
    return ""


def _resolve(value: Any, macros: Mapping[str, Binding], through: list[Binding]) -> Any:
    """Replace macros by their values and references by their types.

    `through` fills with the macros on the way. A macro without a value, or within itself, is None.
    """
    if isinstance(value, dict):
        return {k: _resolve(v, macros, through) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_resolve(each, macros, through) for each in value)
    if not isinstance(value, config.ConfigurableReference) or needs_value(value):
        return value
    if value.configurable.selector == CONSTANT:
        return gin_internals.constants["/".join(value.scopes)]
    if (name := macro_name(value)) is not None:
        binding = macros.get(name)
        if binding is None or binding in through:
            return None
        through.append(binding)
        return _resolve(binding.value, macros, through)
    target = value.configurable.wrapped
    if value.evaluate:
        return value_types.Built(value_types.result_type(target), value.selector)
    return value_types.Named(target, value.selector)


def _macros(reach: Reach, bindings: Sequence[Binding]) -> dict[str, Binding]:
    """Return the binding that each macro reads; one in scopes, `a/b`, may read that of `a`."""
    final = {each.key: each for each in bindings}
    return {
        "/".join(call.scope): final[keys["value"]]
        for call, keys in reach.calls.items()
        if call.selector == MACRO and keys
    }


def _parameters(selector: str) -> Mapping[str, value_types.Parameter]:
    return value_types.parameters(gin_internals.registry[selector].wrapped)
