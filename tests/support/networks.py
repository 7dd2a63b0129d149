"""A proxy on this machine that does to requests what networks and overloaded stores do."""

import collections
import contextlib
import dataclasses
import functools
import http.client
import http.server
import json
import random
import threading
import time
import urllib.parse

KINDS = ("drop", "cut", "delay", "lose the answer", 429, 500, 503)


@dataclasses.dataclass
class Network:
    """Disturbs a share of all requests and counts them by kind.

    Args:
        random: draws the requests and what happens to them.
        share: of requests that are disturbed.
        gone: "" answers; "refused" ends every connection; "silent" leaves it without an answer.
    """

    random: random.Random
    share: float = 0.0
    gone: str = ""
    kinds: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    _lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def next(self):
        """Return what happens to the next request, None for nothing."""
        with self._lock:
            if self.random.random() >= self.share:
                return None
            kind = self.random.choice(KINDS)
            self.kinds[kind] += 1
            return kind

    def asked(self, command, path):
        """Note a request before it is passed on."""

    def acknowledged(self, name, upload):
        """Note an object whose writer knows that it is written."""


class _Proxy(http.server.BaseHTTPRequestHandler):
    def __init__(self, network, target, *arguments):
        self._network, self._target = network, target
        super().__init__(*arguments)

    def do_GET(self):
        self.close_connection = True
        self._network.asked(self.command, self.path)
        while self._network.gone == "silent":
            time.sleep(0.1)
        if not self._network.gone:
            self._pass_on(self._network.next())

    do_HEAD = do_PUT = do_POST = do_DELETE = do_PATCH = do_GET

    def _pass_on(self, kind):
        length = int(self.headers.get("Content-Length", 0))
        if kind == "drop":
            return
        if kind == "cut":
            self._forward(self.rfile.read(length // 2)).close()
            return
        body = self.rfile.read(length)
        if isinstance(kind, int):
            self.send_response(kind)
            self.end_headers()
            return
        if kind == "delay":
            time.sleep(0.5)
        with contextlib.closing(self._forward(body)) as connection:
            answer = connection.getresponse()
            content = answer.read()
        # The emulator forgets an upload in parts that is complete; the store itself does not.
        if kind == "lose the answer" and "upload_id=" not in self.path:
            return
        self._answer(answer, content)
        if self.command in ("POST", "PUT") and answer.status == 200:
            self._network.acknowledged(self._written(content), body)

    def _written(self, content):
        """Return the name of the object: Google's answer holds it, S3's path is it."""
        if content[:1] == b"{":
            return json.loads(content).get("name", "")
        return urllib.parse.unquote(self.path).partition("?")[0].split("/", 2)[-1]

    def _forward(self, body):
        connection = http.client.HTTPConnection(self._target, timeout=60)
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        return connection

    def _answer(self, answer, content):
        self.send_response(answer.status)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else len(content)
        for name, value in answer.getheaders():
            if name.lower() not in ("content-length", "transfer-encoding", "server", "date"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        with contextlib.suppress(OSError):  # whoever asked has been killed
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def served(kind, handler):
    """Serve on a port of this machine, in a thread; the address."""
    server = kind(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def between(network, target):
    """Serve a proxy for the address `target`; its own address."""
    handler = functools.partial(_Proxy, network, target.removeprefix("http://"))
    with served(http.server.ThreadingHTTPServer, handler) as own:
        try:
            yield own
        finally:
            network.gone = "refused"
