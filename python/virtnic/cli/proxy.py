"""``virtnic proxy``: a SOCKS5 and HTTP proxy that connects through a port."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from virtnic.cli import options
from virtnic.cli.status import EXIT_STATUSES, Status

if TYPE_CHECKING:
    import socket

    from virtnic.cli.loops import Stop
    from virtnic.cli.output import Output
    from virtnic.net import Stack

__all__ = ["add", "run"]

EXAMPLES = f"""\
examples:
  virtnic proxy --netdev vhost-user,path=/run/vhu0 --address 10.1.0.5/24
      then, in another shell, to hosts of that network:
  curl --socks5-hostname 127.0.0.1:1080 http://10.1.0.7/
  curl -x http://127.0.0.1:1080 https://server.example/
  ssh -o ProxyCommand='nc -X 5 -x 127.0.0.1:1080 %h %p' user@10.1.0.7
  ALL_PROXY=socks5h://127.0.0.1:1080 git fetch
  virtnic proxy --dns 10.1.0.1 --listen 8080 -v
      names by that server; one line for each connection
  virtnic proxy --listen 0 --json
      any free port: the event `listening` says which

Programs that take a proxy reach the network of the NIC; nothing else on this machine changes. One
port serves SOCKS5 (CONNECT, and UDP ASSOCIATE for datagrams), HTTP CONNECT and plain HTTP requests.
Names are resolved by the name servers of that network, where the program leaves it to the proxy:
socks5h://, --socks5-hostname.

It listens on loopback and asks for no password: every user of this machine can use it.

Without --seconds it runs until Ctrl-C or SIGTERM, resets the connections and exits with status 0.
With it, a signal ends it early: 130 (Ctrl-C) or 143 (SIGTERM).

{EXIT_STATUSES}"""


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = (
        "Let programs of this machine connect through a virtio-net NIC: a proxy on loopback\n"
        "whose connections have the address of the NIC."
    )
    parser.epilog = EXAMPLES
    parser.set_defaults(
        run=run,
        check=options.check_address,
        imports=("virtnic.aio", "virtnic.cli.loops", "virtnic.cli.proxying", "virtnic.cli.session"),
    )
    group = parser.add_argument_group("proxy")
    group.add_argument(
        "--listen",
        type=_listen,
        default=("127.0.0.1", 1080),
        metavar="[HOST:]PORT",
        help="where programs connect to; port 0 takes a free one (default: 127.0.0.1:1080)",
    )
    group.add_argument(
        "--connections",
        type=options.positive,
        default=256,
        metavar="N",
        help="connections at a time; further ones wait (default: %(default)s)",
    )
    group.add_argument(
        "-W",
        "--timeout",
        type=options.seconds,
        default=20.0,
        metavar="TIME",
        help="how long connecting may take (default: 20)",
    )
    group.add_argument(
        "--seconds",
        type=options.seconds,
        metavar="TIME",
        help="duration, such as 2m (default: until Ctrl-C)",
    )
    options.add_port(parser)
    options.add_address(parser)
    options.add_session(parser, recover=True)


def _listen(text: str) -> tuple[str, int]:
    """Parse an address to listen on, for argparse."""
    host, _, port = text.rpartition(":")
    number = options.whole(port)
    if number > 0xFFFF:
        raise argparse.ArgumentTypeError(f"a port must be 0 to 65535, not {number}")
    host = host.removeprefix("[").removesuffix("]")
    return options.ip("127.0.0.1" if host in ("", "localhost") else host), number


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Serve until Ctrl-C, SIGTERM or the end of ``--seconds``."""
    import asyncio
    import signal

    from virtnic.cli.loops import Stop
    from virtnic.cli.session import configure, opened
    from virtnic.net import Stack

    output.by_line = True
    with (
        _bound(*arguments.listen) as listening,
        opened(arguments) as session,
        Stack(session.port, dns=arguments.dns or ()) as stack,
    ):
        lease = configure(arguments, stack)
        stop = Stop()
        with stop.noticed():
            asyncio.run(_serve(arguments, output, stack, listening, lease, stop))
    if stop.signal is signal.SIGINT:
        output.after_ctrl_c()
    if stop.signal is None or arguments.seconds is None:
        return Status.OK
    return 128 + stop.signal


def _bound(host: str, port: int) -> socket.socket:
    """Return a listening kernel socket."""
    import socket

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        error.filename = f"--listen {where}"
        raise
    listening.setblocking(False)
    return listening


async def _serve(
    arguments: argparse.Namespace,
    output: Output,
    stack: Stack,
    listening: socket.socket,
    lease: dict[str, Any],
    stop: Stop,
) -> None:
    import asyncio
    import contextlib
    import ipaddress

    from virtnic import aio
    from virtnic.cli.proxying import Proxy

    host, port = listening.getsockname()[:2]
    if not ipaddress.ip_address(host).is_loopback:
        output.warning(f"everyone who can reach {host} can connect through this proxy")
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    report = _Report(output)
    proxy = Proxy(
        await aio.net.Stack(stack),
        listening,
        limit=arguments.connections,
        timeout=arguments.timeout,
        report=report.event,
    )
    output.line(f"proxy on {where}, from {lease['address']}, netdev {arguments.netdev}")
    output.line(f"try: curl --socks5-hostname {where} http://HOST/")
    own = {"address": lease["address"], "addresses": stack.addresses, "gateway": lease["gateway"]}
    facts = {"listen": where, "netdev": arguments.netdev, **own, "dns": stack.name_servers}
    output.result({"event": "listening", **facts})
    serving = asyncio.create_task(proxy.run())
    left = float("inf") if arguments.seconds is None else arguments.seconds
    try:
        while stop.signal is None and not serving.done() and left > 0:
            stack.socket().close()  # raises if the port has ended
            await asyncio.wait([serving], timeout=min(_SLICE, left))
            left -= _SLICE
    finally:
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving
        report.summary(proxy)


#: Seconds between checks for a signal and for the end of the port.
_SLICE = 0.1


class _Report:
    """Prints events."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def event(self, kind: str, facts: dict[str, Any]) -> None:
        output = self._output
        output.result({"event": kind, **facts})
        if kind == "waiting":
            output.line(f"new connections wait: {facts['error']}")
            return
        who = f"{facts['id']} {facts['client']}"
        target = facts.get("target", "")
        if kind == "refused":
            output.line(f"{who}: {f'{target}: ' if target else ''}{facts['error']}")
        elif output.verbosity and kind == "open":
            output.line(f"{who}: {facts['protocol']} to {target}")
        elif output.verbosity:
            sent, received = facts["sent"], facts["received"]
            output.line(
                f"{who}: closed, {sent} bytes sent, {received} received, {facts['seconds']:.3f} s"
            )

    def summary(self, proxy: Any) -> None:
        names = ("served", "failed", "sent", "received")
        counts = {name: getattr(proxy, name) for name in names}
        self._output.line(
            f"{counts['served']} connections served, {counts['failed']} failed; "
            f"{counts['sent']} bytes sent, {counts['received']} received"
        )
        self._output.result({"event": "summary", **counts})
