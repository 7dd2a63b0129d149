"""The programs around a run read and write in a bucket what they do on a disk.

`test_programs_in_a_bucket` has those that train, score and sample.
"""

import io
import json

import gin
import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache as jax_cache

from idode_gin import checks, compare, report
from idode_gin.configs import programs
from idode_gin.reports import buckets, paths

pytestmark = pytest.mark.full

TRAIN = [
    "--gin_file=gin_configs/experiments/digits.gin",
    "--gin_file=gin_configs/guards/stop_at_spikes.gin",
    *("--gin.TRAIN_STEPS=12", "--gin.BATCH_SIZE=16", "--gin.EVAL_PERIOD=2", "--gin.EVAL_STEPS=2"),
    *("--gin.CHECKPOINT_PERIOD=2", "--gin.LEARNING_RATE=3.0", "--gin.Trainer.log_period=1"),
    *("--gin.LossSpike.factor=1.001", "--gin.LossSpike.warmup_steps=4"),
    *("--gin.UNet.channels=8", "--gin.UNet.levels=1", "--gin.UNet.groups=2"),
]
QUICK = "include 'gin_configs/evaluations/quick.gin'\nBOUND_TIMES = 2\nEVAL_SPLIT = 'validation'\n"
COMPARED = (
    *("train/bad_step_5.npz", "encoded/latents.npz", "encoded/grid.png"),
    *("interpolated/digits_test/interpolation.npz", "interpolated/digits_test/strip.png"),
    *("eval/all/step_2/results.npz", "eval/all/step_4/results.npz", "eval/one/results.npz"),
    *("eval/one_compared/compare.json", "eval/one_compared/compare.png"),
)


@pytest.fixture(autouse=True)
def _cache():
    """Leave the cache of compiled programs as it was."""
    before = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", before)
    jax_cache.reset_cache()


def run(program, *arguments):
    """Run a program that gin configures; return its exit code."""
    gin.clear_config()
    function = {"eval": "evaluate"}.get(program, program)
    return programs.run(f"idode_gin.{program}", function, "", arguments)


def use(folder):
    """Train until a loss spike, then use every other program on the run."""
    assert run("train", *TRAIN, f"--gin.MODEL_DIR='{folder}'") == checks.EXIT_NON_FINITE
    (bad,) = (folder / "train").glob("bad_step_*.npz")
    before = names(folder)
    replay = f"--gin_file={folder / 'config.gin'}", f"--gin.Trainer.replay='{bad}'"
    assert run("train", *replay) == 0
    assert names(folder) == before
    given, rough = f"--gin.CHECKPOINT_PATH='{folder}'", "--gin.TOLERANCE=1e-2"
    encoded = f"--gin.ENCODE_OUTPUT_DIR='{folder / 'encoded'}'", "--gin.INDICES=(3, 7, 1)"
    cache = f"--gin.COMPILATION_CACHE_DIR='{folder / 'cache'}'"
    assert run("encode", given, rough, *encoded, cache) == 0
    assert run("interpolate", given, rough) == 0
    (folder / "quick.gin").write_text(QUICK)
    quick = f"--gin_file={folder / 'quick.gin'}"
    several = "--gin_file=gin_configs/checkpoints/all.gin"
    to = f"--gin.EVAL_OUTPUT_DIR='{folder / 'eval'}"
    assert run("eval", given, quick, several, f"{to}/all'") == 0
    second = f"--gin.CHECKPOINT_PATH='{folder / 'checkpoint_2'}'"
    assert run("eval", second, quick, f"{to}/one'") == 0
    assert compare.main([str(folder / "eval/one"), str(folder / "eval/all/step_4")]) == 0
    reported = str(folder / "reports/all.html")
    assert report.main([str(folder), str(folder / "encoded"), "--output", reported]) == 0


def names(folder):
    """Return the names of all files of a run but checkpoints and compiled programs."""
    if paths.in_bucket(folder):
        found = [
            f"{str(folder)[:5]}{each}" for each in buckets.filesystem(folder).find(str(folder))
        ]
    else:
        found = [str(each) for each in folder.rglob("*") if each.is_file()]
    inside = {each.removeprefix(str(folder)).partition(".tfevents.")[0] for each in found}
    return {each for each in inside if not each.startswith(("/checkpoint_", "/cache/"))}


def content(path, folder):
    """Return what a file holds, without its folder's name."""
    if path.suffix != ".npz":
        return path.read_bytes().replace(json.dumps(str(folder))[1:-1].encode(), b"")
    with np.load(io.BytesIO(path.read_bytes())) as archive:
        return {name: archive[name].tobytes() for name in archive.files}


def test_the_programs_around_a_run(bucket, tmp_path, capsys):
    printed = {}
    here, there = tmp_path / "run", paths.of(f"{bucket}/run")
    for folder in (here, there):
        use(folder)
        lines = capsys.readouterr().out.splitlines()
        found = next(i for i, each in enumerate(lines) if "replayed with the batch of" in each)
        printed[folder] = lines[found + 1 : found + 4]
    assert printed[there] == printed[here]
    assert "gradient is not finite in 0 of" in printed[here][1]
    assert list((there / "cache").iterdir())
    assert names(there) == names(here)
    for name in COMPARED:
        assert content(there / name, there) == content(here / name, here), name
    pictures = [
        (each / "reports/all.html").read_text().count("data:image/png") for each in (here, there)
    ]
    assert pictures[0] == pictures[1] > 0
