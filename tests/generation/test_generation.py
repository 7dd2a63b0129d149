"""Encoding, interpolation and sampling: rows do not depend on the batch, and runs resume."""

import functools
import json
import os
import pathlib
import subprocess
import sys

import interrupted
import numpy as np
import pytest
import tiny
from PIL import Image

from idode_gin import checks
from idode_gin.generation import outputs
from idode_gin.generation.encoder import Encoder
from idode_gin.generation.interpolator import Interpolator
from idode_gin.generation.sampler import Sampler
from idode_gin.reports import files
from idode_gin.runs import partial_results
from idode_gin.samplers.ancestral import Ancestral
from idode_gin.samplers.ode import ODESampler
from idode_gin.solvers.adaptive import DormandPrince
from idode_gin.solvers.fixed_grid import FixedGrid

TIGHT = ODESampler(solver=DormandPrince(rtol=1e-5, atol=1e-5))
FILES = {Encoder: "latents.npz", Interpolator: "interpolation.npz", Sampler: "samples.npz"}


@pytest.fixture(autouse=True)
def _made(monkeypatch):
    interrupted.prepare(monkeypatch.setattr)


def run(loop, folder, batch_size, num_images=None, **changes):
    """Run a loop; return its summary and the arrays it wrote."""
    fields = {"output_dir": str(folder), "checkpoint_path": "made", "solve_size": 2, **changes}
    model = tiny.model(image_shape=tiny.SHAPE)
    if loop is Sampler:
        summary = Sampler(batch_size=batch_size, **fields).run(model)
    else:
        summary = loop(**fields).run(model, tiny.config(batch_size, num_images=num_images))
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert not (folder / "partial_results").exists()
    with np.load(folder / FILES[loop]) as found:
        return summary, dict(found)


def test_the_round_trip_returns_every_image(tmp_path):
    summary, found = run(Encoder, tmp_path, 4, method=TIGHT, indices=(7, 0, 30), grid_images=2)
    images = tiny.split(number=interrupted.NUMBER).images
    np.testing.assert_array_equal(found["index"], [7, 0, 30])
    np.testing.assert_array_equal(found["levels"], images[[7, 0, 30]])
    assert found["noise"].shape == (3, *tiny.SHAPE)
    assert summary["changed_pixels"] == found["changed"].sum() == 0
    assert summary["round_trip"]["max"] == pytest.approx(found["error"].max())
    assert 0 < summary["round_trip"]["max"] < 0.05
    assert (tmp_path / "grid.png").exists()


def test_strips_go_from_one_image_to_the_other(tmp_path):
    pairs = ((3, 9), (12, 0))
    summary, found = run(Interpolator, tmp_path, 1, method=TIGHT, pairs=pairs, num_points=4)
    images = tiny.split(number=interrupted.NUMBER).images
    np.testing.assert_array_equal(found["levels"][:, [0, -1]], images[np.asarray(pairs)])
    assert found["levels"].shape == (2, 4, *tiny.SHAPE)
    for between in (found["levels"][:, 1], found["levels"][:, 2]):
        for end in images[np.asarray(pairs)].swapaxes(0, 1):
            assert np.all(np.any(between != end, axis=(1, 2, 3)))
    assert summary["round_trip"]["max"] == pytest.approx(found["error"].max())
    assert (tmp_path / "strip.png").exists()


def test_some_images_of_a_split_keep_their_places_and_noise(tmp_path):
    method, number = ODESampler(solver=FixedGrid(steps=2)), interrupted.NUMBER
    part = {"method": method, "num_images": 3}
    _, some = run(Encoder, tmp_path / "some", 2, indices=(0, 2), **part)
    _, among_all = run(Encoder, tmp_path / "all", 2, method=method, indices=(0, number - 1))
    for name in among_all:
        np.testing.assert_array_equal(some[name], among_all[name])
    _, some = run(Interpolator, tmp_path / "strip", 1, pairs=((0, 2),), **part)
    fields = {"method": method, "pairs": ((0, number - 1),)}
    _, among_all = run(Interpolator, tmp_path / "strips", 1, **fields)
    for name in among_all:
        np.testing.assert_array_equal(some[name], among_all[name])


def test_interpolation_on_two_devices_equals_that_on_one(tmp_path):
    """The batch of one pair is rounded up to the number of devices."""
    command = [sys.executable, interrupted.__file__, "interpolate", tmp_path / "two", "1"]
    support = pathlib.Path(interrupted.__file__).parent
    paths = os.pathsep.join(map(str, (support.parents[1], support)))
    environment = {**os.environ, "PYTHONPATH": paths, "JAX_NUM_CPU_DEVICES": "2"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "devices 2" in done.stdout
    interrupted.interpolate(tmp_path / "one", 1)
    one, two = (np.load(tmp_path / each / "interpolation.npz") for each in ("one", "two"))
    assert set(one) == set(two)
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])


CASES = {
    "encode": (Encoder, {"method": ODESampler(solver=FixedGrid(steps=2)), "indices": (5, 1, 8)}),
    "interpolate": (
        Interpolator,
        {"method": ODESampler(solver=FixedGrid(steps=2)), "pairs": ((0, 1), (2, 3), (5, 4))},
    ),
    "noise in steps": (Sampler, {"method": Ancestral(steps=3), "num_samples": 5}),
    "density": (
        Sampler,
        {
            "method": ODESampler(solver=FixedGrid(steps=2)),
            "num_samples": 5,
            "return_log_prob": True,
        },
    ),
}


@pytest.mark.full_cases("(density|interpolate|noise in steps)")
@pytest.mark.parametrize("case", CASES)
def test_resumed_with_another_batch_size(case, tmp_path, monkeypatch):
    loop, fields = CASES[case]
    _, expected = run(loop, tmp_path / "whole", 3, **fields)
    add = partial_results.PartialResults.add

    def stopping(*arguments):
        add(*arguments)
        raise checks.Preempted("enough")

    with monkeypatch.context() as patch:
        patch.setattr(partial_results.PartialResults, "add", stopping)
        with pytest.raises(checks.Preempted):
            run(loop, tmp_path / "cut", 2, **fields)
    assert list((tmp_path / "cut" / "partial_results").glob("part_*"))
    _, found = run(loop, tmp_path / "cut", 1, **fields)
    assert set(found) == set(expected)
    for name, values in expected.items():
        # A log-density is a sum over pixels, whose rounding depends on the size of the solve.
        tolerance = 1e-5 if name == "log_p" else 0
        np.testing.assert_allclose(found[name], values, rtol=0, atol=tolerance)


def test_samples_with_their_log_density(tmp_path):
    _, fields = CASES["density"]
    summary, found = run(Sampler, tmp_path / "with", 5, **fields)
    _, alone = run(Sampler, tmp_path / "alone", 5, **{**fields, "return_log_prob": False})
    np.testing.assert_array_equal(found["levels"], alone["levels"])
    assert "log_p" not in alone
    assert found["latent"].shape == (5, *tiny.SHAPE)
    assert summary["log_p"]["mean"] == pytest.approx(found["log_p"].mean(), rel=1e-6)
    assert np.ptp(found["log_p"]) > 0


def pictures(folder):
    """Return the pictures of a folder of samples in the order of their names, `[N, H, W, C]`."""
    found = []
    for path in sorted((folder / "samples").iterdir()):
        with Image.open(path) as picture:
            assert (path.name, picture.format) == (f"{len(found):05d}.png", "PNG")
            found.append(np.asarray(picture))
    return np.stack(found).reshape(len(found), *tiny.SHAPE[:2], -1)


def test_pictures_of_samples_are_those_of_the_archive(tmp_path, monkeypatch, capsys):
    _, fields = CASES["noise in steps"]
    _, found = run(Sampler, tmp_path, 3, **fields)
    assert found["arr_0"].dtype == np.uint8
    np.testing.assert_array_equal(pictures(tmp_path), found["arr_0"])
    assert f"Wrote 5 images to {tmp_path / 'samples'}." in capsys.readouterr().out
    # Killed while it writes them: the same command draws nothing anew and writes all of them.
    save, count = Image.Image.save, []

    def killed(*arguments, **options):
        count.append(1)
        return 1 / 0 if len(count) == 3 else save(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", killed)
        with pytest.raises(ZeroDivisionError):
            run(Sampler, tmp_path, 3, **{**fields, "num_samples": 4, "seed": 1})
    assert not (tmp_path / "samples").exists()
    _, found = run(Sampler, tmp_path, 4, **{**fields, "num_samples": 4, "seed": 1})
    assert "Resuming from 4 of 4 images" in capsys.readouterr().out
    np.testing.assert_array_equal(pictures(tmp_path), found["arr_0"])  # and no older fifth one
    assert not (tmp_path / ".samples.partial").exists()
    run(Sampler, tmp_path, 4, **{**fields, "num_samples": 3, "png_files": False})
    assert not (tmp_path / "samples").exists()


@pytest.mark.parametrize("broken", ["write_npz_atomically", "write_json_atomically"])
@pytest.mark.parametrize("loop", FILES)
def test_new_output_never_stands_under_an_earlier_summary(loop, broken, tmp_path, monkeypatch):
    """Although whatever writes it dies before it has written its own."""
    run(loop, tmp_path, 3)

    write = getattr(files, broken)

    def die(path, *content):
        if path.parent == tmp_path:
            raise OSError("full")
        write(path, *content)

    with monkeypatch.context() as patch:
        patch.setattr(files, broken, die)
        with pytest.raises(OSError, match="full"):
            run(loop, tmp_path, 3, seed=1)
    assert not (tmp_path / "summary.json").exists()
    run(loop, tmp_path, 3, seed=1)


def test_other_files_in_place_of_pictures_are_kept(tmp_path):
    _, fields = CASES["noise in steps"]
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "samples.npz").touch()
    with pytest.raises(ValueError, match="other files than such pictures.*`png_files`"):
        run(Sampler, tmp_path, 3, **fields)
    run(Sampler, tmp_path, 3, **{**fields, "num_samples": 2, "png_files": False})
    assert [each.name for each in (tmp_path / "samples").iterdir()] == ["samples.npz"]


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (2, None)])
def test_pictures_have_the_channels_of_the_images(channels, mode, tmp_path, capsys):
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 4, channels), dtype=np.uint8)
    outputs.write_pngs(str(tmp_path), images)
    if mode is None:
        assert "a PNG has 1 or 3 channels, not 2" in capsys.readouterr().out
        assert not list(tmp_path.iterdir())
        return
    with Image.open(tmp_path / "samples" / "00001.png") as picture:
        assert picture.mode == mode
        np.testing.assert_array_equal(np.asarray(picture).reshape(3, 4, channels), images[1])


def test_indices_outside_the_split_raise(tmp_path):
    with pytest.raises(ValueError, match="`indices` must be places in .* 0 to 40, .* got 41"):
        run(Encoder, tmp_path, 2, indices=(0, 41))
    with pytest.raises(ValueError, match="at least one, got none"):
        run(Encoder, tmp_path, 2, indices=())
    with pytest.raises(ValueError, match=r"`pairs` must be places.*got -1\. .*PAIRS="):
        run(Interpolator, tmp_path, 2, pairs=((0, -1),))


def test_lanes_that_no_image_fills_raise():
    given = {"output_dir": "out", "checkpoint_path": "in", "solve_size": 2}
    for kind, most in ((Encoder, 2), (functools.partial(Interpolator, num_points=5), 10)):
        kind(**given, method=ODESampler(lanes=most))
        with pytest.raises(ValueError, match=f"got lanes={most + 1} and solve_size=2.*Lower"):
            kind(**given, method=ODESampler(lanes=most + 1))


def test_sampling_needs_as_many_conditioning_values_as_the_network_takes():
    model = tiny.model(image_shape=tiny.SHAPE)
    made = Sampler(output_dir="out", checkpoint_path="made", conditioning=(0.0, 1.0))
    for attempt in (made.run, made.dry_run):
        with pytest.raises(ValueError, match=r"the 1 numbers .* got \(0.0, 1.0\). None means"):
            attempt(model)


@pytest.mark.full
def test_failed_solves_raise(tmp_path):
    short = ODESampler(solver=DormandPrince(max_steps=1))
    with pytest.raises(checks.NonFiniteError, match="3 of 3 images have no result"):
        run(Encoder, tmp_path, 2, method=short, indices=(0, 1, 2))
    with pytest.raises(checks.NonFiniteError, match="1 of 1 pairs have no result"):
        run(Interpolator, tmp_path, 2, method=short)
    assert not (tmp_path / "partial_results").exists()


def test_sampling_without_an_image_shape_raises(tmp_path):
    with pytest.raises(ValueError, match=r"Sampling needs `DiffusionODE.image_shape`"):
        Sampler(output_dir=str(tmp_path), checkpoint_path="made").run(tiny.model())
