"""An emulator of Google Cloud Storage on this machine, for the real client libraries.

gcp-storage-emulator ignores preconditions on generations, on which the lock of a run and the arrays
of tensorstore stand, and does not send them with an object; both are added here. It answers one
request at a time, so a check and its write are not separated. For a network in between see
`networks`.
"""

import contextlib
import functools
import http.server
import io
import urllib.parse

import networks
from gcp_storage_emulator import server as emulator
from gcp_storage_emulator import storage as emulator_storage
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import buckets

SCHEME, PROTOCOL, BUCKET = "gs://", "gcs", "bucket"
IDENTITY = "an anonymous user"


class _Handler(emulator.RequestHandler):
    def do_GET(self):
        self._answer(super().do_GET)

    def do_PUT(self):
        self._answer(super().do_PUT)

    def do_POST(self):
        self._answer(super().do_POST)

    def do_DELETE(self):
        self._answer(super().do_DELETE)

    def _answer(self, answer):
        self.close_connection = True
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        self.rfile = io.BytesIO(body)
        if len(body) < length:  # of an upload that was cut the store keeps nothing
            return
        if f"/b/{BUCKET}" not in self.path:
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
def running():
    """Start the emulator with an empty bucket; its address."""
    store = emulator_storage.Storage(use_memory_fs=True)
    buckets.create_bucket(BUCKET, store)
    with networks.served(http.server.HTTPServer, functools.partial(_Handler, store)) as address:
        yield address


def variables(address):
    """Environment with which the client libraries speak to the emulator alone."""
    return {
        "STORAGE_EMULATOR_HOST": address,
        "TENSORSTORE_GCS_HTTP_URL": address,
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # it asks Google for the kind of a bucket
        "NO_GCE_CHECK": "true",
    }
