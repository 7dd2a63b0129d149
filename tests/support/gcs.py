"""An emulator of Google Cloud Storage on this machine, for the real client libraries.

gcp-storage-emulator ignores preconditions on generations, on which the lock of a run stands; they
are added here. It answers one request at a time, so a check and its write are not separated.
"""

import contextlib
import functools
import http.server
import json
import threading
import urllib.parse

from gcp_storage_emulator import server as emulator
from gcp_storage_emulator import storage as emulator_storage
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import buckets

BUCKET = "bucket"


class _Handler(emulator.RequestHandler):
    def do_POST(self):
        if self._is_met():
            super().do_POST()

    def do_DELETE(self):
        if self._is_met():
            super().do_DELETE()

    def _is_met(self):
        address = urllib.parse.urlsplit(self.path)
        query = urllib.parse.parse_qs(address.query)
        if "ifGenerationMatch" not in query:
            return True
        name = query.get("name", [urllib.parse.unquote(address.path.partition("/o/")[2])])[0]
        try:
            found = self.storage.get_file_obj(BUCKET, name)["generation"]
        except NotFound:
            found = "0"
        if query["ifGenerationMatch"] == [found]:
            return True
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(412)
        self.end_headers()
        self.wfile.write(json.dumps({"error": {"code": 412, "message": "condition"}}).encode())
        return False

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def running():
    """Start the emulator with an empty bucket; its address."""
    store = emulator_storage.Storage(use_memory_fs=True)
    buckets.create_bucket(BUCKET, store)
    served = http.server.HTTPServer(("127.0.0.1", 0), functools.partial(_Handler, store))
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
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks Google for the kind of each bucket
    }
