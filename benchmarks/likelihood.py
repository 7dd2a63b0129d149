"""Bits per dim of a trained network: time and evaluations for an error, compared with SciPy's RK45.

    python -m benchmarks.likelihood --checkpoint=runs/digits --experiment=digits_eval
    python -m benchmarks.likelihood --checkpoint=runs/photo --experiment=photo_patches_eval \\
        --images=4 --repeats=1 --seconds=60 [--gin UNet.fourier_exponents='(6, 7)']

All solvers use the same network, images, dequantization noise and probes. The reference is Adams in
the exponential variable, with steps doubled until the figures converge. Errors are means over
images of |bpd - reference|.

    a   time of RK45 from the host divided by that of Dormand-Prince at equal tolerance, in gamma
        and in natural time, with our norm and with SciPy's, two images per lane
    b   time for a mean error of 1e-3, with the cheapest setting of each solver below it
    c   network evaluations per image for errors of 1e-2, 1e-3 and 1e-4, by log-log interpolation
        between the last setting above the error and the next one
    d   time per image of a whole solve divided by (mean evaluations x time per image of one call of
        the network with its trace, at the fastest batch size), and the evaluations that the same
        lanes would take if none was refilled; `--only=d` measures only this

Compilation is not timed. Timed runs alternate; medians of `repeats` are printed.
"""

import argparse
import datetime
import functools
import math
import os
import platform
import shlex
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
import scipy

from benchmarks import likelihood_case
from benchmarks import likelihood_solves as solves
from benchmarks.likelihood_case import Case
from benchmarks.likelihood_solves import Family, Solve
from idode_gin.solvers.norms import EveryPart, Pooled

TARGETS = (1e-2, 1e-3, 1e-4)
TARGET = 1e-3
HOST = "RK45, host"
HOST_TOLERANCES = (1e-2, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5)


def errors(found: Solve, reference: np.ndarray) -> tuple[float, float]:
    """Return the mean over images of |error|, and |error of the mean|."""
    difference = found.bpd - reference
    return float(np.mean(np.abs(difference))), float(abs(np.mean(difference)))


def evaluations_at(points: Sequence[tuple[float, float]], target: float) -> float | None:
    """Return evaluations for an error of `target`; points (evaluations, error), coarsest first."""
    below = len(points)
    while below and points[below - 1][1] <= target:
        below -= 1
    if below == len(points):
        return None
    if below == 0:
        return points[0][0]
    (n0, e0), (n1, e1) = points[below - 1], points[below]
    share = (math.log(e0) - math.log(target)) / (math.log(e0) - math.log(max(e1, 1e-9)))
    return math.exp(math.log(n0) + share * (math.log(n1) - math.log(n0)))


def median_seconds(runs: Mapping[str, Callable[[], Solve]], repeats: int) -> dict[str, float]:
    """Return the median time of each run; runs alternate."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            taken[name].append(run().seconds)
    return {name: statistics.median(each) for name, each in taken.items()}


class Report:
    """Measures one network and prints each result."""

    def __init__(self, args: argparse.Namespace, case: Case) -> None:
        self.args, self.case = args, case
        exponential = solves.adams_grid(self.case, solves.VARIABLES["exponential"], None)
        found, moved = solves.reference(exponential, 2e-5, 15 * args.seconds)
        self.reference = found.bpd
        self.families: dict[tuple[str, str], Family] = {("Adams", "exponential"): exponential}
        self.points: dict[tuple[str, str], list[tuple[float, Solve]]] = {}
        print(f"\n## {args.title or self.case.about}\n\n    {shlex.join(command())}\n")
        print(
            f"{datetime.date.today()}, {machine()}. {self.case.about}.\nReference: "
            f"{found.setting}, whose last doubling changed figures by {moved:.1e}; smaller errors "
            "cannot be resolved.\n"
        )

    def sweep_all(self) -> None:
        """Run every solver in every variable, and that of the host."""

        def is_enough(found: Solve) -> bool:
            return errors(found, self.reference)[0] < min(TARGETS)

        self.families[HOST, "gamma"] = solves.host_rk45(self.case)
        self._sweep(HOST, "gamma", HOST_TOLERANCES, lambda _: False, math.inf)
        for name in self.args.solvers:
            make, settings = solves.FAMILIES[name]
            for variable in self.args.variables:
                if (name, variable) not in self.families:
                    made = make(self.case, solves.VARIABLES[variable], None)
                    self.families[name, variable] = made
                self._sweep(name, variable, settings, is_enough, self.args.seconds)

    def _sweep(
        self,
        name: str,
        variable: str,
        settings: Sequence[float],
        is_enough: Callable[[Solve], bool],
        seconds: float,
    ) -> None:
        found = solves.sweep(self.families[name, variable], settings, is_enough, seconds)
        points = list(zip(settings, found, strict=False))
        self.points[name, variable] = points
        for _, each in points:
            shown = ", ".join(f"{error:.1e}" for error in errors(each, self.reference))
            print(
                f"{name} {variable} {each.setting}: {np.mean(each.evaluations):.0f} evaluations, "
                f"errors {shown}, {each.seconds:.2f} s",
                file=sys.stderr,
                flush=True,
            )

    def error(self, solve: Solve) -> float:
        """Return the mean over images of |error|."""
        return errors(solve, self.reference)[0]

    def table_of_evaluations(self) -> None:
        """Print table c."""
        print(
            "c. Network evaluations per image for a mean error, bits per dim:\n\n| solver | "
            f"variable | {' | '.join(f'{each:g}' for each in TARGETS)} | least error seen |\n"
            f"|---|---|{'--:|' * (len(TARGETS) + 1)}"
        )
        for (name, variable), points in self.points.items():
            curve = [(float(np.mean(each.evaluations)), self.error(each)) for _, each in points]
            found = [evaluations_at(curve, target) for target in TARGETS]
            cells = ["-" if each is None else f"{each:.0f}" for each in found]
            least = min(error for _, error in curve)
            print(f"| {name} | {variable} | {' | '.join(cells)} | {least:.1e} |")
        print()

    def cheapest(self, keys: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], float] | None:
        """Return the fastest setting below TARGET such that all finer ones are below it too."""
        found = []
        for key in keys:
            points = self.points[key]
            while points and self.error(points[-1][1]) <= TARGET:
                found.append((points[-1][1].seconds, key, points[-1][0]))
                points = points[:-1]
        return min(found)[1:] if found else None

    def times(self) -> None:
        """Measure and print tables a and b."""
        ours = [key for key in self.points if key[0] != HOST]
        runs: dict[str, tuple[tuple[str, str], float]] = {"host, 1e-5": ((HOST, "gamma"), 1e-5)}
        lanes = max(self.case.count // 2, 1)
        for variable in ("gamma", "natural"):
            for norm_name, norm in (("every part", EveryPart()), ("pooled", Pooled())):
                key = (f"Dormand-Prince, {norm_name}", variable)
                made = solves.dormand_prince(self.case, solves.VARIABLES[variable], lanes, norm)
                self.families[key] = made
                runs[f"ours, 1e-5, {variable}, {norm_name}"] = (key, 1e-5)
        host = self.cheapest([(HOST, "gamma")])
        best = self.cheapest(ours)
        if host:
            runs[f"host, error below {TARGET:g}"] = host
        if best:
            runs[f"best of ours, error below {TARGET:g}"] = best
        if ("Adams", "exponential") in ours and (
            default := self.cheapest([("Adams", "exponential")])
        ):
            runs[f"default, error below {TARGET:g}"] = default
        solve = {
            name: functools.partial(self.families[key], setting)
            for name, (key, setting) in runs.items()
        }
        last = {name: run() for name, run in solve.items()}
        seconds = median_seconds(solve, self.args.repeats)
        print(
            "a, b. Wall time of all images:\n\n| run | solver | variable | setting | evaluations | "
            "mean error | error of the mean | s |\n|---|---|---|---|--:|--:|--:|--:|"
        )
        for name, ((solver, variable), _) in runs.items():
            one, mean = errors(last[name], self.reference)
            print(
                f"| {name} | {solver} | {variable} | {last[name].setting} | "
                f"{np.mean(last[name].evaluations):.0f} | {one:.1e} | {mean:.1e} | "
                f"{seconds[name]:.2f} |"
            )
        self._print_ratios(seconds, has_host=host is not None)

    def _print_ratios(self, seconds: dict[str, float], has_host: bool) -> None:
        print()
        names = list(seconds)
        for name in names:
            if name.startswith("ours"):
                ratio = seconds[names[0]] / seconds[name]
                print(f"a. {name}: {ratio:.2f} times faster than the host's at 1e-5.")
            if name.startswith(("best", "default")):
                if has_host:
                    ratio = seconds[f"host, error below {TARGET:g}"] / seconds[name]
                    print(f"b. {name}: {ratio:.2f} times faster than the host's.")
                else:
                    ratio = seconds["host, 1e-5"] / seconds[name]
                    print(
                        f"b. {name}: {ratio:.2f} times faster than the host's at 1e-5, which "
                        "is the finest tried and is not below that error."
                    )


def in_groups(evaluations: np.ndarray, size: int) -> float:
    """Return the mean cost of an image if groups of `size` end with their slowest image."""
    groups = np.array_split(evaluations, math.ceil(len(evaluations) / size))
    return float(sum(len(each) * each.max() for each in groups) / len(evaluations))


def overhead(case: Case, repeats: int) -> None:
    """Print table d; calls and solves alternate, and the ratio is a median."""
    calls = solves.calls(case)
    once = {count: statistics.median(call() for _ in range(5)) for count, call in calls.items()}
    best = min(once, key=once.__getitem__)
    case = case.take(max(2 * best, case.count))
    lanes = min(best, case.count)
    for name, setting in (("Adams", 32), ("Dormand-Prince", 1e-3)):
        family = solves.FAMILIES[name][0](case, solves.VARIABLES["exponential"], lanes)
        of_images = np.asarray(family(setting).evaluations)
        evaluations, together = float(np.mean(of_images)), in_groups(of_images, lanes)
        found = []
        for _ in range(repeats):
            before = [calls[best]() for _ in range(3)]
            solve = family(setting)
            after = [calls[best]() for _ in range(3)]
            found.append((solve.seconds / case.count, statistics.median(before + after)))
        whole, call = (statistics.median(each) for each in zip(*found, strict=True))
        ratio = statistics.median(whole / (evaluations * call) for whole, call in found)
        print(
            f"d. {name}, {solve.setting}, {case.count} images on {lanes} lanes: {evaluations:.1f} "
            f"evaluations, {together:.1f} if all of a group waited for its slowest image; "
            f"{1e3 * whole:.1f} ms per image; a call of the network with its trace "
            f"{1e3 * call:.2f} ms per image in batches of {best}; ratio {ratio:.2f}.",
            flush=True,
        )


def command() -> list[str]:
    return ["python", "-m", "benchmarks.likelihood", *sys.argv[1:]]


def machine() -> str:
    device = jax.devices()[0]
    load = os.getloadavg()[0]
    return (
        f"{os.cpu_count()} cores ({platform.machine()}), {device.device_kind} ({device.platform}), "
        f"load {load:.1f}; Python {platform.python_version()}, jax {jax.__version__}, scipy "
        f"{scipy.__version__}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--experiment", default="digits_eval")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4, help="limit for one solve in a sweep")
    parser.add_argument("--solvers", nargs="+", default=list(solves.FAMILIES))
    parser.add_argument("--variables", nargs="+", default=list(solves.VARIABLES))
    parser.add_argument("--gin", nargs="*", default=[], help="bindings")
    parser.add_argument("--title", default="")
    parser.add_argument("--only", choices=("d",), help="measure only this table")
    args = parser.parse_args()
    case = likelihood_case.load(args.experiment, args.checkpoint, args.images, args.gin)
    if args.only is None:
        report = Report(args, case)
        report.sweep_all()
        report.table_of_evaluations()
        report.times()
    else:
        print(f"    {shlex.join(command())}\n\n{datetime.date.today()}, {machine()}.", flush=True)
    overhead(case, args.repeats)


if __name__ == "__main__":
    main()
