"""Translation of the library's messages from arguments to command options.

The library does not know the commands: its messages name arguments. Tests read all messages: one
fails for a message that would show an argument to the user of a command, another for a rule that
matches no message.
"""

from __future__ import annotations

import re

__all__ = ["ARGUMENTS", "PHRASES", "of_options"]

#: Arguments for which commands have options of the same names.
ARGUMENTS = (
    *(
        "accel",
        "frontend",
        "hugepages",
        "interrupts",
        "iova",
        "mac",
        "method",
        "notify",
        "qemu",
        "ring",
    ),
    "sandbox",
)
_VALUES = {"None": "none", "False": "off", "True": "on"}
#: An argument and its value, quoted or not. In a netdev (`tap,mac=…`) it is QEMU's own.
_ARGUMENT = re.compile(
    rf"(\bpass )?(?<![\w,.-])({'|'.join(ARGUMENTS)})=(?:(['\"])([^'\"]+)\3|([^\s'\"`,;)]+))"
)
#: The kernel's parameter of the same name: `hugepagesz=1G hugepages=1`.
_KERNEL = re.compile(r"hugepages=\d+")

#: Everything else, in order, before the arguments.
PHRASES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), words)
    for pattern, words in (
        (
            r"\bhugepages must be 'auto', '1G', '2M' or None\b",
            "--hugepages must be auto, 1G, 2M or none",
        ),
        (r"; pass \"va\", \"pa\" or an integer\b", "; give va, pa or an integer"),
        (
            r"\bpass dns=\[ADDRESS\], or dhcp=True where the network offers one",
            "give --dns ADDRESS",
        ),
        (r"\buse dhcp=True, address= or configure\(\)", "give --address"),
        (
            r"\bconnect= can only be combined with timeout=",
            "--connect cannot be combined with --qemu, --accel, --machine or --sandbox",
        ),
        (r"^queues=", "--queues "),
        (r"\bcall set_queues\((\d+)\) first", r"give --queues \1"),
        (r"\bqueue_size\b", "--queue-size"),
        (r" \(recover=False\): attach the port again", " (without --recover)"),
        (r"\b(?:virtnic\.Qemu\()?recover=True\b\)?", "--recover"),
        # For what no command has an option for.
        (
            r"make the memory with jumbo_buffers=64 or so, or with a larger buffer_size",
            "give more --memory",
        ),
        (r"make it with jumbo_buffers=64 or so", "give more --memory"),
        (r"create the memory with jumbo_buffers=\w+ or more", "give more --memory"),
        (r"make the memory with a buffer_size of at least \d+", "give more --memory"),
        (r"use offload=True", "only programs can use that"),
        (r"; restart\(\) resets the device", ""),
        (r"pass a shorter one as directory=, or set\b", "set a shorter one in"),
        (r"set a directory with directory= or TMPDIR", "set TMPDIR"),
        (r", or attach several ports to one virtnic\.Qemu", ""),
    )
)


def of_options(text: str) -> str:
    """Return a message of the library with command options in place of arguments."""
    for pattern, words in PHRASES:
        text = pattern.sub(words, text)
    return _ARGUMENT.sub(_option, text)


def _option(found: re.Match[str]) -> str:
    """Return the option for an argument and its value."""
    told, name, _, quoted, bare = found.groups()
    if _KERNEL.fullmatch(found[0]):
        return found[0]
    value = quoted or _VALUES.get(bare, bare)
    return f"{'give ' if told else ''}--{name} {value}"
