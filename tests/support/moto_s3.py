"""An emulator of S3 on this machine, for the real client libraries.

moto keeps its buckets in this process. One request at a time is answered, so that a condition and
its write are not separated. For a network in between see `networks`.
"""

import contextlib
import io
import threading

import networks
from moto.moto_server import werkzeug_app
from werkzeug import serving, test

SCHEME, PROTOCOL, BUCKET = "s3://", "s3", "bucket"
IDENTITY = r"the access key an-access-key \(found by env\)"


class _Handler(werkzeug_app.MotoRequestHandler):
    def log(self, *_, **__):
        pass


class _OneAtATime:
    """The emulator as an application of WSGI; of an upload that was cut it keeps nothing."""

    def __init__(self):
        self._application = werkzeug_app.DomainDispatcherApplication(
            werkzeug_app.create_backend_app
        )
        self._lock = threading.Lock()

    def __call__(self, environ, start):
        length = int(environ.get("CONTENT_LENGTH") or 0)
        body = environ["wsgi.input"].read(length) if length else b""
        if len(body) < length:
            start("400 Bad Request", [])
            return []
        with self._lock:
            answer = self._application({**environ, "wsgi.input": io.BytesIO(body)}, start)
            return [b"".join(answer)]


@contextlib.contextmanager
def running():
    """Start the emulator with an empty bucket; its address."""
    application = _OneAtATime()
    client = test.Client(application)
    client.post("/moto-api/reset")
    assert client.put(f"/{BUCKET}").status_code == 200

    def served(where, handler):
        return serving.make_server(*where, application, threaded=True, request_handler=handler)

    with networks.served(served, _Handler) as address:
        yield address


def variables(address):
    """Environment with which the client libraries speak to the emulator alone."""
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "an-access-key",
        "AWS_SECRET_ACCESS_KEY": "a-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    }
