"""The doctor: what is right passes, and every kind of fault is found with its fix."""

import json
import pathlib
import socket

import numpy as np
import pytest

from idode_gin import doctor
from idode_gin.feed import image_fingerprints


@pytest.fixture(autouse=True)
def _surroundings(tmp_path, monkeypatch):
    monkeypatch.setenv("IDODE_CACHE_DIR", str(tmp_path / "images"))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def prepared(root):
    folder = root / "cifar10" / "3.0.2"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text("{}")
    known = image_fingerprints.fingerprint(np.zeros((2, 4, 4, 3), np.uint8))
    (folder / "fingerprint.json").write_text(json.dumps({"train": known.as_dict()}))
    return folder, known


def test_nothing_to_fix(tmp_path, capsys):
    _, known = prepared(tmp_path / "data")
    with socket.create_server(("localhost", 0)) as server:
        address = f"localhost:{server.getsockname()[1]}"
        arguments = [f"--tfds_data_dir={tmp_path / 'data'}", f"--coordinator_address={address}"]
        assert doctor.main(arguments) == 0, capsys.readouterr().out
    out = capsys.readouterr().out
    for shown in ("jaxlib", "tensorflow-datasets", "gin-config", "cpu", f"{address} answers"):
        assert shown in out
    assert f"train: 2 images of 4x4x3, sha256 {known.sha256[:12]}" in out
    assert not (tmp_path / "images").exists()  # it makes nothing
    assert out.endswith("Nothing to fix.\n")


def test_a_fix_follows_every_fault_and_the_exit_code_is_one(tmp_path, capsys):
    (tmp_path / "file").touch()
    with socket.create_server(("localhost", 0)) as server:
        closed = server.getsockname()[1]
    arguments = [f"--compilation_cache_dir={tmp_path / 'file'}", "--tfds_data_dir=/absent"]
    assert doctor.main([*arguments, f"--coordinator_address=localhost:{closed}"]) == 1
    lines = capsys.readouterr().out.splitlines()
    faults = [number for number, line in enumerate(lines) if line.startswith("FIX ")]
    assert [lines[n].split()[1] for n in faults] == ["compilation", "data", "coordinator"]
    assert all(lines[n + 1].strip().startswith("-> ") for n in faults)
    assert lines[-1] == "3 to fix."


def test_a_backend_that_is_not_installed_is_named(monkeypatch):
    import jax

    def fail():
        raise RuntimeError("Unknown backend: 'cuda'\nmore")

    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr(jax, "devices", fail)
    found = doctor.devices()
    assert "JAX_PLATFORMS=cuda names a backend that is not installed" in found.text
    assert "\n" not in found.text
    assert "unset JAX_PLATFORMS" in found.fix


def test_a_wrong_version_and_a_missing_package_are_found(monkeypatch):
    actual = doctor.metadata.version

    def version(name):
        if name == "optax":
            raise doctor.metadata.PackageNotFoundError
        return "0.1" if name == "flax" else actual(name)

    monkeypatch.setattr(doctor.metadata, "version", version)
    fixes = {each.name: each.fix for each in doctor.versions() if each.fix}
    assert fixes.keys() == {"flax", "optax"}
    assert fixes["flax"].startswith("pip install 'flax>=")


def test_what_preparing_did_is_shown_and_is_no_damage(tmp_path, capsys):
    folder, _ = prepared(tmp_path / "a_long_name_of_a_folder")
    record = json.loads((folder / "fingerprint.json").read_text())
    changes = {image_fingerprints.RESIZING: "reduced", image_fingerprints.SPLITTING: "by hash"}
    (folder / "fingerprint.json").write_text(json.dumps(record | changes))
    assert doctor.main([f"--tfds_data_dir={tmp_path}"]) == 0, capsys.readouterr().out
    shown = capsys.readouterr().out
    assert "a_long_name_of_a_folder/cifar10/3.0.2 train: 2 images of 4x4x3, sha256 " in shown
    assert shown.count("; reduced; by hash\n") == 1


def test_a_damaged_fingerprint_and_data_without_one(tmp_path):
    folder, _ = prepared(tmp_path)
    (folder / "fingerprint.json").write_text('{"train": {"num_images"')
    other = tmp_path / "mnist" / "plain" / "1.0.0"
    other.mkdir(parents=True)
    (other / "dataset_info.json").write_text("{}")
    damaged, plain = doctor.datasets(str(tmp_path), tmp_path)
    assert "is damaged" in damaged.text
    assert "prepare it" in damaged.fix
    assert plain.name == "mnist/plain/1.0.0"
    assert not plain.fix


def test_what_preparing_has_not_finished_is_no_dataset(tmp_path):
    prepared(tmp_path / ".preparing.cifar10.3.0.2")
    (finding,) = doctor.datasets(str(tmp_path), tmp_path)
    assert finding.text == f"{tmp_path} holds no dataset"


def test_a_home_folder_that_does_not_exist_is_a_fault(capsys):
    assert doctor.main(["--tfds_data_dir=~nobodyx/data"]) == 1
    assert "FIX data                  ~nobodyx/data is no folder" in capsys.readouterr().out


def test_no_home(monkeypatch):
    def fail():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("IDODE_CACHE_DIR")
    monkeypatch.setattr(pathlib.Path, "home", fail)
    assert "HOME" in {each.name for each in doctor.findings(None, None, None) if each.fix}


def test_a_cache_that_cannot_be_used_is_the_fault(monkeypatch):
    monkeypatch.setenv("IDODE_CACHE_DIR", "gs://bucket/cache")
    faults = {each.name: each for each in doctor.findings(None, None, None) if each.fix}
    assert "HOME" not in faults
    assert "IDODE_CACHE_DIR" in faults["image cache"].text


@pytest.mark.parametrize("address", ["localhost", "localhost:x", ":12", ""])
def test_an_address_without_host_or_port_is_explained(address):
    assert "HOST:PORT" in doctor.coordinator(address).fix


def test_little_free_space_is_found(monkeypatch):
    usage = doctor.shutil.disk_usage(".")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage._replace(free=2**20))
    (found,) = doctor.free_disk([".", "absent/folder"])
    assert found.text.startswith("0.0 GiB at ")
    assert found.fix
