"""A backend that jax cannot start is an error of configuration."""

import os
import subprocess
import sys
import types

import jax
import pytest

from idode_gin.devices import backends


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (AssertionError(), "it is not installed, or finds no device. Install"),
        (RuntimeError("Unable to initialize backend 'tpu': busy\nmore"), "'tpu': busy. Install"),
    ],
)
def test_reason_and_way_out(error, reason, monkeypatch):
    def fail():
        raise error

    monkeypatch.setattr(jax, "devices", fail)
    with pytest.raises(ValueError, match="set JAX_PLATFORMS=cpu") as caught:
        backends.start()
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("platform", "kind", "count", "processes", "shown"),
    [
        ("gpu", "NVIDIA H100", 8, 2, "8 x NVIDIA H100 (gpu), 2 processes, jax "),
        ("cpu", "cpu", 1, 1, "1 x cpu, 1 process, jax "),
    ],
)
def test_devices_are_described(platform, kind, count, processes, shown, monkeypatch):
    device = types.SimpleNamespace(platform=platform, device_kind=kind)
    monkeypatch.setattr(jax, "devices", lambda: count * [device])
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    found = {"platform": platform, "kind": kind, "count": count, "processes": processes}
    assert backends.facts() == {**found, "jax": jax.__version__}
    assert backends.described() == shown + jax.__version__


SAMPLE = ["idode_gin.sample", "--gin_file=gin_configs/experiments/digits_sample.gin"]
CONVERT = ["idode_gin.interop.convert", "--source=a", "--output=b"]


@pytest.mark.parametrize(
    ("platform", "program"), [("rocm", SAMPLE), ("no_such_backend", SAMPLE), ("rocm", CONVERT)]
)
def test_a_program_ends_in_2_and_a_line(platform, program, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", *program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.getcwd(), "JAX_PLATFORMS": platform},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: jax cannot use JAX_PLATFORMS={platform}: ")
    assert done.stderr.count("\n") <= 2
    assert not list(tmp_path.iterdir())
