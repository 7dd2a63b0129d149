"""The report on runs, evaluations and samples as one HTML page: a function for each section."""

import functools
import math
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from idode_gin.reports import html, plots
from idode_gin.reports.html import Markup
from idode_gin.reports.run_folders import RunFolder

_ABSENT = "–"
_SHOWN = 6
_COSTS = {
    "seconds": ("wall_seconds", ",.0f"),
    "images/s": ("images_per_second", ",.0f"),
    "share of training": ("goodput", ".0%"),
    "parameters": ("num_params", ",.0f"),
    "FLOPs per step": ("flops_per_step", ".2e"),
}
"""Columns: name in the summary or the last row of metrics, and its format."""
_OUTPUTS = {"train": "training run", "eval": "evaluation", "sample": "samples"}
_OUTPUTS |= {"encode": "encoded images", "interpolate": "interpolation"}


def page(folders: Sequence[RunFolder]) -> str:
    """Return the page. Draws what the folders lack plots of, and adds notes to them."""
    sections = [
        ("Bits per dim", _scores, "No evaluation: python -m idode_gin.eval scores a run."),
        ("Training", _training, "No training run with metrics is among the folders."),
        ("Samples", _samples, "No samples: python -m idode_gin.sample draws some."),
        ("Bits per dim of each image", _distributions, "No evaluation with results.npz."),
        ("Integrand of the bound", _integrands, "No finished training run or evaluation."),
        ("Cost", _cost, "No summary and no metrics were found."),
        ("Configuration", _configuration, "No configuration was found."),
    ]
    shown = [html.section(title, made(folders), lack) for title, made, lack in sections]
    notes = [f"{each.path}: {note}" for each in folders for note in each.notes]
    lacking = [html.section("Missing or damaged", [html.listed(notes)], "")] if notes else []
    differences = _differences(folders)
    others = f" and {len(folders) - 1} more" if len(folders) > 1 else ""
    title = f"Report on {folders[0].path}{others}"
    return html.page(title, [_overview(folders), *lacking, *differences, *shown])


def _overview(folders: Sequence[RunFolder]) -> Markup:
    rows = [(each.path, _OUTPUTS[each.program], _data(each), _state(each)) for each in folders]
    return html.table("Folders of this report", ("folder", "holds", "data", "state"), rows)


def _data(folder: RunFolder) -> str:
    name = folder.bindings.get("MIXTURE_OR_TASK_NAME", "").strip("'\"")
    return f"{name or folder.summary.get('dataset', _ABSENT)}"


def _state(folder: RunFolder) -> str:
    step = folder.summary.get("step")
    if folder.program == "train":
        last = folder.rows[-1]["step"] if folder.rows else 0
        reason = folder.summary.get("exit_reason") or "no summary: killed or under way"
        total = folder.summary.get("train_steps", folder.bindings.get("TRAIN_STEPS", "?"))
        return f"{reason}, step {last if step is None else step} of {total}"
    return "unfinished, or a series of checkpoints" if step is None else f"of step {step}"


def _differences(folders: Sequence[RunFolder]) -> list[Markup]:
    tables = []
    for output, same, rows in _settings(folders):
        if differing := _differing(rows):
            head = ["setting", *(str(each.path) for each in same)]
            changed = [(name, *rows[name]) for name in differing]
            tables.append(html.table(f"Differs between folders: {output}", head, changed))
    return [html.section("Differences", tables, "")] if tables else []


def _configuration(folders: Sequence[RunFolder]) -> list[Markup]:
    found = []
    for output, same, rows in _settings(folders):
        head = ["setting", *(str(each.path) for each in same)]
        macros = [(name, *values) for name, values in rows.items() if name.isupper()]
        shown = html.table("", head, macros, _differing(rows))
        is_run = same[0].program == "train"
        found.append(html.folded(f"All macros: {output}", shown, is_open=is_run))
        text = "\n\n".join(f"# {each.path}\n\n{each.config}" for each in same)
        whole = Markup(f"<pre>{html.text(text)}</pre>")
        found.append(html.folded(f"operative_config.gin: {output}", whole))
    return found


def _settings(
    folders: Sequence[RunFolder],
) -> Iterator[tuple[str, list[RunFolder], dict[str, list[str]]]]:
    """Yield what folders of one kind hold, the folders, and the value of each setting in each."""
    for program, output in _OUTPUTS.items():
        same = [each for each in folders if each.program == program and each.bindings]
        names = sorted({name for each in same for name in each.bindings})
        if same:
            rows = {name: [each.bindings.get(name, _ABSENT) for each in same] for name in names}
            yield output, same, rows


def _differing(rows: Mapping[str, Sequence[str]]) -> list[str]:
    return [name for name, values in rows.items() if len(set(values)) > 1]


def _training(folders: Sequence[RunFolder]) -> list[Markup]:
    if not (runs := [each for each in folders if each.rows]):
        return []
    about = "Bits per dim by training step: train/bpd of batches, eval/bpd of the EMA parameters"
    found = [
        _drawn(runs[0], about, functools.partial(_bpd_curves, runs)),
        _drawn(runs[0], "Norm of the gradient by training step", functools.partial(_norms, runs)),
        *_figures_named(folders, "loss_by_gamma.png", "Training loss by gamma"),
    ]
    return html.figures([each for each in found if each])


def _bpd_curves(runs: Sequence[RunFolder], path: pathlib.Path) -> None:
    named = [(_label(run), row) for run in runs for row in run.rows]
    rows = [
        {"step": row["step"]}
        | {f"{label}: {name}": value for name, value in row.items() if name.endswith("/bpd")}
        for label, row in named
    ]
    plots.plot_bpd_curve(rows, path)


def _norms(runs: Sequence[RunFolder], path: pathlib.Path) -> None:
    figure, axes = plots.new_figure("training step", "norm of the gradient")
    for run in runs:
        pairs = [(row["step"], row.get("train/grad_norm")) for row in run.rows]
        known = [(step, value) for step, value in pairs if value is not None]
        if known:
            axes.plot(*zip(*known, strict=True), marker="o", markersize=3, label=_label(run))
    if not axes.lines:
        raise ValueError("no row has train/grad_norm.")
    axes.set_yscale("log")
    axes.legend(frameon=False)
    plots.save_figure(figure, path)


def _label(run: RunFolder) -> str:
    text = str(run.path).replace("$", r"\$")  # matplotlib sets text between dollars as a formula
    return f"./{text}" if text.startswith("_") else text  # it leaves such names out of a legend


def _samples(folders: Sequence[RunFolder]) -> list[Markup]:
    """Show the pictures of every folder of samples, ordered by training step."""
    drawn = [each for each in folders if each.program in ("sample", "encode", "interpolate")]
    found = []
    for each in sorted(drawn, key=lambda each: np.nan_to_num(_number(each.summary.get("step")))):
        sampler = each.summary.get("sampler", each.program)
        about = f"step {each.summary.get('step', '?')}, {sampler}, {each.path}"
        found += [
            html.figure(png, f"{name}: {about}", is_pixels=True)
            for name, png in each.pictures.items()
        ]
    return html.figures(found)


def _scores(folders: Sequence[RunFolder]) -> list[Markup]:
    scored = [each for each in folders if each.program == "eval" and each.summary]
    pixels = {str(each.summary.get("sha256")) for each in scored}
    found = [
        each.attempt("summary.json", functools.partial(_score_table, each), Markup(""))
        for each in scored
    ]
    found = [each for each in found if each]
    found += html.figures(_figures_named(folders, "curve.png", "Bits per dim of checkpoints"))
    if len(pixels) > 1:
        text = "These evaluations scored different images: their figures cannot be compared."
        found.insert(0, html.paragraph(text, "warning"))
    return found


def _score_table(folder: RunFolder) -> Markup:
    summary, rows, missed = folder.summary, [], []
    for name, each in summary.items():
        if not (isinstance(each, Mapping) and "nfe" in each):
            continue
        solver = each.get("solver_error") or {}
        if not solver.get("is_within", True):
            missed.append(name)
        error = _shown(solver.get("error"), ".1e") + (" (too large)" if name in missed else "")
        numbers = (_shown(each.get("mean"), ".4f"), _shown(each.get("stderr"), ".4f"))
        rows.append((name, *numbers, error, _shown(each.get("nfe"), ".0f")))
    if "histogram" in folder.bpd:
        bpd = folder.bpd["histogram"]
        spread = _shown(bpd.std(ddof=1) / math.sqrt(len(bpd)) if len(bpd) > 1 else None, ".4f")
        rows.append(("histogram", _shown(bpd.mean(), ".4f"), spread, _ABSENT, _ABSENT))
    shape = "×".join(map(str, summary.get("image_shape", "?")))
    known = (summary.get(name) for name in ("num_images", "whole_split"))
    count = " of ".join(str(each) for each in known if each)
    caption = (
        f"{folder.path}: {summary.get('dataset')} {summary.get('variant') or ''} / "
        f"{summary.get('split')}, {count} images of {shape}, "
        f"{summary.get('levels')} levels, sha256 {str(summary.get('sha256'))[:12]}, "
        f"step {summary.get('step')}, {summary.get('parameters')} parameters"
    )
    if isinstance(found := summary.get("classification"), Mapping):
        error = f" ± {_shown(found.get('stderr'), '.4f')}"
        caption += f"; accuracy of classification by {found.get('by')}: "
        caption += f"{_shown(found.get('accuracy'), '.4f')}{error} on {found.get('num_images')}"
    head = ("bound", "bits per dim", "std. error", "solver error", "network evaluations")
    return html.table(caption, head, rows, missed)


def _distributions(folders: Sequence[RunFolder]) -> list[Markup]:
    found = []
    for folder in folders:
        for name, bpd in folder.bpd.items():
            order = np.argsort(bpd, kind="stable")
            place = np.arange(len(bpd)) if folder.places is None else folder.places
            ends = [("lowest", order[:_SHOWN]), ("highest", order[::-1][:_SHOWN])]
            extremes = "; ".join(
                f"{word}: " + ", ".join(f"#{place[i]} {bpd[i]:.3f}" for i in chosen.tolist())
                for word, chosen in ends
            )
            caption = f"{name}, {len(bpd)} images of {folder.path}. {extremes}"
            png = folder.pictures.get(f"plots/bpd_{name}.png")
            if png is not None:
                found.append(html.figure(png, caption))
            else:
                found.append(_drawn(folder, caption, functools.partial(_histogram, bpd)))
    found += _figures_named(folders, "nfe.png", "Network evaluations for each image")
    return html.figures([each for each in found if each])


def _histogram(bpd: np.ndarray, path: pathlib.Path) -> None:
    figure, axes = plots.new_figure("bits per dimension", "images")
    axes.hist(bpd, bins="auto" if np.ptp(bpd) > 0 else 1, alpha=0.6)
    plots.save_figure(figure, path)


def _cost(folders: Sequence[RunFolder]) -> list[Markup]:
    rows = []
    for each in folders:
        last = each.rows[-1] if each.rows else {}
        found = {name.removeprefix("time/"): value for name, value in last.items()} | each.summary
        devices = found.get("devices")
        used = _ABSENT
        if isinstance(devices, Mapping):
            used = f"{devices.get('count')} x {devices.get('kind')}"
        peak = _number(found.get("peak_device_bytes", found.get("peak_host_bytes"))) / 2**30
        shown = (_shown(found.get(name), form) for name, form in _COSTS.values())
        if found:
            rows.append((each.path, *shown, _shown(peak, ".1f"), used))
    head = ("folder", *_COSTS, "peak memory, GiB", "devices")
    caption = "Of the last process that worked in each folder; images/s are those of training"
    return [html.table(caption, head, rows)] if rows else []


def _integrands(folders: Sequence[RunFolder]) -> list[Markup]:
    return html.figures(_figures_named(folders, "integrand.png", "Integrand of the bound by gamma"))


def _figures_named(folders: Sequence[RunFolder], name: str, title: str) -> list[Markup]:
    return [
        html.figure(png, f"{title}: {folder.path}")
        for folder in folders
        for path, png in folder.pictures.items()
        if path.rpartition("/")[2] == name and folder.program in ("train", "eval")
    ]


def _drawn(folder: RunFolder, caption: str, draw: Callable[[pathlib.Path], None]) -> Markup:
    """Return the figure that `draw` writes; if it fails, nothing, and a note in `folder`."""

    def figure() -> Markup:
        with tempfile.TemporaryDirectory() as temporary:
            path = pathlib.Path(temporary) / "figure.png"
            draw(path)
            return html.figure(path.read_bytes(), caption)

    return folder.attempt(f"The figure {caption.partition(':')[0]!r}", figure, Markup(""))


def _number(value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else math.nan


def _shown(value: Any, form: str) -> str:
    number = _number(value)
    return format(number, form) if math.isfinite(number) else _ABSENT
