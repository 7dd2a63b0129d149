"""Buckets of S3 and of stores that speak its protocol (s3://), through s3fs and botocore.

`AWS_ENDPOINT_URL` names another store than Amazon's. botocore tries a request six times; s3fs
repeats that once, for answers that break off.
"""

import contextlib
import functools
from typing import Any, ClassVar, final

ANSWER = 30.0
"""Seconds that one try waits for an answer."""
_NOT_MET = ("PreconditionFailed", "412")
_BUSY = ("ConditionalRequestConflict", "409")


@final
class S3:
    """A `buckets.Store` whose versions are ETags: the content must differ for them to differ."""

    package, extra = "s3fs", "s3"
    bucket = r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"
    rule = "3 to 63 lower-case letters, digits, '-' and '.'"
    way_out = "in AWS_PROFILE, or in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    one_by_one: ClassVar[dict[str, Any]] = {"max_concurrency": 1}

    def filesystem(self) -> Any:
        """Return the file system of fsspec."""
        _prepare()
        import fsspec

        return fsspec.filesystem("s3")

    def endpoint(self) -> tuple[str, str] | None:
        """Return address and region of another store than Amazon's, None for Amazon's."""
        store = self.filesystem()
        store.connect()
        found = store.s3.meta
        address = found.endpoint_url.rstrip("/")
        is_amazons = address.endswith((".amazonaws.com", ".amazonaws.com.cn"))
        is_amazons &= ".vpce." not in address  # in a network without a way to the public one
        return None if is_amazons else (found.endpoint_url, found.region_name or "us-east-1")

    def identity(self) -> str:
        """Return in whose name the store is asked, as far as the libraries say."""
        import botocore.session

        with contextlib.suppress(Exception):  # botocore's errors are of many types
            found = botocore.session.get_session().get_credentials()
            if found is not None:
                return f"the access key {found.access_key} (found by {found.method})"
        return "an anonymous user (no credentials were found)"

    def is_refusal(self, error: Exception) -> bool:
        """Return True for 401, 403, and keys that are wrong or missing."""
        is_of_keys = "Credential" in type(error).__name__ or "Token" in type(error).__name__
        is_of_keys &= type(error).__module__.startswith("botocore")
        return is_of_keys or isinstance(error, PermissionError) or _code(error) == "401"

    def version(self, info: dict[str, Any]) -> str:
        """Return the ETag."""
        return str(info["ETag"])

    def changed(self, info: dict[str, Any]) -> str:
        """Return the time of the last change."""
        return str(info.get("LastModified"))

    def write(self, bucket: str, key: str, data: bytes, expected: str) -> str:
        """Write an object if its ETag is `expected`, 0 for none; return the new one."""
        condition = {"IfNoneMatch": "*"} if expected == "0" else {"IfMatch": expected}
        found = self._ask("put_object", Bucket=bucket, Key=key, Body=data, **condition)
        return str(found["ETag"])

    def delete(self, bucket: str, key: str, expected: str) -> None:
        """Delete an object if its ETag is `expected`."""
        self._ask("delete_object", Bucket=bucket, Key=key, IfMatch=expected)

    def _ask(self, method: str, **request: Any) -> Any:
        """Return an answer, at a busy object after a few tries.

        Raises:
            FileExistsError: if a condition is not met.
        """
        store, tries = self.filesystem(), iter(range(5))
        while True:
            try:
                return store.call_s3(method, **request)
            except FileNotFoundError as error:
                if "IfMatch" not in request or _code(error) == "NoSuchBucket":
                    raise
                raise FileExistsError(f"{request['Key']} has been removed") from None
            except OSError as error:
                if _code(error) in _NOT_MET:
                    raise FileExistsError(str(error)) from error
                if _code(error) not in _BUSY or next(tries, None) is None:
                    raise


def _code(error: BaseException) -> str:
    """Return the error code of an answer, "" without one."""
    while error.__cause__ is not None:
        error = error.__cause__
    answer = getattr(error, "response", None) or {}  # None where a connection broke
    return str(answer.get("Error", {}).get("Code", ""))


@functools.cache
def _prepare() -> None:
    """Let every look at a bucket see what others have written, and wait for no answer for ever.

    That goes for the instances of orbax, of epath and of others in this process, too.
    """
    import fsspec
    import s3fs

    class FileSystem(s3fs.S3FileSystem):  # type: ignore[misc]
        """s3fs that waits for no `100-continue`, as aiohttp does without a limit, and that raises
        the errors of a deletion.
        """

        retries = 2

        async def _call_s3(self, method: str, *args: Any, **kwargs: Any) -> Any:
            found = await super()._call_s3(method, *args, **kwargs)
            if method == "delete_objects" and (failed := found.get("Errors")):
                kind = PermissionError if failed[0]["Code"] == "AccessDenied" else OSError
                raise kind(f"{failed[0]['Key']}: {failed[0].get('Message', failed[0]['Code'])}")
            return found

        async def set_session(self, *args: Any, **kwargs: Any) -> Any:
            client = await super().set_session(*args, **kwargs)
            client.meta.events.register_last("before-call.s3", _at_once, unique_id="at-once")
            return client

    fsspec.register_implementation("s3", FileSystem, clobber=True)
    settings = fsspec.config.conf.setdefault("s3", {})
    settings.setdefault("use_listings_cache", False)
    limits = {
        "connect_timeout": ANSWER,
        "read_timeout": ANSWER,
        "retries": {"mode": "legacy", "total_max_attempts": 6},
    }
    settings.setdefault("config_kwargs", limits)


def _at_once(params: dict[str, Any], **_: Any) -> None:
    params["headers"].pop("Expect", None)
