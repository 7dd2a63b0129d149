"""A network that drops, delays and cuts requests, and a store that answers 429, 500 and 503."""

import pytest
import tiny
import tiny_runs

from idode_gin.checkpoints import files
from idode_gin.reports import buckets, paths


@pytest.mark.full
def test_a_run_ends_as_without_disturbances(network, tmp_path, monkeypatch):
    tiny.use_tiny_data(monkeypatch)
    here, there = tmp_path / "run", paths.of("gs://bucket/run")
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
        (401, "was refused to an anonymous user"),
        (403, "was refused to an anonymous user"),
        (400, "cannot be reached"),
    ],
)
def test_a_refusal_names_the_identity(network, code, words, monkeypatch):
    monkeypatch.setattr(network, "next", lambda: code)
    path = paths.of("gs://bucket/run/a")
    for act in (path.exists, path.read_bytes, path.is_dir, lambda: path.write_bytes(b"")):
        with pytest.raises(paths.StoreError, match=f"^gs://bucket/run/a {words}") as caught:
            act()
        assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("network")
def test_a_bucket_that_is_not_there():
    assert not paths.of("gs://missing/run").exists()
    with pytest.raises(
        paths.StoreError, match="there is no bucket 'missing', or an anonymous user"
    ):
        paths.of("gs://missing/run/a").write_bytes(b"")
    with pytest.raises(
        paths.StoreError, match="there is no bucket 'missing', or an anonymous user"
    ):
        buckets.BucketPath("gs://missing/run/a").write_version(b"", "0")
