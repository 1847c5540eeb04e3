"""Libraries that replace Python's threads, and with them the one that talks to QEMU."""

from __future__ import annotations

import sys

__all__ = ["check"]

#: How a library is asked, and which of the standard library's modules have to be Python's own.
#: Not gevent's sockets: they work from any thread, and eventlet's do not.
_LIBRARIES = (
    ("gevent", "gevent.monkey", "is_module_patched", ("threading", "select")),
    ("eventlet", "eventlet.patcher", "is_monkey_patched", ("os", "thread", "select", "socket")),
)
_HINTS = {
    "gevent": "call monkey.patch_all(thread=False, select=False), and wait for frames with "
    "gevent.socket.wait_read(port.fileno()) and not in recv(), which stops every greenlet",
    "eventlet": "call eventlet.monkey_patch(os=False, thread=False, select=False, socket=False)",
}


def check() -> None:
    """Raise RuntimeError where a thread is not one: what it waits for would stop the program."""
    for library, module, question, needed in _LIBRARIES:
        asked = getattr(sys.modules.get(module), question, None)
        if asked is None:
            continue
        patched = [name for name in needed if asked(name)]
        if patched:
            raise RuntimeError(
                f"{library} has replaced Python's {' and '.join(patched)}, so virtnic has no "
                f"thread in which it could talk to QEMU while others wait; {_HINTS[library]}; or "
                "use virtnic in a process of its own"
            )
