"""A network that drops, delays and cuts requests, and a store that answers 429, 500 and 503."""

import pytest
import tiny
import tiny_runs

from idode_gin.checkpoints import files
from idode_gin.reports import buckets, paths


@pytest.mark.full
def test_a_run_ends_as_without_disturbances(network, root, tmp_path, monkeypatch):
    tiny.use_tiny_data(monkeypatch)
    here, there = tmp_path / "run", paths.of(f"{root}/run")
    network.share = 0.04
    for folder in (here, there):
        tiny_runs.run(folder, 3)
        tiny_runs.run(folder, 6)
    network.share = 0.0
    assert sum(network.kinds.values()) >= 20
    assert len(network.kinds) == 7, network.kinds
    assert tiny_runs.outcome(there) == tiny_runs.outcome(here)
    assert files.saved_steps(there) == files.saved_steps(here)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (401, "was refused to {}"),
        (403, "was refused to {}"),
        (400, "cannot be reached"),
    ],
)
def test_a_refusal_names_the_identity(network, store, root, code, words, monkeypatch):
    monkeypatch.setattr(network, "next", lambda: code)
    path, words = paths.of(f"{root}/run/a"), words.format(store.IDENTITY)
    for act in (path.exists, path.read_bytes, path.is_dir, lambda: path.write_bytes(b"")):
        with pytest.raises(paths.StoreError, match=f"^{root}/run/a {words}") as caught:
            act()
        assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("network")
def test_a_bucket_that_is_not_there(store):
    path = paths.of(f"{store.SCHEME}missing/run/a")
    assert not path.exists()
    refusal = f"there is no bucket 'missing', or {store.IDENTITY}"
    with pytest.raises(paths.StoreError, match=refusal):
        path.write_bytes(b"")
    for version in (buckets.NO_VERSION, "1"):
        with pytest.raises(paths.StoreError, match=refusal):
            path.write_version(b"", version)
