"""Which leaf of a checkpoint becomes which leaf of a run: decided by rules, reported leaf by leaf.

Leaves are named `params/<path>`, `ema/<path>` and `optimizer/<path>`; optimizer paths end in those
of the parameters they belong to. A rule is a regular expression that must match a whole name, and
what to do:

    'restore'               take the checkpoint's leaf of that name, of the same shape
    'restore from NAME'     take another one; NAME may hold \\1 and so on, groups of the expression
    'pad', 'pad from NAME'  take one that is smaller; what it does not hold is zero, so that inputs
                            that are new, behind the old ones, change nothing at first
    'reset'                 as in a new run; an EMA starts where its parameters do
    'drop'                  for leaves of the checkpoint: nobody needs it

For a leaf of the run the first rule that matches and is no 'drop' holds, else its part's own
`restore` or `reset`. Leaves of the checkpoint that nothing took need a 'drop', unless a rule gave
the run's leaf of that name something else.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
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
    """What happens to the leaves whose whole name `pattern` matches."""

    pattern: re.Pattern[str]
    action: str
    source: str | None = None


def parse(rules: Mapping[str, str]) -> tuple[Rule, ...]:
    """Rules as they are written in gin, in their order.

    Raises:
        ValueError: for an expression that is none, an unknown action, or an unknown group.
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
            # Of an expression that matches nothing, with the same groups: checks the template.
            re.sub(rf"{pattern}|\Z", lambda match: match.expand(source), "")
    except (re.error, IndexError) as error:
        raise ValueError(
            f"`rules` must map regular expressions, got {pattern!r}: {action!r} ({error})."
        ) from error
    return Rule(compiled, kind, source)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fate:
    """What a leaf of the run becomes: `action` is 'restore', 'pad' or 'reset'."""

    action: str
    source: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What every leaf becomes.

    Args:
        fates: by the leaf of the run.
        dropped: leaves of the checkpoint that are not used, and need not be.
        problems: name of a leaf that no rule covers, and why it needs one.
    """

    fates: dict[str, Fate]
    dropped: list[str]
    problems: dict[str, str]

    def sources(self, part: str) -> dict[str, str]:
        """Leaves of one part that are taken from the checkpoint, with the leaf they are."""
        return {
            name: fate.source
            for name, fate in self.fates.items()
            if fate.source is not None and part_of(name) == part
        }

    def resets(self, part: str) -> list[str]:
        """Leaves of one part that start anew."""
        return [
            name
            for name, fate in self.fates.items()
            if fate.action == RESET and part_of(name) == part
        ]

    def check(self, checkpoint: str) -> None:
        """Raises ValueError, with every leaf that no rule covers, unless there is none."""
        if not self.problems:
            return
        lines = [f"\n  {name}: {why}" for name, why in self.problems.items()]
        more = f"\n  … and {len(lines) - _SHOWN} more" if lines[_SHOWN:] else ""
        only_optimizer = all(part_of(name) == "optimizer" for name in self.problems)
        easy = " or optimizer = 'reset'" if only_optimizer else ""
        raise ValueError(
            f"{checkpoint} does not fit: {len(lines)} leaves are covered by no rule."
            f"{''.join(lines[:_SHOWN])}{more}\nUse the network and the optimizer it was trained "
            f"with, or bind RestoreCheckpointConfig.rules{easy}, such as "
            f"{{'.*/{_tail(next(iter(self.problems)))}': 'reset'}} ('pad', 'restore from NAME'; "
            "'drop' for what is unknown to this run)."
        )

    def summary(self) -> str:
        """A line per part that the run has: how many of its leaves become what."""
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
        unused = f"  {len(self.dropped)} leaves of the checkpoint are not used"
        return "\n".join([*lines, unused])

    def report(self) -> str:
        """Every leaf, under what becomes of it."""
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
    """Decides what every leaf becomes.

    Args:
        saved: shapes of the checkpoint's leaves, by name.
        wanted: shapes of the run's.
        defaults: 'restore' or 'reset' for every part.
        rules: see the module.
        counterparts: leaves of the run whose counterpart has another name, or None for none.

    Raises:
        ValueError: for a rule that matches no leaf.
    """
    counterparts = counterparts or {}
    fates: dict[str, Fate] = {}
    problems: dict[str, str] = {}
    met: set[Rule | None] = set()
    tried: set[str | None] = set()
    instead: set[str | None] = set()  # names whose leaf of the run is not the checkpoint's
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
    """'params' of 'params/dense_0/kernel'."""
    return name.partition("/")[0]


def _first(rules: tuple[Rule, ...], name: str) -> tuple[Rule | None, re.Match[str] | None]:
    for rule in rules:
        if rule.action != DROP and (match := rule.pattern.fullmatch(name)):
            return rule, match
    return None, None


def _drops(rule: Rule, name: str) -> bool:
    return rule.action == DROP and rule.pattern.fullmatch(name) is not None


def _misfit(action: str, source: str, saved: Shape | None, wanted: Shape) -> str | None:
    """Why a leaf cannot be restored or padded; None if it can."""
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
            f"`rules` must match a leaf each, and {', '.join(map(repr, idle))} decides none. A "
            "rule matches whole names, such as 'params/dense_0/kernel', the first that does "
            "holds, and 'drop' is for leaves of the checkpoint that nothing took."
        )


def _tail(name: str) -> str:
    return "/".join(name.split("/")[-2:])


def counterparts(
    saved: Mapping[str, Shape], wanted: Mapping[str, Shape], is_switched: bool = False
) -> dict[str, str | None]:
    """Where leaves of the optimizer lie when one side accumulates gradients and the other not.

    `optax.MultiSteps` puts the optimizer's state under `inner_opt_state`, beside its own leaves.

    Args:
        saved: shapes of the checkpoint's leaves, by name.
        wanted: shapes of the run's.
        is_switched: both accumulate, over different numbers of steps.

    Returns:
        For leaves of the run, the checkpoint's, or None for what MultiSteps starts anew; and None
        for those leaves of the checkpoint that are MultiSteps' own. Empty if both sides agree.
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


def accumulation(names: Mapping[str, Shape]) -> Iterator[str]:
    """The leaves that are `optax.MultiSteps`' own: its counters and the gradients so far."""
    roots = {name.partition("inner_opt_state/")[0] for name in names if "inner_opt_state/" in name}
    for name in names:
        for root in roots:
            if name.startswith(root) and re.match(
                r"(mini_step|gradient_step|acc_grads|skip_state)(/|$)", name[len(root) :]
            ):
                yield name
