"""``virtnic measure``: measures throughput, latency and loss; ``soak`` runs for hours."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from virtnic.cli import options
from virtnic.cli.status import EXIT_STATUSES
from virtnic.units import RATES

if TYPE_CHECKING:
    import virtnic
    from virtnic.cli.output import Output

__all__ = ["KINDS", "add", "run"]

KINDS = {
    "throughput": "the highest rate at which no more than --loss is lost (RFC 2544, 26.1)",
    "latency": "how long frames take at --rate, as percentiles",
    "loss": "what is lost at --rate, or at 100, 90, … 10 %% of what can be sent (26.3)",
    "soak": "one run at --rate, with a line each --interval; fails where a frame is lost",
}

EXAMPLES = f"""\
examples:
  virtnic measure throughput --tx vhost-user,path=/run/vhu0 --rx vhost-user,path=/run/vhu1
  virtnic measure latency --tx vhost-user,path=/run/vhu0 --rate 100kpps --sizes 64,1518 --json
      the peer sends frames back: what is sent is received by the same port
  virtnic measure loss --tx vhost-user,path=/run/vhu0 --sizes 64,imix --html loss.html
  virtnic measure soak --tx vhost-user,path=/run/vhu0 --sizes imix --rate 50kpps --seconds 8h

rates:
{options.table(RATES)}

Loss, duplicates and order are exact to the frame: each frame says which one it is. Latencies count
from the moment at which a frame was due. Frames that were due and not sent found the ring full, or
this machine could not keep up; they are told, and lost in a search for the throughput.

Ctrl-C ends a measurement, and what was found is printed.

{EXIT_STATUSES}"""

_IMPORTS = ("virtnic.measure", "virtnic.cli.measured", "virtnic.cli.session", "virtnic.cli.loops")


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    kinds = "\n".join(f"  {name:<12}{text}" for name, text in KINDS.items()).replace("%%", "%")
    parser.description = (
        f"Send streams by one port, receive them by another, say what became of them:\n\n{kinds}"
    )
    parser.epilog = EXAMPLES
    parser.set_defaults(run=run, check=check, imports=_IMPORTS)
    parser.add_argument(
        "kind",
        choices=tuple(KINDS),
        metavar="throughput|latency|loss|soak",
        help="what is measured",
    )
    group = parser.add_argument_group("measure")
    port = "NETDEV[;OPTION=VALUE]..."
    group.add_argument(
        "--tx",
        type=options.port_options,
        metavar=port,
        help="what the sending port is connected to, with options as of `virtnic forward`",
    )
    group.add_argument(
        "--rx",
        type=options.port_options,
        metavar=port,
        help="the same of the receiving port (default: the sending port, whose peer sends back)",
    )
    group.add_argument(
        "--sizes",
        type=_sizes,
        metavar="N,N",
        help="bytes of frames on the wire, or imix (default: 64,512,1518; soak: imix)",
    )
    group.add_argument(
        "--rate",
        type=_rate,
        help="frames or bits a second (default: latency 10kpps, soak 10kpps, loss as above)",
    )
    group.add_argument(
        "--flows",
        type=options.positive,
        default=1,
        metavar="N",
        help="so many source addresses in turn (default: 1)",
    )
    group.add_argument(
        "--loss",
        type=_part,
        default=0.0,
        metavar="PERCENT",
        help="throughput: what may be lost (default: 0)",
    )
    group.add_argument(
        "--method",
        choices=("auto", "mlrsearch", "bisection"),
        default="auto",
        help="throughput: how it is searched; auto takes MLRsearch where it is installed",
    )
    group.add_argument(
        "--seconds",
        type=options.seconds,
        metavar="TIME",
        help="of each run (default: 10; throughput: 1; soak: until Ctrl-C)",
    )
    group.add_argument(
        "--warmup",
        type=options.seconds,
        default=0.5,
        metavar="TIME",
        help="for so long frames are sent before that do not count (default: 0.5)",
    )
    group.add_argument(
        "--interval",
        type=options.seconds,
        default=1.0,
        metavar="TIME",
        help="soak: time between lines; 0 for none (default: 1)",
    )
    group.add_argument(
        "--cpus",
        type=options.cpus,
        default=(),
        metavar="N,N",
        help="the processors to run on: of the thread of each queue pair, in turn (default: any)",
    )
    group.add_argument(
        "--html",
        type=options.path,
        metavar="FILE",
        help="write a report with plots: one file that refers to nothing outside",
    )
    options.add_device(group)
    options.add_session(parser)


def check(arguments: argparse.Namespace) -> str | None:
    """Return what is wrong with the options together."""
    if not arguments.tx:
        return "--tx is required, as in `virtnic measure latency --tx vhost-user,path=SOCKET`"
    if arguments.kind == "soak" and arguments.sizes and len(arguments.sizes) != 1:
        return "soak is one run: give one of --sizes, or imix"
    return None


def _sizes(text: str) -> list[int | str]:
    found: list[int | str] = []
    for part in text.split(","):
        word = part.strip().lower()
        if word != "imix" and not (word.isascii() and word.isdigit() and int(word) >= 64):
            raise argparse.ArgumentTypeError(
                f"sizes are 64 bytes or more, or imix, as in 64,512,imix, not {text!r}"
            )
        found.append(word if word == "imix" else int(word))
    return found


def _rate(text: str) -> str:
    from virtnic.units import parse_rate

    try:
        parse_rate(text, 64)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _part(text: str) -> float:
    try:
        percent = float(text.removesuffix("%"))
    except ValueError:
        percent = -1.0
    if not 0 <= percent < 100:
        raise argparse.ArgumentTypeError(f"it is a percentage from 0 to below 100, not {text!r}")
    return percent / 100


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Measure, print, and write the report."""
    from virtnic.cli.measured import Report
    from virtnic.cli.session import opened_ports

    # The session opens the ports listed here.
    arguments.port = [arguments.tx, *([arguments.rx] if arguments.rx else [])]
    # Open the file first, so that an error is reported before hours of measuring.
    file = None if arguments.html is None else open(arguments.html, "w", encoding="utf-8")  # noqa: SIM115, PTH123
    try:
        with opened_ports(arguments) as opened:
            ports, netdevs = [*opened], [*opened.values()]
            for port, netdev in opened.items():
                if not port.link:
                    output.warning(f"the link of {netdev} is down")
            report = Report(arguments.kind, netdevs, output)
            _MEASURE[arguments.kind](arguments, (ports[0], ports[-1]), report)
        if file is not None:
            file.write(report.html())
    finally:
        if file is not None:
            file.close()
    return report.finish()


def _fields(arguments: argparse.Namespace) -> list[Any]:
    from virtnic.measure import Increment

    return [Increment("ip.src", arguments.flows)] if arguments.flows > 1 else []


def _once(
    arguments: argparse.Namespace,
    ports: tuple[virtnic.Port, virtnic.Port],
    size: Any,
    rate: Any,
    **more: Any,
) -> Any:
    from virtnic import measure

    return measure.run(
        tx=ports[0],
        rx=ports[1],
        streams=measure.Stream(size, rate=rate, fields=_fields(arguments)),
        warmup=arguments.warmup,
        cpus=arguments.cpus,
        **more,
    )


def _throughput(
    arguments: argparse.Namespace, ports: tuple[virtnic.Port, virtnic.Port], report: Any
) -> None:
    from virtnic import measure

    for size in arguments.sizes or (64, 512, 1518):
        try:
            found = measure.throughput(
                tx=ports[0],
                rx=ports[1],
                sizes=[size],
                loss=arguments.loss,
                flows=arguments.flows,
                seconds=1.0 if arguments.seconds is None else arguments.seconds,
                method=arguments.method,
                cpus=arguments.cpus,
                progress=report.trial,
            )
        except KeyboardInterrupt:
            report.cut_short()
            return
        for each in found:
            report.throughput(each)


def _latency(
    arguments: argparse.Namespace, ports: tuple[virtnic.Port, virtnic.Port], report: Any
) -> None:
    seconds = 10.0 if arguments.seconds is None else arguments.seconds
    for size in arguments.sizes or (64, 512, 1518):
        rate = arguments.rate or "10kpps"
        report.result(str(size), _once(arguments, ports, size, rate, seconds=seconds))
        if report.interrupted:
            return


def _loss(
    arguments: argparse.Namespace, ports: tuple[virtnic.Port, virtnic.Port], report: Any
) -> None:
    seconds = 10.0 if arguments.seconds is None else arguments.seconds
    for size in arguments.sizes or (64, 512, 1518):
        rates: list[tuple[str, Any]] = [(str(size), arguments.rate)]
        if arguments.rate is None:
            most = _once(arguments, ports, size, None, seconds=min(1.0, seconds)).pps
            rates = [(f"{size}, {part} %", most * part / 100) for part in range(100, 0, -10)]
        clean = 0
        for name, rate in rates:
            result = _once(arguments, ports, size, rate, seconds=seconds)
            report.result(name, result)
            if report.interrupted:
                return
            # RFC 2544, 26.3: stop after two successive trials without loss.
            clean = 0 if result.lost else clean + 1
            if clean == 2:
                break


def _soak(
    arguments: argparse.Namespace, ports: tuple[virtnic.Port, virtnic.Port], report: Any
) -> None:
    size = (arguments.sizes or ["imix"])[0]
    result = _once(
        arguments,
        ports,
        size,
        arguments.rate or "10kpps",
        seconds=arguments.seconds,
        progress=report.ticker(arguments.interval),
    )
    report.result(str(size), result)
    report.must_lose_nothing(endless=arguments.seconds is None)


_MEASURE = {"throughput": _throughput, "latency": _latency, "loss": _loss, "soak": _soak}
