"""A self-signed certificate, for TLS on both sides."""

import ssl
import subprocess
from pathlib import Path

__all__ = ["Certificate"]

NAME = "peer.test"


class Certificate:
    """A self-signed certificate for ``peer.test``."""

    name = NAME

    def __init__(self, directory: Path) -> None:
        """Make it, with openssl(1)."""
        self._key, self._file = directory / "key.pem", directory / "certificate.pem"
        request = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
        naming = f"-subj /CN={NAME} -addext subjectAltName=DNS:{NAME}"
        files = ["-keyout", str(self._key), "-out", str(self._file)]
        command = ["openssl", *request.split(), *naming.split(), *files]
        subprocess.run(command, check=True, capture_output=True)

    def server(self) -> ssl.SSLContext:
        """Return a server's context that presents it."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._file, self._key)
        return context

    def client(self) -> ssl.SSLContext:
        """Return a client's context that trusts it."""
        return ssl.create_default_context(cafile=str(self._file))
