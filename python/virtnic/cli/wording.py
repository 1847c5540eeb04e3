"""Translation of the library's messages from arguments to command options.

The library does not know the commands: its messages name arguments. A test reads all messages and
fails for one that would show a command's user an argument.
"""

from __future__ import annotations

import re

__all__ = ["of_options"]

#: A word, quoted or not, that stands for an argument's value.
_VALUE = r"(['\"]?)([^\s'\",;)]+)\1"

_RULES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), words)
    for pattern, words in (
        # Kernel parameters look alike (`hugepagesz=1G hugepages=1`): not in quotes.
        (r"\bpass hugepages=None\b", "give --hugepages none"),
        (r"\bhugepages=None\b", "--hugepages none"),
        (r"\bhugepages=(['\"])(\w+)\1", r"--hugepages \2"),
        (
            r"\bhugepages must be 'auto', '1G', '2M' or None\b",
            "--hugepages must be auto, 1G, 2M or none",
        ),
        (rf"\biova={_VALUE}", r"--iova \2"),
        (r"; pass \"va\", \"pa\" or an integer\b", "; give va, pa or an integer"),
        (r"\bpass sandbox=False\b", "give --sandbox off"),
        (r"\bpass sandbox='spawn'", "give --sandbox spawn"),
        (r"\bsandbox=False\b", "--sandbox off"),
        (r"\bsandbox=True\b", "--sandbox on"),
        (rf"\bsandbox={_VALUE}", r"--sandbox \2"),
        (rf"\baccel={_VALUE}", r"--accel \2"),
        (rf"\binterrupts={_VALUE}", r"--interrupts \2"),
        (rf"\bnotify={_VALUE}", r"--notify \2"),
        (rf"\bring={_VALUE}", r"--ring \2"),
        (rf"\bmac={_VALUE}", r"--mac \2"),
        (r"pass dns=\[ADDRESS\], or dhcp=True where the network offers one", "give --dns ADDRESS"),
        (rf"\bqemu={_VALUE}", r"--qemu \2"),
        (r"\bqueue_size\b", "--queue-size"),
        (r"\brecover=(?:True|False)\b", "--recover"),
        # For arguments that no command has an option for.
        (
            r"make the memory with jumbo_buffers=64 or so, or with a larger buffer_size",
            "give more --memory",
        ),
        (r"make it with jumbo_buffers=64 or so", "give more --memory"),
        (r"create the memory with jumbo_buffers=\w+ or more", "give more --memory"),
        (r"make the memory with a buffer_size of at least \d+", "give more --memory"),
        (r"use offload=True", "only programs can use offload=True"),
    )
)


def of_options(text: str) -> str:
    """Return a message of the library with command options in place of arguments."""
    for pattern, words in _RULES:
        text = pattern.sub(words, text)
    return text
