"""``virtnic ping``: ICMP echo through a port, printed as ping(8) does."""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import virtnic
from virtnic.cli import options
from virtnic.cli.output import EXIT_STATUSES, Output, Status, seconds_text

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

__all__ = ["Echoes", "add", "run"]

EXAMPLES = f"""\
examples:
  virtnic ping 10.0.2.2
      the gateway of QEMU's user-mode network, with an address from its DHCP server
  virtnic ping 10.0.2.2 --count 20 --interval 0 --json
      as fast as the replies come; one JSON object with every reply
  virtnic ping 192.168.7.1 --netdev tap,ifname=tap0 --address 192.168.7.2/24
      the host's own kernel through a TAP device, without DHCP

{EXIT_STATUSES}
Like ping(8), it worked when at least one reply came.
"""

#: Bytes of an ICMP echo header, which ping(8) counts and --size does not.
_ICMP_HEADER = 8
_SEQUENCES = 1 << 16


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = "Ping an address through a virtio-net NIC of this process."
    parser.epilog = EXAMPLES
    parser.set_defaults(run=run, check=options.check_address)
    parser.add_argument("target", metavar="ADDRESS", type=options.ipv4, help="whom to ping (IPv4)")
    group = parser.add_argument_group("echo requests")
    group.add_argument(
        "-c",
        "--count",
        type=options.whole,
        default=4,
        metavar="N",
        help="how many; 0 for no end but Ctrl-C (default: %(default)s)",
    )
    group.add_argument(
        "-i",
        "--interval",
        type=options.seconds,
        default=1.0,
        metavar="SECONDS",
        help="from one to the next; 0 sends the next when the reply came (default: %(default)s)",
    )
    group.add_argument(
        "-s",
        "--size",
        type=options.whole,
        default=56,
        metavar="BYTES",
        help="payload of each (default: %(default)s)",
    )
    group.add_argument(
        "-W",
        "--timeout",
        type=options.seconds,
        default=1.0,
        metavar="SECONDS",
        help="how long to wait for each reply (default: %(default)s)",
    )
    options.add_port(parser)
    options.add_address(parser)
    options.add_qemu(parser)
    options.add_connect(parser)
    options.add_memory(parser)
    options.add_common(parser)


@dataclass(slots=True)
class Echoes:
    """What became of echo requests."""

    #: Seconds to each reply, None where none came.
    times: list[float | None] = field(default_factory=list)
    #: Seconds that it took altogether.
    seconds: float = 0.0
    #: Ended by Ctrl-C.
    interrupted: bool = False

    def send(
        self,
        stack: virtnic.Stack,
        target: str,
        *,
        count: int,
        interval: float = 0.0,
        size: int = 56,
        timeout: float = 1.0,
        each: Callable[[int, float | None], None] | None = None,
    ) -> None:
        """Send requests and tell of each; Ctrl-C ends it early and is not raised."""
        start = time.monotonic()
        try:
            for number in itertools.count() if count == 0 else range(count):
                pause = start + number * interval - time.monotonic()
                if interval and pause > 0:
                    stack.poll(pause)  # whoever asks for our MAC meanwhile gets an answer
                try:
                    reply = stack.ping(target, number % _SEQUENCES, size, timeout)
                    seconds: float | None = reply.seconds
                except TimeoutError:
                    seconds = None
                self.times.append(seconds)
                if each is not None:
                    each(number, seconds)
        except KeyboardInterrupt:
            self.interrupted = True
        finally:
            self.seconds = time.monotonic() - start

    def summary(self) -> dict[str, Any]:
        """Return the numbers; the times are None where no reply came."""
        replies = sorted(seconds for seconds in self.times if seconds is not None)
        sent, received = len(self.times), len(replies)
        return {
            "sent": sent,
            "received": received,
            "loss": 1 - received / sent if sent else 0.0,
            "seconds": self.seconds,
            "min": replies[0] if replies else None,
            "avg": sum(replies) / received if replies else None,
            "max": replies[-1] if replies else None,
            "p50": percentile(replies, 50) if replies else None,
            "p99": percentile(replies, 99) if replies else None,
        }

    def text(self) -> list[str]:
        """Return the numbers as lines for people."""
        numbers = self.summary()
        lines = [
            (
                f"{numbers['sent']} sent, {numbers['received']} received, "
                f"{numbers['loss'] * 100:.3g} % lost, in {seconds_text(self.seconds)}"
            )
        ]
        if numbers["received"]:
            names = ("min", "avg", "max", "p50", "p99")
            values = "/".join(f"{numbers[name] * 1e3:.3f}" for name in names)
            lines.append(f"rtt {'/'.join(names)} = {values} ms")
        return lines


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Return the smallest value that so many percent of the values do not exceed."""
    return ordered[max(math.ceil(percent / 100 * len(ordered)), 1) - 1]


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Ping; return OK when there was a reply."""
    target: str = arguments.target
    size: int = arguments.size
    with options.opened(arguments) as session:
        stack = virtnic.Stack(session.port)
        lease = options.configure(arguments, stack)
        how = "" if arguments.address else ", leased"
        output.line(
            f"PING {target} from {lease['address']}{how}, netdev {arguments.netdev}: "
            f"{size} data bytes"
        )

        def each(number: int, seconds: float | None) -> None:
            if seconds is None:
                output.line(f"no reply from {target}: seq={number} timeout={arguments.timeout:g} s")
            else:
                output.line(
                    f"{size + _ICMP_HEADER} bytes from {target}: seq={number} "
                    f"time={seconds * 1e3:.3f} ms"
                )

        echoes = Echoes()
        echoes.send(
            stack,
            target,
            count=arguments.count,
            interval=arguments.interval,
            size=size,
            timeout=arguments.timeout,
            each=each,
        )
    output.line(f"--- {target} ping statistics ---")
    for line in echoes.text():
        output.line(line)
    summary = echoes.summary()
    output.result(
        {
            "target": target,
            "netdev": arguments.netdev,
            **lease,
            "size": size,
            "replies": [
                {"sequence": number, "seconds": seconds}
                for number, seconds in enumerate(echoes.times)
            ],
            **summary,
            "interrupted": echoes.interrupted,
        }
    )
    if echoes.interrupted:
        return Status.INTERRUPTED
    return Status.OK if summary["received"] else Status.FAILED
