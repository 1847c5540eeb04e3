"""A web server in a namespace."""

import contextlib
import http.server
import ssl
import threading
from collections.abc import Iterator

from .kernel import listen, pattern
from .netns import Netns

__all__ = ["DATA", "serving"]

DATA = pattern(1 << 20)


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves DATA, and says back what is sent to it."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer(DATA if self.path == "/data" else str(self.headers).encode())

    def do_POST(self) -> None:
        self.answer(self.rfile.read(int(self.headers["Content-Length"])))

    def answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@contextlib.contextmanager
def serving(netns: Netns, family: int, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """Serve in the namespace; the port's number."""
    server = http.server.ThreadingHTTPServer(("", 0), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listen(netns, family)
    number = server.socket.getsockname()[1]
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield number
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
