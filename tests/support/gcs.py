"""An emulator of Google Cloud Storage on this machine, for the real client libraries.

gcp-storage-emulator ignores preconditions on generations, on which the lock of a run and the arrays
of tensorstore stand, and does not send them with an object; both are added here. It answers one
request at a time, so a check and its write are not separated.
"""

import collections
import contextlib
import dataclasses
import functools
import http.server
import io
import random
import threading
import time
import urllib.parse

from gcp_storage_emulator import server as emulator
from gcp_storage_emulator import storage as emulator_storage
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import buckets

BUCKET = "bucket"


@dataclasses.dataclass
class Trouble:
    """Disturbs a share of all requests; counts them by kind."""

    random: random.Random
    share: float
    kinds: collections.Counter = dataclasses.field(default_factory=collections.Counter)

    def next(self):
        if self.random.random() >= self.share:
            return None
        kind = self.random.choice(["drop", "cut", "delay", "lose the answer", 429, 500, 503])
        self.kinds[kind] += 1
        return kind


class _Handler(emulator.RequestHandler):
    trouble: Trouble | None = None

    def do_GET(self):
        self._answer(super().do_GET)

    def do_PUT(self):
        self._answer(super().do_PUT)

    def do_POST(self):
        self._answer(super().do_POST)

    def do_DELETE(self):
        self._answer(super().do_DELETE)

    def _answer(self, answer):
        kind = None if self.trouble is None else self.trouble.next()
        length = int(self.headers.get("Content-Length", 0))
        self.close_connection = True
        if kind == "drop":
            return
        if kind == "cut":
            self.rfile.read(length // 2)
            return
        if isinstance(kind, int):
            self.rfile.read(length)
            self.send_response(kind)
            self.end_headers()
            return
        if kind == "delay":
            time.sleep(0.5)
        # The emulator forgets an upload in parts that is complete; the store itself does not.
        if kind == "lose the answer" and "upload_id=" not in self.path:
            self.wfile = io.BytesIO()
        if f"/b/{BUCKET}" not in self.path:
            self.rfile.read(length)
            self.send_error(404)
        elif self._is_met():
            answer()

    def end_headers(self):
        if self.command == "GET" and (found := self._generation()) != "0":
            self.send_header("x-goog-generation", found)
        super().end_headers()

    def _is_met(self):
        query = self._query()
        same, other = (query.get(f"ifGeneration{each}") for each in ("Match", "NotMatch"))
        found = [self._generation()]
        if same in (None, found) and other != found:
            return True
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(304 if self.command == "GET" and other else 412)
        super().end_headers()
        return False

    def _query(self):
        return urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)

    def _generation(self):
        """Return the generation of the object that a request is about, "0" without one."""
        inside = urllib.parse.urlsplit(self.path).path.partition("/o/")[2]
        name = self._query().get("name", [urllib.parse.unquote(inside)])[0]
        try:
            return self.storage.get_file_obj(BUCKET, name)["generation"]
        except NotFound:
            return "0"

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def running(trouble=None):
    """Start the emulator with an empty bucket; its address."""
    handler = type("Handler", (_Handler,), {"trouble": trouble})
    store = emulator_storage.Storage(use_memory_fs=True)
    buckets.create_bucket(BUCKET, store)
    served = http.server.HTTPServer(("127.0.0.1", 0), functools.partial(handler, store))
    thread = threading.Thread(target=served.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{served.server_port}"
    finally:
        served.shutdown()
        served.server_close()
        thread.join()


def variables(address):
    """Environment with which the client libraries speak to the emulator alone."""
    return {
        "STORAGE_EMULATOR_HOST": address,
        "TENSORSTORE_GCS_HTTP_URL": address,
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # it asks Google for the kind of a bucket
        "NO_GCE_CHECK": "true",
    }
