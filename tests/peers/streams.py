"""The peer of a ``stream`` or ``socket`` netdev: frames with a four-byte length prefix."""

import socket
import struct


def receive_frame(sock: socket.socket) -> bytes:
    """Return the next frame. Raises EOFError at the end, TimeoutError as the socket says."""
    (length,) = struct.unpack("!I", _exactly(sock, 4))
    return _exactly(sock, length)


def send_frame(sock: socket.socket, frame: bytes) -> None:
    """Send one frame."""
    sock.sendall(struct.pack("!I", len(frame)) + frame)


def _exactly(sock: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        chunk = sock.recv(length - len(data))
        if not chunk:
            raise EOFError("the other end hung up")
        data += chunk
    return data
