"""Paired comparison of evaluations of the same images: read, check, compare, describe.

The first evaluation is the reference. Differences are `other - first`, in bits per dim: below zero
where the other one is better. Those of the parts of an ODE's bound are in nats per image.
"""

import dataclasses
import io
import itertools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from idode_gin.evaluation import earlier_results, paired, summary
from idode_gin.reports import differences, files

SHOWN = 6
"""Images with the largest differences that are named, on either side."""
_IMAGES = ("image_shape", "num_images", "levels", "sha256")
"""Entries of a summary that must agree: the same pixels, with the same number of levels."""
_NAMES = (
    *("dataset", "variant", "split", "whole_split"),
    *("num_classes", "seed", "solve_size", "parameters"),
)
"""Entries of a summary that are mentioned if they differ."""
_ARITHMETIC = ("float", "matmul_precision", "coarse_products")
"""Settings that are mentioned if they differ, as is every `dtype` of a network."""
_NOISE = ("noise_by_pixels", "random_numbers")
"""Settings that choose the noise beside the seed."""
_PIXELS = ("channel_mean", "pixel_range")
"""Entries of a summary that are equal for equal pixels, whatever their order and dtype."""
_MEANING = ("bound", "bound.num_importance", "bound.dequantizer")
"""Settings that identify a bound, the last with its parts; they must agree to compare it."""
_TIMES = "bound.time_sampler"
_CHAIN = (_TIMES, f"{_TIMES}.steps")
"""Settings that must also agree if the bound is a discrete chain's in either evaluation."""
_NO_FIGURES = {"bpd", "nfe", "success", "repeats_sd", "trace_sd", "importance_bias"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A finished evaluation.

    Attributes:
        label: a letter, in tables and messages.
        path: its folder.
        summary: of `summary.json`.
        settings: of `settings.json`; none of an older version, which wrote none.
        scores: values of all images in the order of the split, `[N]`, by bound and name.
        places: of the images in the whole split, `[N]`.
    """

    label: str
    path: pathlib.Path
    summary: Mapping[str, Any]
    settings: Mapping[str, Any]
    scores: Mapping[str, Mapping[str, np.ndarray]]
    places: np.ndarray


def read(path: pathlib.Path, label: str) -> Evaluation:
    """Read the folder of a finished evaluation.

    Raises:
        ValueError: if it is not finished, a series of checkpoints, or damaged.
    """
    if (path / "series.json").exists():
        steps = sorted(each.parent.name for each in path.glob("step_*/summary.json"))
        raise ValueError(
            f"{path} holds a series of checkpoints. Name one of its evaluations: "
            f"{', '.join(steps) or 'none is finished'}."
        )
    missing = [name for name in ("results.npz", "summary.json") if not (path / name).exists()]
    if missing:
        raise ValueError(
            f"The evaluation {path} is not finished: it has no {' and no '.join(missing)}. Repeat "
            "its command, which resumes it."
        )
    try:
        found = dict(json.loads((path / "summary.json").read_text(encoding="utf-8")))
        if lacking := [name for name in _IMAGES if found.get(name) is None]:
            raise ValueError(f"the summary has no {' and no '.join(lacking)}.")
        scores, places = _scores(path / "results.npz", summary.bounds(found))
        for name, each in summary.bounds(found).items():
            for part in ("settings", "solver_error"):
                if not isinstance(each.get(part), Mapping | None):
                    raise ValueError(f"{part} of {name} is {each[part]!r}.")
            mean = np.mean(scores[name]["bpd"])
            if not abs(mean - each["mean"]) <= 1e-9 * abs(mean):
                raise ValueError(f"the mean of {name} is {mean} in one and {each['mean']} there.")
    except Exception as error:  # damaged files raise errors of any type
        raise ValueError(
            f"{path}: results.npz and summary.json are not those of one evaluation, or are "
            f"damaged: {str(error) or type(error).__name__} Evaluate again."
        ) from error
    settings = files.read_json(path / earlier_results.SETTINGS) or {}
    return Evaluation(
        label=label, path=path, summary=found, settings=settings, scores=scores, places=places
    )


def _scores(
    path: pathlib.Path, names: Mapping[str, Any]
) -> tuple[dict[str, dict[str, np.ndarray]], np.ndarray]:
    """Return the values of all images by bound and name, and the images' places in the split."""
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
        columns = {name: archive[name] for name in archive.files}
    index = columns["index"]
    scores = {
        name: {
            key.removeprefix(f"{name}/"): paired.in_order(index, np.asarray(each, np.float64))
            for key, each in columns.items()
            if key.startswith(f"{name}/")
        }
        for name in names
    }
    return scores, paired.in_order(index, columns.get("place", index))


def compare(evaluations: Sequence[Evaluation], names: Sequence[str] = ()) -> dict[str, Any]:
    """Return the contents of `compare.json`: every evaluation compared with the first.

    Args:
        evaluations: two or more.
        names: bounds to compare; () compares all that two evaluations share.

    Raises:
        ValueError: if a comparison would mean nothing.
    """
    first, *others = evaluations
    found, notes = [], []
    for other in others:
        _check_images(first, other)
        shared = _shared(first, other, names)
        notes += _notes(first, other, shared)
        found += [_difference(first, other, name) for name in shared]
    notes += [
        f"The solver error of {name} in {each.label} is not within its tolerance."
        for each in evaluations
        for name, bound in summary.bounds(each.summary).items()
        if not (bound.get("solver_error") or {}).get("is_within", True)
    ]
    notes += [
        f"{each['other']} - {each['first']} of {each['bound']} is smaller than the solvers' errors "
        "together."
        for each in found
        if each["difference"] and abs(each["difference"]) < (each["solver_error"] or 0)
    ]
    described = ("dataset", "variant", "split", "whole_split", *_IMAGES)
    return {
        "images": {name: first.summary.get(name) for name in described},
        "evaluations": {each.label: _identity(each) for each in evaluations},
        "differences": found,
        "notes": list(dict.fromkeys(notes)),
    }


def _identity(each: Evaluation) -> dict[str, Any]:
    names = ("checkpoint", "step", "parameters", "seed", "solve_size")
    return {"path": str(each.path), **{name: each.summary.get(name) for name in names}}


def _check_images(first: Evaluation, other: Evaluation) -> None:
    a, b = first.summary, other.summary
    differing = [name for name in _IMAGES if a.get(name) != b.get(name)]
    if not differing:
        return
    reasons = ", ".join(f"{name} {a.get(name)} and {b.get(name)}" for name in differing)
    if differing == ["sha256"] and a.get("content_sha256") == b.get("content_sha256"):
        reasons += " (the same images in another order)"
    elif differing == ["sha256"] and all(
        a.get(each) == b.get(each) is not None for each in _PIXELS
    ):
        reasons += (
            " (with equal range and channel means: perhaps the same pixels as another integer "
            "dtype, such as uint8 and int32)"
        )
    raise ValueError(
        "A paired comparison needs two evaluations of the same images, got "
        f"{a.get('dataset')} / {a.get('split')} in {first.path} and {b.get('dataset')} / "
        f"{b.get('split')} in {other.path}: {reasons}. Evaluate both on one split."
    )


def _shared(first: Evaluation, other: Evaluation, names: Sequence[str]) -> list[str]:
    """Return the bounds to compare, after a check that they are of one kind."""
    a, b = summary.bounds(first.summary), summary.bounds(other.summary)
    shared = [name for name in a if name in b]
    if lacking := [name for name in names if name not in shared]:
        raise ValueError(
            f"{first.path} and {other.path} do not share {', '.join(lacking)}. They share: "
            f"{', '.join(shared) or 'none'}."
        )
    shared = [name for name in shared if not names or name in names]
    if not shared:
        raise ValueError(
            f"{first.path} and {other.path} share no bound: {', '.join(a)} and {', '.join(b)}. "
            "Evaluate both under one."
        )
    for name in shared:
        changed = [
            sentence
            for setting, sentence in _changed(first, other, name).items()
            if setting in _MEANING
            or setting.startswith(f"{_MEANING[-1]}.")
            or (setting in _CHAIN and _has_chain(name, first, other))
        ]
        if changed:
            usable = [each for each in shared if each != name]
            raise ValueError(
                f"The bounds named {name!r} in {first.path} and {other.path} are different bounds, "
                f"whose difference says nothing about the models: "
                f"{differences.listed(changed)}. Evaluate both under one, or "
                f"choose others with --bounds{' ' + usable[0] if usable else ''}."
            )
    return shared


def _has_chain(name: str, *evaluations: Evaluation) -> bool:
    """Return True if the bound is that of a chain of discrete steps in any of the evaluations."""
    return any("DiscreteSteps" in _settings(each, name).get(_TIMES, "") for each in evaluations)


def _settings(each: Evaluation, name: str) -> Mapping[str, str]:
    found: Mapping[str, str] = each.summary[name].get("settings") or {}
    return found


def _changed(first: Evaluation, other: Evaluation, bound: str) -> dict[str, str]:
    """Return a sentence for each setting of a bound that differs, if both sides are recorded."""
    a, b = _settings(first, bound), _settings(other, bound)
    names = sorted(a.keys() | b.keys()) if a and b else []
    return {
        name: f"{name.removeprefix('bound.')} is {a.get(name, differences.ABSENT)} in "
        f"{first.label} and {b.get(name, differences.ABSENT)} in {other.label}"
        for name in names
        if a.get(name) != b.get(name)
    }


def _notes(first: Evaluation, other: Evaluation, shared: Sequence[str]) -> list[str]:
    a, b = first.summary, other.summary
    found = [
        f"{name} is {a.get(name)} in {first.label} and {b.get(name)} in {other.label}."
        for name in _NAMES
        if a.get(name) != b.get(name)
    ]
    found += _notes_on_settings(first, other)
    found += [
        f"{each.path} does not record settings: its bounds were matched by their names alone."
        for each in (first, other)
        if not all(_settings(each, name) for name in shared)
    ]
    for name in shared:
        if changed := _changed(first, other, name):
            found.append(f"{name}: {differences.listed(list(changed.values()))}.")
    for each, apart in itertools.permutations((first, other)):
        alone = summary.bounds(each.summary).keys() - summary.bounds(apart.summary).keys()
        if alone:
            found.append(f"Only {each.label} and not {apart.label} has {', '.join(sorted(alone))}.")
    return found


def _notes_on_settings(first: Evaluation, other: Evaluation) -> list[str]:
    """Return a note for each setting beside the bounds' that differs, if both sides record it."""
    a, b = first.settings, other.settings
    dtypes = sorted(each for each in a if each.startswith("model.") and each.endswith(".dtype"))
    reasons = {
        **dict.fromkeys([*dtypes, *_ARITHMETIC], "they compute in different arithmetic"),
        **dict.fromkeys(_NOISE, "they draw different noise, which raises the paired error"),
    }
    found = [
        f"{name} is {a[name]} in {first.label} and {b[name]} in {other.label}: {why}."
        for name, why in reasons.items()
        if name in a and name in b and a[name] != b[name]
    ]
    labels = [each.summary.get("labels_sha256") for each in (first, other)]
    if None not in labels and labels[0] != labels[1]:
        found.append(
            f"The labels of the images differ (labels_sha256): those of {first.label} and "
            f"{other.label} condition their models on different classes."
        )
    return found


def _difference(first: Evaluation, other: Evaluation, name: str) -> dict[str, Any]:
    a, b = first.scores[name], other.scores[name]
    found = paired.difference(a["bpd"], b["bpd"])
    parts = [key for key in a if key in b and key not in _NO_FIGURES and "/" not in key]
    lower, higher = paired.extremes(found.values, SHOWN)
    errors = [
        (each.summary[name].get("solver_error") or {}).get("error") for each in (first, other)
    ]
    return {
        "bound": name,
        "first": first.label,
        "other": other.label,
        "mean_first": float(np.mean(a["bpd"])),
        "mean_other": float(np.mean(b["bpd"])),
        "difference": found.mean,
        "stderr": found.stderr,
        "stderr_unpaired": found.stderr_unpaired,
        "correlation": found.correlation,
        "share_lower": found.share_lower,
        "solver_error": None if None in errors else sum(errors),
        "parts": {key: part for key in parts if (part := _part(a[key], b[key]))},
        "lower": [_image(i, first.places, a["bpd"], b["bpd"]) for i in lower],
        "higher": [_image(i, first.places, a["bpd"], b["bpd"]) for i in higher],
    }


def _part(a: np.ndarray, b: np.ndarray) -> dict[str, float | None]:
    """Return the difference of a part of the bound, {} if the part is unknown."""
    if not np.isfinite([a, b]).all():
        return {}
    found = paired.difference(a, b)
    return {"difference": found.mean, "stderr": found.stderr}


def _image(index: int, places: np.ndarray, a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    figures = {"first": float(a[index]), "other": float(b[index])}
    return {
        "index": index,
        "place": int(places[index]),
        **figures,
        "difference": figures["other"] - figures["first"],
    }


def table(found: Mapping[str, Any]) -> str:
    """Return `compare.json` as text: what is compared, a line per difference, and notes."""
    images = found["images"]
    lines = [
        f"{images['dataset']} / {images['split']}: the same {summary.how_many(images)} images of "
        f"{'x'.join(map(str, images['image_shape']))}, {images['levels']} levels, sha256 "
        f"{images['sha256'][:12]}",
        *(f"{label}: {e['path']}, step {e['step']}" for label, e in found["evaluations"].items()),
        f"{'bound':<20}{'other - first':>15}{'first':>10}{'other':>10}{'difference':>12}"
        f"{'paired error':>14}{'unpaired':>10}{'solvers':>10}{'lower':>7}",
    ]
    for each in found["differences"]:
        pair = f"{each['other']} - {each['first']}"
        lines.append(
            f"{each['bound']:<20}{pair:>15}{each['mean_first']:>10.4f}{each['mean_other']:>10.4f}"
            f"{each['difference']:>+12.5f}{summary.shown(each['stderr'], '14.5f')}"
            f"{summary.shown(each['stderr_unpaired'], '10.5f')}"
            f"{summary.shown(each['solver_error'], '10.1e')}"
            f"{each['share_lower']:>7.0%}"
        )
    for each in found["differences"]:
        for side in ("lower", "higher"):
            named = ", ".join(f"#{i['place']} {i['difference']:+.3g}" for i in each[side])
            if named:
                lines.append(f"{each['bound']}: most {side} in {each['other']}: {named}")
    return "\n".join([*lines, *(f"Note: {note}" for note in found["notes"])])
