"""The report: whole, escaped and self-contained, from whole and from damaged folders."""

import html.parser
import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from idode_gin import report
from idode_gin.reports import plots

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
VOID = {"meta", "link", "img", "br"}
GRID = np.arange(64).reshape(4, 4, 4, 1) % 17


class Page(html.parser.HTMLParser):
    """Checks nesting; collects text, images and everything that an attribute refers to."""

    def __init__(self, path: pathlib.Path) -> None:
        super().__init__()
        self.open, self.images, self.references, self.texts = [], [], [], []
        self.feed(path.read_text("utf-8"))
        assert not self.open
        self.text = " ".join(self.texts)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        assert tag != "script"
        assert not any(name.startswith("on") for name in values)
        self.references += [values[name] for name in ("src", "href") if name in values]
        if tag == "img":
            assert values["alt"]
            self.images.append(values["src"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.texts.append(data)


def make_run(folder, seed=0, steps=(100, 200)):
    folder.mkdir(parents=True)
    config = "from idode_gin import train as train_script\n"
    (folder / "config.gin").write_text(config)
    text = f"RANDOM_SEED = {seed}\nTRAIN_STEPS = 200\nMIXTURE_OR_TASK_NAME = '<b>digits</b>'\n"
    (folder / "operative_config.gin").write_text(
        f"{config}{text}train/x.y = \\\n    (1,\n     2)\n"
    )
    rows = [{"step": s, "train/bpd": 4 - s / 100, "train/grad_norm": 1.0} for s in steps]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    facts = {"exit_reason": "done", "step": 200, "train_steps": 200, "num_params": 275745}
    facts["devices"] = {"kind": "NVIDIA H100", "count": 8}
    (folder / "summary.json").write_text(json.dumps(facts | {"images_per_second": 415.0}))
    for name in ("integrand", "loss_by_gamma"):
        plots.image_grid(GRID, 17, folder / "train" / f"{name}.png")
    return folder


def make_eval(folder, sha256="5734522cfd47"):
    folder.mkdir(parents=True)
    config = "from idode_gin import eval as eval_script\n"
    for name in ("config.gin", "operative_config.gin"):
        (folder / name).write_text(config)
    solver = {"error": 2.1e-4, "tolerance": 1e-4, "is_within": False}
    bound = {"mean": 2.04571, "stderr": 0.01654, "nfe": 29.0, "solver_error": solver}
    facts = {"dataset": "digits", "split": "test", "image_shape": [8, 8, 1], "sha256": sha256}
    classified = {"by": "uniform", "accuracy": 0.95333, "stderr": 0.0122, "num_images": 300}
    summary = {**facts, "step": 200, "uniform": bound, "classification": classified}
    (folder / "summary.json").write_text(json.dumps(summary))
    bpd = np.array([2.0, 1.5, 2.5])
    np.savez(folder / "results.npz", **{"uniform/bpd": bpd, "histogram/bpd": bpd + 1})
    for name in ("bpd_uniform", "nfe", "integrand"):
        plots.image_grid(GRID, 17, folder / "plots" / f"{name}.png")
    return folder


def test_images_of_a_part_are_named_by_their_places(whole):
    rows = dict(np.load(whole / "eval" / "results.npz"))
    np.savez(whole / "eval" / "results.npz", **rows, place=[10, 20, 30])
    assert report.main([str(whole)]) == 0
    assert "lowest: #20 1.500, #10 2.000" in Page(whole / "report.html").text


def make_samples(folder, step):
    folder.mkdir(parents=True)
    for name in ("config.gin", "operative_config.gin"):
        (folder / name).write_text("from idode_gin import sample as sample_script\n")
    (folder / "summary.json").write_text(json.dumps({"step": step, "sampler": "ODESampler"}))
    plots.image_grid(GRID, 17, folder / "grid.png")
    return folder


@pytest.fixture
def whole(tmp_path):
    """A run that holds its evaluation and samples of two steps."""
    run = make_run(tmp_path / "a")
    make_eval(run / "eval")
    make_samples(run / "early", 200)
    make_samples(run / "late", 100)
    return run


def test_the_report_on_a_whole_run_has_everything_and_needs_nothing_else(whole, capsys):
    assert report.main([str(whole)]) == 0
    assert capsys.readouterr().out == f"Wrote {whole / 'report.html'}.\n"
    page = Page(whole / "report.html")
    assert "Missing or damaged" not in page.text
    assert all(each.startswith("data:") for each in page.references)
    assert len(page.images) == 2 + 2 + 3 + 1 + 2  # run, curves, evaluation, histogram, samples
    for shown in (
        "2.0457",
        "0.0165",
        "2.1e-04 (too large)",
        "29",
        "275,745",
        "415",
        "3.0000",
        "0.2887",  # its standard error, 0.5 / sqrt(3)
        "8 x NVIDIA H100",
    ):
        assert shown in page.text, shown
    assert "classification by uniform: 0.9533 ± 0.0122 on 300" in page.text
    assert "lowest: #1 1.500, #0 2.000" in page.text
    assert page.text.index("step 100, ODESampler") < page.text.index("step 200, ODESampler")
    assert "<b>digits</b>" in page.text  # escaped, so text and not an element


def test_runs_are_compared_by_what_differs(tmp_path):
    runs = [make_run(tmp_path / f"<i>{seed}$x_", seed) for seed in (3, 4)]
    evaluations = [make_eval(tmp_path / name, sha256=name) for name in ("c", "d")]
    output = tmp_path / "made" / "<r>.html"
    assert report.main([*map(str, runs + evaluations), "--output", str(output)]) == 0
    page = Page(output)
    assert "Missing or damaged" not in page.text
    differing = page.text.partition("Differs between folders: training run")[2]
    differing, _, rest = differing.partition("Bits per dim")
    assert "RANDOM_SEED" in differing.split()
    assert "TRAIN_STEPS" not in differing.split()
    assert "TRAIN_STEPS" in rest.partition("Configuration")[2].split()
    assert "scored different images" in page.text


def test_the_same_folder_is_shown_once(whole):
    report.write([str(whole), str(whole / "eval"), str(whole / "." / "eval")])
    assert Page(whole / "report.html").text.count("2.0457") == 1


def cut_log(run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 300, "train/b')


DAMAGE = {
    "killed": (lambda run: (run / "summary.json").unlink(), "summary.json is missing"),
    "half a line": (cut_log, "last line of metrics.jsonl is incomplete"),
    "no rows": (lambda run: (run / "metrics.jsonl").write_bytes(b""), "No training run with"),
    "rows of other types": (
        lambda run: (run / "metrics.jsonl").write_text('{"step": 1, "train/bpd": "x"}\n'),
        "Bits per dim by training step",
    ),
    "a step that is none": (
        lambda run: (run / "metrics.jsonl").write_text('{"step": "x", "train/bpd": 1}\n'),
        "Line 1 of",
    ),
    "no log": (lambda run: (run / "metrics.jsonl").unlink(), "metrics.jsonl is missing"),
    "binary log": (lambda run: (run / "metrics.jsonl").write_bytes(b"\xff\n"), "Line 1 of"),
    "no plots": (lambda run: shutil.rmtree(run / "train"), "train/integrand.png is missing"),
    "truncated picture": (
        lambda run: (run / "late" / "grid.png").write_bytes(
            (run / "late" / "grid.png").read_bytes()[:200]
        ),
        "grid.png cannot be used",
    ),
    "no configuration": (
        lambda run: (run / "operative_config.gin").unlink(),
        "operative_config.gin is missing",
    ),
    "no evaluation": (lambda run: shutil.rmtree(run / "eval"), "No evaluation"),
    "unfinished evaluation": (
        lambda run: [(run / "eval" / name).unlink() for name in ("summary.json", "results.npz")],
        "results.npz is missing",
    ),
    "truncated results": (
        lambda run: (run / "eval" / "results.npz").write_bytes(b"PK\x03\x04"),
        "results.npz cannot be used",
    ),
    "summary of another type": (
        lambda run: (run / "eval" / "summary.json").write_text("[1]"),
        "summary.json cannot be used",
    ),
    "summary of odd values": (
        lambda run: (run / "eval" / "summary.json").write_text(
            '{"uniform": {"nfe": "<x>", "mean": null}, "image_shape": 3, "sha256": [1]}'
        ),
        "summary.json cannot be used",
    ),
    "half a summary": (
        lambda run: (run / "summary.json").write_text('{"step": 1'),
        "summary.json cannot be used",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_missing_or_damaged_is_said_in_the_page(name, whole):
    damage, said = DAMAGE[name]
    damage(whole)
    assert report.main([str(whole)]) == 0
    page = Page(whole / "report.html")
    assert said in page.text
    assert "ODESampler" in page.text  # the rest is there


@pytest.mark.parametrize("reason", ["preempted", "done"])
def test_a_run_that_was_stopped_has_no_integrand_yet(reason, whole):
    """It is drawn when a run is done; its absence is no damage before."""
    facts = json.loads((whole / "summary.json").read_text())
    (whole / "summary.json").write_text(json.dumps({**facts, "exit_reason": reason}))
    (whole / "train" / "integrand.png").unlink()
    assert report.main([str(whole)]) == 0
    is_said = "train/integrand.png is missing" in Page(whole / "report.html").text
    assert is_said == (reason == "done")


@pytest.mark.parametrize("name", ["absent", "empty", "of others", "a file"])
def test_a_folder_of_another_kind_is_refused(name, tmp_path, capsys):
    path = tmp_path / name
    if name == "a file":
        path.touch()
    elif name != "absent":
        path.mkdir()
    if name == "of others":
        (path / "summary.json").write_text("{}")
    assert report.main([str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert str(path) in error
    assert not (path / "report.html").exists()


def test_a_folder_that_may_not_be_read_is_left_out(whole, monkeypatch):
    def owner(folder):
        if folder.name == "early":
            raise PermissionError(13, "Permission denied", str(folder))
        return found(folder)

    found, before = report.output_folders.owner, report._outputs(whole, 2)
    monkeypatch.setattr(report.output_folders, "owner", owner)
    left = [each for each in before if each[0].name != "early"]
    assert len(before) - 1 == len(left) > 1
    assert report._outputs(whole, 2) == left


def test_checkpoints_are_not_searched_and_runs_of_like_names_are(whole):
    for name in ("checkpoint_7", "checkpoint_a"):
        shutil.copytree(whole / "eval", whole / name)
    found = {folder.name for folder, _ in report._outputs(whole, 2)}
    assert "checkpoint_a" in found
    assert "checkpoint_7" not in found


def test_an_empty_name_is_no_folder(capsys, tmp_path, monkeypatch):
    """As of a shell's variable that is not set."""
    monkeypatch.chdir(tmp_path)
    assert report.main([""]) == 2
    assert "A report's folder must be a path, got an empty text" in capsys.readouterr().err


def test_it_starts_without_gin_jax_and_tensorflow(whole):
    code = (
        "import sys; from idode_gin import report; report.main(sys.argv[1:]); "
        "print({'gin', 'jax', 'tensorflow', 'orbax'} & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(whole)], capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("set()\n")


@pytest.mark.full
@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_a_browser_shows_every_image_and_requests_nothing(whole, tmp_path):
    report.write([str(whole)])
    source = (whole / "report.html").read_text("utf-8")
    # The page has no script and forbids any; a copy allows this one, which looks at its images.
    probe = (
        "<script>addEventListener('load', () => { document.title = 'loaded ' + JSON.stringify({"
        "images: [...document.images].map(i => i.complete && i.naturalWidth && i.offsetWidth > 0),"
        "requests: performance.getEntriesByType('resource').map(e => e.name)"
        ".filter(n => !n.startsWith('data:')),"
        "overflow: document.documentElement.scrollWidth - innerWidth}); });</script></body>"
    )
    source = source.replace("'unsafe-inline'", "'unsafe-inline'; script-src 'unsafe-inline'", 1)
    copy = tmp_path / "copy.html"
    copy.write_text(source.replace("</body>", probe), "utf-8")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=900,900"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", copy.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    title = done.stdout.partition("<title>loaded ")[2].partition("</title>")[0]
    found = json.loads(title)
    assert len(found["images"]) == 10
    assert all(found["images"])
    assert found["requests"] == []
    assert found["overflow"] <= 0
