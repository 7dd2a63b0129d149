"""Buckets of Google Cloud Storage (gs://), through gcsfs, which tries a request six times."""

import contextlib
import functools
import logging
import os
from typing import Any, ClassVar, final

ANSWER = 40.0
"""Seconds that one try waits for an answer."""
_REFUSED = (401, "401", 403, "403")


@final
class GoogleStorage:
    """A `buckets.Store` whose versions are generations."""

    package, extra = "gcsfs", "gcs"
    bucket = r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]"
    rule = "3 or more lower-case letters, digits, '-', '_' and '.'"
    way_out = "in GOOGLE_APPLICATION_CREDENTIALS"
    one_by_one: ClassVar[dict[str, Any]] = {}

    def filesystem(self) -> Any:
        """Return the file system of fsspec."""
        _prepare()
        import fsspec

        return fsspec.filesystem("gcs")

    def identity(self) -> str:
        """Return in whose name the store is asked, as far as the libraries say."""
        with contextlib.suppress(Exception):  # google.auth's errors are of many types
            found = self.filesystem().credentials.credentials
            if found is None:
                return "an anonymous user (no credentials were found)"
            for name in ("service_account_email", "signer_email", "account"):
                if email := getattr(found, name, None):
                    return str(email)
        file = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
        return f"the identity of {file}" if file else "the default identity of this machine"

    def is_refusal(self, error: Exception) -> bool:
        """Return True for 401, 403 and errors of the credentials."""
        is_forbidden = str(error).startswith("Forbidden: ")
        is_forbidden |= getattr(error, "code", None) in _REFUSED
        return is_forbidden or type(error).__module__.startswith("google.auth")

    def version(self, info: dict[str, Any]) -> str:
        """Return the generation."""
        return str(info["generation"])

    def changed(self, info: dict[str, Any]) -> str:
        """Return the time of the last change."""
        return str(info.get("updated"))

    def write(self, bucket: str, key: str, data: bytes, expected: str) -> str:
        """Write an object if its generation is `expected`, 0 for none; return the new one."""
        store = self.filesystem()
        found = store.call(
            "POST",
            store.base.replace("/storage/v1/", "/upload/storage/v1/") + "b/{}/o",
            bucket,
            uploadType="media",
            name=key,
            ifGenerationMatch=expected,
            data=data,
            headers={"Content-Type": "application/octet-stream"},
            json_out=True,
        )
        return str(found["generation"])

    def delete(self, bucket: str, key: str, expected: str) -> None:
        """Delete an object if its generation is `expected`."""
        self.filesystem().call("DELETE", "b/{}/o/{}", bucket, key, ifGenerationMatch=expected)


@functools.cache
def _prepare() -> None:
    """Let every look at a bucket see what others have written, and wait for no answer for ever.

    That goes for orbax's instances, too. The time for an answer begins when the request is sent, so
    that it limits no upload. gcsfs logs tracebacks of the errors that it raises; they are left out.
    """
    import aiohttp
    import fsspec

    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    limits = aiohttp.ClientTimeout(total=None, sock_connect=ANSWER, sock_read=ANSWER)
    for protocol in ("gs", "gcs"):
        settings = fsspec.config.conf.setdefault(protocol, {})
        settings.setdefault("use_listings_cache", False)
        settings.setdefault("requests_timeout", limits)
