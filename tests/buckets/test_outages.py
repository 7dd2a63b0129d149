"""A network that drops, delays and cuts requests, and a store that answers 429, 500 and 503."""

from importlib.util import find_spec

import pytest
import tiny
import tiny_runs

from idode_gin.checkpoints import files, reading
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


@pytest.mark.skipif(find_spec("s3fs") is None, reason="not installed: s3fs")
@pytest.mark.parametrize("store", ["moto_s3"], indirect=True)
def test_a_deletion_that_is_refused_or_fails_is_raised(bucket, monkeypatch):
    """S3 answers 200 to a request that deletes several objects, and lists those that it kept."""
    import s3fs

    (bucket / "a").write_bytes(b"")
    call, errors = s3fs.S3FileSystem._call_s3, []

    async def answer(store, method, *args, **request):
        return (
            errors[0] if method == "delete_objects" else await call(store, method, *args, **request)
        )

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", answer)
    for code, words in (("AccessDenied", "was refused to"), ("InternalError", "cannot be reached")):
        errors[:] = [{"Errors": [{"Key": "a", "Code": code, "Message": "…"}]}]
        with pytest.raises(paths.StoreError, match=words):
            (bucket / "a").unlink()
    assert (bucket / "a").exists()


@pytest.mark.parametrize(
    ("words", "is_outage"),
    [
        ("ExpiredToken: The provided token has expired. [http_response_code='400']", True),
        ("AccessDenied: Access Denied [http_response_code='403']", True),
        ("UNAVAILABLE: [http_response_code='503']", True),
        ("NOT_FOUND: The specified key does not exist. [http_response_code='404']", False),
        ("DATA_LOSS: Error decoding the manifest", False),
    ],
)
@pytest.mark.parametrize("place", ["gs://bucket/run", "s3://bucket/run"])
def test_an_answer_of_the_store_is_no_damage(place, words, is_outage):
    assert reading._is_outage(paths.of(place), ValueError(words)) == is_outage
    assert not reading._is_outage(paths.of("run"), ValueError(words))
