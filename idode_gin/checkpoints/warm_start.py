"""Plan a warm start: map leaves of a checkpoint to leaves of a run by rules.

Leaves are named `params/<path>`, `ema/<path>` and `optimizer/<path>`; an optimizer path ends in the
path of the parameter it belongs to. A rule maps a regular expression, which must match a whole
name, to an action:

    'restore'               take the checkpoint's leaf of the same name and shape
    'restore from NAME'     take another leaf; NAME may refer to groups of the expression (\\1, …)
    'pad', 'pad from NAME'  take a smaller leaf and fill it up with zeros at the end, so that new
                            inputs, placed after the old ones, have no effect at first
    'reset'                 initialize as in a new run; an EMA starts at its parameters
    'drop'                  ignore a leaf of the checkpoint

The first matching rule other than 'drop' applies to a leaf of the run, else the `restore` or
`reset` of its part. A leaf of the checkpoint that is not taken needs a 'drop', unless a rule gives
the run's leaf of that name another source.
"""

import dataclasses
import re
from collections.abc import Collection, Iterator, Mapping
from typing import TypeAlias

from idode_gin import checks

Shape: TypeAlias = tuple[int, ...]

PARTS = ("params", "ema", "optimizer")
RESTORE, RESET, PAD, DROP = "restore", "reset", "pad", "drop"
CHOICES = (RESTORE, RESET)
_ACTIONS = (RESTORE, PAD, RESET, DROP)
_FROM = re.compile(rf"({RESTORE}|{PAD})(?: from (\S+))?")
_SHOWN = 40


@dataclasses.dataclass(frozen=True)
class Rule:
    """An action for the leaves whose whole name matches `pattern`."""

    pattern: re.Pattern[str]
    action: str
    source: str | None = None


def parse(rules: Mapping[str, str]) -> tuple[Rule, ...]:
    """Parse rules as written in gin, in order.

    Raises:
        ValueError: for an invalid expression, an unknown action, or an unknown group.
    """
    return tuple(_parse(pattern, action) for pattern, action in rules.items())


def _parse(pattern: str, action: str) -> Rule:
    found = _FROM.fullmatch(action)
    kind, source = found.groups() if found else (action, None)
    if kind not in _ACTIONS:
        raise ValueError(
            f"`rules` may say {', '.join(map(repr, _ACTIONS))}, 'restore from NAME' or 'pad from "
            f"NAME', got {action!r} for {pattern!r}. {checks.nearest(action, _ACTIONS)}"
        )
    try:
        compiled = re.compile(pattern)
        if source is not None:
            # Matches only the empty end, with the same groups: checks the template.
            re.sub(rf"{pattern}|\Z", lambda match: match.expand(source), "")
    except (re.error, IndexError) as error:
        raise ValueError(
            f"`rules` must map regular expressions, got {pattern!r}: {action!r} ({error})."
        ) from error
    return Rule(compiled, kind, source)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fate:
    """Source of a leaf of the run: `action` is 'restore', 'pad' or 'reset'."""

    action: str
    source: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The source of every leaf.

    Args:
        fates: by the leaf of the run.
        dropped: leaves of the checkpoint that are deliberately not used.
        problems: leaves that no rule covers, with the reason why they need one.
    """

    fates: dict[str, Fate]
    dropped: list[str]
    problems: dict[str, str]

    def sources(self, part: str) -> dict[str, str]:
        """Return, for leaves of one part, the leaf of the checkpoint they are taken from."""
        return {
            name: fate.source
            for name, fate in self.fates.items()
            if fate.source is not None and part_of(name) == part
        }

    def resets(self, part: str) -> list[str]:
        """Return the leaves of one part that are reset."""
        return [
            name
            for name, fate in self.fates.items()
            if fate.action == RESET and part_of(name) == part
        ]

    @property
    def keeps_optimizer(self) -> bool:
        """True if nothing of the optimizer is reset, except gradients that were accumulated."""
        return set(accumulation(self.fates)).issuperset(self.resets("optimizer"))

    def check(self, checkpoint: str) -> None:
        """Raise ValueError, with a list of them, if leaves are covered by no rule."""
        if not self.problems:
            return
        lines = [f"\n  {name}: {why}" for name, why in self.problems.items()]
        more = f"\n  … and {len(lines) - _SHOWN} more" if lines[_SHOWN:] else ""
        only_optimizer = all(part_of(name) == "optimizer" for name in self.problems)
        easy = " or optimizer = 'reset'" if only_optimizer else ""
        tail = "/".join(next(iter(self.problems)).split("/")[-2:])
        raise ValueError(
            f"{checkpoint} does not fit: {len(lines)} leaves are covered by no rule."
            f"{''.join(lines[:_SHOWN])}{more}\nUse the network and optimizer of the checkpoint, "
            f"or bind RestoreCheckpointConfig.rules{easy}, such as "
            f"{{'.*/{tail}': 'reset'}} ('pad', 'restore from NAME'; "
            "'drop' for what is unknown to this run)."
        )

    def summary(self) -> str:
        """Return a line per part: number of leaves restored, padded and reset."""
        lines = []
        for part in PARTS:
            counts = dict.fromkeys((RESTORE, PAD, RESET), 0)
            for name, fate in self.fates.items():
                if part_of(name) == part:
                    counts[fate.action] += 1
            lines.append(
                f"  {part:<10} {counts[RESTORE]} leaves restored, {counts[PAD]} padded, "
                f"{counts[RESET]} reset"
            )
        unused = f"  {len(self.dropped)} leaves of the checkpoint not used"
        return "\n".join([*lines, unused])

    def report(self) -> str:
        """Return a list of every leaf, grouped by action."""
        sections: dict[str, list[str]] = {}
        for name, fate in self.fates.items():
            renamed = fate.source not in (None, name)
            line = f"{name} from {fate.source}" if renamed else name
            sections.setdefault(fate.action, []).append(line)
        sections["not used"] = self.dropped
        return "\n".join(
            f"{title} ({len(lines)})" + "".join(f"\n  {each}" for each in lines)
            for title, lines in sections.items()
        )


def plan(
    saved: Mapping[str, Shape],
    wanted: Mapping[str, Shape],
    defaults: Mapping[str, str],
    rules: tuple[Rule, ...] = (),
    counterparts: Mapping[str, str | None] | None = None,
) -> Plan:
    """Decide the source of every leaf.

    Args:
        saved: shapes of the checkpoint's leaves, by name.
        wanted: shapes of the run's leaves, by name.
        defaults: 'restore' or 'reset' for every part.
        rules: exceptions, see the module docstring.
        counterparts: for leaves of the run that have another name in the checkpoint, that name;
            None if the checkpoint has none.

    Raises:
        ValueError: if a rule matches no leaf.
    """
    counterparts = counterparts or {}
    fates: dict[str, Fate] = {}
    problems: dict[str, str] = {}
    met: set[Rule | None] = set()
    tried: set[str | None] = set()
    instead: set[str | None] = set()  # names of leaves that the run takes from elsewhere
    for name, shape in wanted.items():
        rule, match = _first(rules, name)
        met.add(rule)
        action = rule.action if rule else defaults[part_of(name)]
        source = counterparts.get(name, name)
        if rule is not None and match is not None and rule.source is not None:
            source = match.expand(rule.source)
            instead.add(name)
        elif source is None:
            action = RESET
        if action == RESET or source is None:
            fates[name] = Fate(action=RESET)
            instead.add(counterparts.get(name, name))
            continue
        tried.add(source)
        if (why := _misfit(action, source, saved.get(source), shape)) is not None:
            problems[name] = why
        else:
            fates[name] = Fate(action=action, source=source)
    dropped = []
    for name in sorted(saved.keys() - tried):
        drop = next((each for each in rules if _drops(each, name)), None)
        met.add(drop)
        is_own = counterparts.get(name, name) is None
        if drop or name in instead or is_own or defaults[part_of(name)] == RESET:
            dropped.append(name)
        else:
            problems[name] = "in the checkpoint, unknown to this run"
    _check_met(rules, met)
    return Plan(fates=fates, dropped=dropped, problems=problems)


def part_of(name: str) -> str:
    """Return 'params' for 'params/dense_0/kernel'."""
    return name.partition("/")[0]


def _first(rules: tuple[Rule, ...], name: str) -> tuple[Rule | None, re.Match[str] | None]:
    for rule in rules:
        if rule.action != DROP and (match := rule.pattern.fullmatch(name)):
            return rule, match
    return None, None


def _drops(rule: Rule, name: str) -> bool:
    return rule.action == DROP and rule.pattern.fullmatch(name) is not None


def _misfit(action: str, source: str, saved: Shape | None, wanted: Shape) -> str | None:
    """Return why a leaf cannot be restored or padded; None if it can."""
    if saved is None:
        return f"missing from the checkpoint, which has no {source}"
    if saved == wanted:
        return None
    shapes = f"shape {list(saved)} in the checkpoint, {list(wanted)} here"
    fits = len(saved) == len(wanted) and all(a <= b for a, b in zip(saved, wanted, strict=True))
    if action == PAD:
        return None if fits else f"{shapes}: it cannot be padded"
    return shapes


def _check_met(rules: tuple[Rule, ...], met: set[Rule | None]) -> None:
    idle = [rule.pattern.pattern for rule in rules if rule not in met]
    if idle:
        raise ValueError(
            f"Each of `rules` must apply to a leaf; {', '.join(map(repr, idle))} applies to none. "
            "A rule matches whole names, such as 'params/dense_0/kernel', the first match applies, "
            "and 'drop' is for leaves of the checkpoint that are not taken."
        )


def counterparts(
    saved: Mapping[str, Shape], wanted: Mapping[str, Shape], is_switched: bool = False
) -> dict[str, str | None]:
    """Match leaves of the optimizer when only one side accumulates gradients.

    `optax.MultiSteps` puts the optimizer's state under `inner_opt_state`, beside its own leaves.

    Args:
        saved: shapes of the checkpoint's leaves, by name.
        wanted: shapes of the run's leaves, by name.
        is_switched: True if both accumulate, over different numbers of steps.

    Returns:
        For leaves of the run, the name in the checkpoint, or None for those that MultiSteps
        initializes; and None for leaves of the checkpoint that belong to MultiSteps itself. Empty
        if both sides have the same form.
    """
    inner = "inner_opt_state/"
    accumulates = [any(inner in name for name in side) for side in (saved, wanted)]
    if accumulates[0] == accumulates[1] and not is_switched:
        return {}
    own: dict[str, str | None] = {
        name: None for side in (saved, wanted) for name in accumulation(side)
    }
    plain = {name.replace(inner, ""): name for name in saved if name not in own}
    moved = {
        name: plain[name.replace(inner, "")]
        for name in wanted
        if name not in own and name.replace(inner, "") in plain
    }
    return {**own, **moved}


def accumulation(names: Collection[str]) -> Iterator[str]:
    """Yield the leaves of `optax.MultiSteps` itself: its counters and accumulated gradients."""
    roots = {name.partition("inner_opt_state/")[0] for name in names if "inner_opt_state/" in name}
    for name in names:
        for root in roots:
            if name.startswith(root) and re.match(
                r"(mini_step|gradient_step|acc_grads|skip_state)(/|$)", name[len(root) :]
            ):
                yield name
