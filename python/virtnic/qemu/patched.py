"""Libraries that replace Python's threads, which virtnic needs."""

from __future__ import annotations

import sys

__all__ = ["check"]

#: How to ask a library, and the modules of the standard library that must be unpatched. gevent's
#: sockets are allowed: they work from any thread, unlike eventlet's.
_LIBRARIES = (
    ("gevent", "gevent.monkey", "is_module_patched", ("threading", "select")),
    ("eventlet", "eventlet.patcher", "is_monkey_patched", ("os", "thread", "select", "socket")),
)
_HINTS = {
    "gevent": "call monkey.patch_all(thread=False, select=False), and wait for frames with "
    "gevent.socket.wait_read(port.fileno()) instead of recv(), which blocks all greenlets",
    "eventlet": "call eventlet.monkey_patch(os=False, thread=False, select=False, socket=False)",
}


def check() -> None:
    """Raise RuntimeError if threads are replaced: waiting in one would block the program."""
    for library, module, question, needed in _LIBRARIES:
        asked = getattr(sys.modules.get(module), question, None)
        if asked is None:
            continue
        patched = [name for name in needed if asked(name)]
        if patched:
            raise RuntimeError(
                f"{library} has replaced Python's {' and '.join(patched)}, so virtnic cannot talk "
                f"to QEMU in a thread of its own; {_HINTS[library]}; or "
                "use virtnic in a process of its own"
            )
