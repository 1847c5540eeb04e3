"""Measuring: exact to the frame on wires whose faults are known, with testpmd and the kernel."""

import contextlib
import dataclasses
import json
import os
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

import virtnic
from peers.bad_wire import BadWire
from peers.netns import Netns
from peers.testpmd import Testpmd
from support.waiting import eventually
from virtnic import measure
from virtnic.loops import make_frame
from virtnic.testing import kill_qemu

pytestmark = pytest.mark.needs("qemu")
Start = Callable[..., Testpmd]


def small() -> virtnic.Memory:
    """Memory enough for two ports."""
    return virtnic.Memory("16M", hugepages=None, jumbo_buffers=8)


def balanced(result: measure.Result) -> None:
    """Whether the totals are those of the streams, and these those of their flows."""
    for name in ("sent", "received", "lost", "duplicates", "reordered", "late", "unsent"):
        assert getattr(result, name) == sum(getattr(each, name) for each in result.streams)
    for stream in result.streams:
        if stream.flow:
            for name in ("sent", "received", "lost", "duplicates", "reordered"):
                assert getattr(stream, name) == sum(getattr(each, name) for each in stream.flows)
            assert stream.histogram.count == stream.received
    assert result.signed == result.received + result.lost


# A wire whose faults are known


@pytest.fixture
def wired() -> Iterator[Callable[..., tuple[BadWire, virtnic.Port, virtnic.Port]]]:
    """Two ports with a bad wire between."""
    with contextlib.ExitStack() as stack:

        def start(**faults: Any) -> tuple[BadWire, virtnic.Port, virtnic.Port]:
            wire = stack.enter_context(BadWire(**faults))
            qemu = stack.enter_context(virtnic.Qemu(small()))
            if qemu.version < (7, 2):
                pytest.skip("dgram came with 7.2")
            tx, rx = (stack.enter_context(qemu.attach(each)) for each in wire.socket.netdevs())
            return wire, tx, rx

        yield start


def by_hand(out: Sequence[bytes], flows: int, sent: int) -> list[tuple[int, int, int, int]]:
    """Return what there is to be found of each flow: sent, received, duplicates, reordered.

    The number of a frame is in its signature, where the documents say: six bytes behind the stream.
    """
    seen: set[int] = set()
    latest: dict[int, int] = {}
    counts = Counter[tuple[int, str]]()
    for frame in out:
        number = int.from_bytes(frame[-14:-8], "big")
        flow = number % flows
        if number in seen:
            counts[flow, "duplicates"] += 1
            continue
        seen.add(number)
        counts[flow, "received"] += 1
        counts[flow, "reordered"] += number < latest.get(flow, 0)
        latest[flow] = max(number, latest.get(flow, 0))
    return [
        (
            len(range(flow, sent, flows)),
            counts[flow, "received"],
            counts[flow, "duplicates"],
            counts[flow, "reordered"],
        )
        for flow in range(flows)
    ]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_what_a_bad_wire_does_is_found_to_the_frame(wired: Any, seed: int) -> None:
    wire, tx, rx = wired(seed=seed, drop=0.02, duplicate=0.03, reorder=0.05)
    streams = measure.Stream(64, rate=20_000, fields=[measure.Increment("ip.src", 7)])
    result = measure.run(tx=tx, rx=rx, streams=streams, seconds=None, packets=10_000)
    faults = wire.faulty.faults()
    assert result.sent == faults["tx_seen"] == 10_000
    assert result.lost == faults["tx_dropped"] > 0
    # A frame that was duplicated and dropped at once was dropped.
    assert result.duplicates == len(wire.socket.out) - result.received > 0
    assert (result.corrupt, result.foreign, result.stale, result.untaken) == (0, 0, 0, 0)
    flows = [(f.sent, f.received, f.duplicates, f.reordered) for f in result.streams[0].flows]
    assert flows == by_hand(wire.socket.out, 7, 10_000)
    assert result.reordered > 0
    balanced(result)


def test_frames_with_wrong_bits_are_told_and_never_counted_as_received(wired: Any) -> None:
    """Each flipped bit behind the headers is found; what has one is lost."""
    wire, tx, rx = wired(seed=5, corrupt=0.05)
    result = measure.run(
        tx=tx, rx=rx, streams=measure.Stream(200, rate=20_000), seconds=None, packets=5000
    )
    template = measure.Stream(200).frames(tx, rx)[0]
    wrong = sum(
        frame[42:-18] != template[42:-18] or int.from_bytes(frame[-8:-2], "big") > 1 << 44
        for frame in wire.socket.out
    )
    damaged = wire.faulty.faults()["tx_corrupted"]
    assert result.corrupt + result.foreign == result.lost
    assert 0 < wrong <= result.corrupt <= damaged
    # Those whose headers have it are whole where it matters.
    assert result.received + result.lost == 5000
    assert result.foreign == 0
    balanced(result)


def test_frames_of_others_in_between_count_as_foreign(wired: Any) -> None:
    others = [bytes(10), make_frame(60), make_frame(1514), os.urandom(64), bytes(17), bytes(18)]
    wire, tx, rx = wired(between=others)
    result = measure.run(
        tx=tx, rx=rx, streams=measure.Stream("imix", rate=20_000), seconds=None, packets=6000
    )
    assert (result.sent, result.lost, result.corrupt) == (6000, 0, 0)
    assert result.foreign == wire.others > 30


def test_frames_of_an_earlier_run_are_not_those_of_this_one(wired: Any) -> None:
    _, tx, rx = wired(delay=0.4)
    first = measure.run(
        tx=tx, rx=rx, streams=measure.Stream(64), seconds=None, packets=50, drain=0.01
    )
    assert (first.sent, first.lost) == (50, 50)
    second = measure.run(
        tx=tx, rx=rx, streams=measure.Stream(64), seconds=None, packets=20, drain=2.0
    )
    assert (second.sent, second.received, second.foreign) == (20, 20, 50)
    # The wire holds each back for 0.4 s, and the time at which it should have left counts.
    assert 0.39 < second.latency.minimum < second.latency.maximum < 2


def test_several_streams_have_counts_of_their_own(wired: Any) -> None:
    wire, tx, rx = wired(seed=9, drop=0.1)
    streams = [
        measure.Stream(64, rate=5000, name="small"),
        measure.Stream(300, rate=2500, name="large", fields=[measure.Random("udp.sport")]),
        measure.Stream(make_frame(60), rate=1000, name="beside", flow=False),
    ]
    result = measure.run(tx=tx, rx=rx, streams=streams, seconds=1.0)
    assert [stream.name for stream in result.streams] == ["small", "large", "beside"]
    for stream, rate in zip(result.streams, (5000, 2500, 1000), strict=True):
        assert rate * 0.99 <= stream.sent + stream.unsent <= rate * 1.5
    assert result.streams[2].lost == 0
    assert (
        result.lost + (result.streams[2].sent - result.foreign)
        == wire.faulty.faults()["tx_dropped"]
    )
    sizes = Counter(len(frame) for frame in wire.socket.out)
    assert sizes[296] == result.streams[1].received
    balanced(result)


def test_a_warm_up_counts_nowhere(wired: Any) -> None:
    wire, tx, rx = wired(seed=4, drop=0.5)
    stream = measure.Stream(64, rate=10_000)
    result = measure.run(tx=tx, rx=rx, streams=stream, seconds=0.5, warmup=0.5)
    seen = wire.faulty.faults()["tx_seen"]
    assert result.sent < 0.75 * seen
    assert len(wire.socket.out) > result.received
    assert 0.3 < result.loss < 0.7
    assert result.foreign == 0
    assert 0.4 < result.seconds < 2
    balanced(result)


def test_a_progress_function_sees_it_grow_and_ends_it(wired: Any) -> None:
    _, tx, rx = wired()
    seen: list[measure.Sample] = []

    def progress(sample: measure.Sample) -> bool:
        seen.append(sample)
        return sample.sent < 2000

    stream = measure.Stream(64, rate=10_000)
    result = measure.run(tx=tx, rx=rx, streams=stream, seconds=60, progress=progress)
    assert result.lost == 0
    assert result.sent >= 2000
    assert not result.interrupted
    assert [sample.sent for sample in seen] == sorted(sample.sent for sample in seen)
    assert result.samples[-1].received == result.received


def test_ctrl_c_gives_what_there_is(wired: Any) -> None:
    _, tx, rx = wired()
    timer = threading.Timer(0.5, signal.raise_signal, [signal.SIGINT])
    timer.start()
    try:
        result = measure.run(tx=tx, rx=rx, streams=measure.Stream(64, rate=5000), seconds=None)
    finally:
        timer.join()
    assert result.interrupted
    assert result.lost == 0 < result.sent


def test_a_port_that_dies_says_what_was_counted(wired: Any) -> None:
    _, tx, rx = wired()

    def progress(sample: measure.Sample) -> None:
        if sample.sent > 500:
            kill_qemu(tx.qemu)

    with pytest.raises(virtnic.QemuDied) as caught:
        measure.run(
            tx=tx, rx=rx, streams=measure.Stream(64, rate=5000), seconds=30, progress=progress
        )
    assert any("until then" in note for note in caught.value.__notes__)


def test_a_port_that_is_closed_meanwhile_ends_it(wired: Any) -> None:
    _, tx, rx = wired()

    def progress(sample: measure.Sample) -> None:
        if sample.sent > 500:
            rx.close()

    with pytest.raises(virtnic.PortClosed):
        measure.run(
            tx=tx, rx=rx, streams=measure.Stream(64, rate=5000), seconds=30, progress=progress
        )


# The kernel, which checks what checksums say


@pytest.mark.needs("netns")
@pytest.mark.parametrize("version", [4, 6])
def test_the_kernel_finds_all_checksums_right(netns: Netns, version: int) -> None:
    """It delivers a datagram only where those of IP and UDP are; these follow what differs."""
    with virtnic.open(netns.netdev, memory=small()) as port:
        port.wait_ready()
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        if version == 6:
            netns.add_ipv6("fd00::1/64")
        with netns.open_socket(family) as listener:
            listener.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
            listener.bind(("", 4444))
            addresses = ("10.99.0.7", "10.99.0.1") if version == 4 else ("fd00::7", "fd00::1")
            frame = make_frame(
                120,
                source=port.mac,
                destination=netns.mac,
                source_ip=addresses[0],
                destination_ip=addresses[1],
                destination_port=4444,
            )
            if version == 4:  # with a checksum of UDP, which is optional there
                from scapy.layers.inet import UDP
                from scapy.layers.l2 import Ether

                packet = Ether(frame)
                del packet[UDP].chksum
                frame = bytes(packet)
            fields: list[Any] = [
                measure.Increment("ip.src" if version == 4 else "ipv6.src", 100),
                measure.Random("udp.sport", low=1, high=65535),
                measure.Random("payload"),
                measure.Random("eth.src", low="02:00:00:00:00:00", high="02:00:00:ff:ff:ff"),
                measure.List((71, 3), [5, 6, 7]),
            ]
            stream = measure.Stream(frame, rate=20_000, fields=fields)
            result = measure.run(tx=port, rx=None, streams=stream, seconds=None, packets=2000)
            assert result.sent == 2000
            eventually(lambda: netns.statistics()["rx_packets"] >= 2000)
            sources = Counter[str]()
            listener.settimeout(30)
            for _ in range(2000):
                data, source = listener.recvfrom(2048)
                sources[source[0]] += 1
                assert len(data) == len(frame) - (42 if version == 4 else 62)
            assert set(sources.values()) == {20}
            assert len(sources) == 100


@pytest.mark.needs("netns")
def test_the_kernel_sends_frames_back_by_the_same_port(netns: Netns) -> None:
    """A router on a stick: `tx` is `rx`, addresses and the time to live change on the way."""
    with virtnic.open(netns.netdev, memory=small()) as port:
        port.wait_ready()
        netns.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        for name in ("rp_filter", "send_redirects"):
            for scope in ("all", "tap0"):
                netns.run("sh", "-c", f"echo 0 > /proc/sys/net/ipv4/conf/{scope}/{name}")
        netns.run("ip", "neigh", "add", "10.99.0.9", "lladdr", port.mac, "dev", "tap0")
        netns.run("ip", "route", "add", "198.18.0.0/15", "via", "10.99.0.9")
        frame = make_frame(60, source=port.mac, destination=netns.mac)
        stream = measure.Stream(
            frame, rate=5000, fields=[measure.Increment("ip.dst", 50, start="198.19.0.1")]
        )
        result = measure.run(tx=port, rx=port, streams=stream, seconds=None, packets=3000)
        assert (result.sent, result.received, result.corrupt) == (3000, 3000, 0)
        assert len(result.streams[0].flows) == 50
        assert {flow.received for flow in result.streams[0].flows} == {60}
        balanced(result)


# testpmd


@pytest.fixture
def pair(testpmd: Start, qemu_command: str) -> Iterator[tuple[virtnic.Port, virtnic.Port, Testpmd]]:
    """Two ports with testpmd between, which passes frames on as they are."""
    backend = testpmd(mode="io", ports=2)
    with virtnic.Qemu(virtnic.Memory("64M", hugepages=None)) as qemu:
        tx, rx = (qemu.attach(f"vhost-user,path={path}") for path in backend.sockets)
        with tx, rx:
            yield tx, rx, backend


@pytest.mark.needs("testpmd")
def test_testpmd_counts_what_was_sent(pair: tuple[virtnic.Port, virtnic.Port, Testpmd]) -> None:
    tx, rx, backend = pair
    streams = [
        measure.Stream(64, rate=20_000, fields=[measure.Increment("udp.sport", 100, start=1)]),
        measure.Stream("imix", rate=10_000),
        measure.Stream(1518, rate=2000, burst=32),
    ]
    result = measure.run(tx=tx, rx=rx, streams=streams, seconds=2.0)
    counted = backend.stats(0)
    assert counted["RX-packets"] == result.sent
    assert result.received == backend.stats(1)["TX-packets"] > 0
    assert (result.duplicates, result.reordered, result.corrupt, result.foreign) == (0, 0, 0, 0)
    assert len(result.streams[0].flows) == 100
    bursts, rest = divmod(result.streams[2].sent + result.streams[2].unsent, 32)
    assert rest == 0
    assert bursts >= 120
    assert 0 < result.latency.minimum <= result.latency.p50 <= result.latency.p99_999
    assert result.latency.p99_999 <= result.latency.maximum < 10
    balanced(result)


@pytest.mark.needs("testpmd")
def test_a_pace_is_kept_to_a_thousandth(pair: tuple[virtnic.Port, virtnic.Port, Testpmd]) -> None:
    tx, rx, _ = pair
    result = measure.run(tx=tx, rx=rx, streams=measure.Stream(64, rate="40kpps"), seconds=3.0)
    due = 40_000 * result.seconds
    assert abs(result.sent + result.unsent - due) <= 0.001 * due + 64
    if not result.unsent:
        assert abs(result.pps - 40_000) <= 40 + 64 / result.seconds


@pytest.mark.needs("testpmd")
def test_several_queues_share_streams_and_counts_add_up(testpmd: Start, qemu_command: str) -> None:
    backend = testpmd(mode="macswap", queues=2)
    netdev = f"vhost-user,path={backend.sockets[0]},queues=2"
    memory = virtnic.Memory("64M", hugepages=None)
    with virtnic.open(netdev, memory=memory, queues=2) as port:
        fields = [measure.Increment("ip.src", 10)]
        stream = measure.Stream(64, rate=10_000, fields=fields)
        result = measure.run(tx=port, rx=port, streams=stream, seconds=None, packets=10_000)
        assert (result.sent, result.corrupt, result.foreign) == (10_000, 0, 0)
        # A ring that overflows on a busy machine is testpmd's loss, and it knows of it.
        assert result.received == backend.stats()["TX-packets"] > 0
        assert sum(flow.sent for flow in result.streams[0].flows) == 10_000
        assert all(900 <= flow.sent <= 1100 for flow in result.streams[0].flows)
        balanced(result)


@pytest.mark.needs("testpmd")
def test_what_nobody_takes_is_told_as_untaken(
    pair: tuple[virtnic.Port, virtnic.Port, Testpmd],
) -> None:
    tx, rx, backend = pair
    backend.command("stop")
    stream = measure.Stream(64, rate=1_000_000)
    result = measure.run(tx=tx, rx=rx, streams=stream, seconds=0.3, drain=0.1)
    assert result.sent == result.lost == result.untaken > 0
    assert result.unsent > 100_000
    assert result.received == 0
    assert result.latency.count == 0


@pytest.mark.needs("testpmd")
@pytest.mark.parametrize("method", ["bisection", "mlrsearch"])
def test_a_search_ends_near_the_rate_at_which_frames_begin_to_be_lost(
    pair: tuple[virtnic.Port, virtnic.Port, Testpmd], method: Any
) -> None:
    if method == "mlrsearch":
        pytest.importorskip("MLRsearch")
    tx, rx, _ = pair
    seen: list[measure.Trial] = []
    (found,) = measure.throughput(
        tx=tx,
        rx=rx,
        sizes=[64],
        loss=0.02,
        seconds=0.1,
        precision=0.2,
        most=20_000,
        method=method,
        progress=seen.append,
    )
    assert found.method == method
    assert tuple(seen) == found.trials
    assert 0 <= found.pps <= found.limit
    assert found.pps <= 20_000
    if found.pps:
        assert found.result is not None
        assert found.result.loss <= 0.02
    for trial in found.trials:
        assert trial.received <= trial.sent


# Without a peer: what is refused, and what results say


def test_what_is_wrong_is_said_before_anything_is_sent(port: virtnic.Port) -> None:
    frame = make_frame(60)
    one = measure.Increment
    cases: list[tuple[Any, str]] = [
        (measure.Stream(frame, fields=[one((60, 2), 5)]), "ends at byte 62"),
        (measure.Stream(frame, fields=[one((50, 2), 5)]), "42 bytes of the frame may differ"),
        (measure.Stream(frame, fields=[one("tcp.sport", 5)]), "the frame has no tcp.sport"),
        (measure.Stream(frame, fields=[one("ip.scr", 5)]), "there is no field"),
        (measure.Stream(frame, fields=[one("ip.src", 0)]), "one value at least"),
        (measure.Stream(frame, fields=[measure.List("ip.src", ["nowhere"])]), "nowhere"),
        (measure.Stream(frame[:50]), "make it longer"),
        (measure.Stream(b""), "has 0 bytes"),
        (measure.Stream(bytes(100_000)), "has 100000 bytes"),
        (measure.Stream([]), "one frame at least"),
        (measure.Stream(63), "64 to"),
        (measure.Stream("imax"), "'imix'"),  # type: ignore[arg-type]
        (measure.Stream(64, rate=0), "above 0"),
        (measure.Stream(64, burst=0), "a burst"),
        (measure.Stream(64, burst=1 << 70), "below 2**64"),
        (measure.Stream(64, rate=1e30), "at most 1e+12"),
        (measure.Stream(64, fields=[one("ip.src", 5, start="::1")]), "takes an IPv4 address"),
        (measure.Stream(64, fields=[one("eth.src", 5, start="10.0.0.1")]), "takes a MAC address"),
        (measure.Stream(64, fields=[one((10**30, 2), 5)]), "an offset is 0 or more and below"),
        ([], "no stream"),
        ([measure.Stream(64)] * 65_536, "fewer than 65536 streams"),
    ]
    for streams, words in cases:
        with pytest.raises(ValueError, match=r".") as caught:
            measure.run(tx=port, rx=port, streams=streams, seconds=0)
        assert words in str(caught.value)
    for name in ("seconds", "warmup", "drain"):
        options: dict[str, Any] = {name: -1.0}
        with pytest.raises(ValueError, match=f"{name} is 0 or more"):
            measure.run(tx=port, rx=port, streams=measure.Stream(64), **options)
    for tx in (7, None):
        with pytest.raises(TypeError, match="from a port to a port"):
            measure.run(tx=tx, rx=port, streams=measure.Stream(64))  # type: ignore[arg-type]
    types: list[tuple[Any, str]] = [
        (measure.Stream(64, fields=[one("ip.src", 1.5)]), "a count is a whole number, not 1.5"),  # type: ignore[arg-type]
        (measure.Stream(64, fields=[one(5, 5)]), "its offset and its bytes, not 5"),  # type: ignore[arg-type]
        (measure.Stream(64, fields=[measure.List("ip.src", [None])]), "not None"),  # type: ignore[list-item]
        (measure.Stream(1000.0), "a frame is bytes"),  # type: ignore[arg-type]
        (measure.Stream([64, 64]), "a frame is bytes"),  # type: ignore[list-item]
    ]
    for wrong, words in types:
        with pytest.raises(TypeError, match=words.replace("(", r"\(")):
            measure.run(tx=port, rx=port, streams=wrong, seconds=0)
    assert port.stats()["tx_packets"] == 0


def histogram(*latencies: int) -> measure.Histogram:
    """Make a histogram of nanoseconds."""
    counts = sorted(Counter(latencies).items())
    total = sum(latencies)
    return measure.Histogram(tuple(counts), min(latencies), max(latencies), total)


def test_histograms_add_up_exactly() -> None:
    few, many = histogram(*range(1, 100)), histogram(*range(50, 1000))
    both = few + many
    assert both == histogram(*range(1, 100), *range(50, 1000))
    assert both == many + few
    assert few + measure.Histogram() == few == measure.Histogram() + few
    assert histogram(*range(1, 101)).percentile(99) == pytest.approx(99e-9)
    assert histogram(*range(1, 101)).percentile(100) == pytest.approx(100e-9)
    assert histogram(5).percentile(0) == pytest.approx(5e-9)
    assert measure.Histogram().latency.p99_9 == 0
    with pytest.raises(ValueError, match="0 to 100"):
        few.percentile(101)


def valid(value: Any, schema: dict[str, Any], at: str = "") -> None:
    """Check a value by what of JSON Schema the published one uses."""
    if "const" in schema:
        assert value == schema["const"], at
        return
    kinds: dict[str, Any] = {
        "integer": int,
        "number": int | float,
        "string": str,
        "boolean": bool,
        "array": list,
        "object": dict,
    }
    kind = schema["type"]
    assert isinstance(value, kinds[kind]), at
    assert isinstance(value, bool) == (kind == "boolean"), at
    if "minimum" in schema:
        assert value >= schema["minimum"], at
    if "maximum" in schema:
        assert value <= schema["maximum"], at
    if kind == "array":
        assert schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", 1 << 60), at
        for number, item in enumerate(value):
            items = schema["prefixItems"][number] if "prefixItems" in schema else schema["items"]
            valid(item, items, f"{at}/{number}")
    if kind == "object":
        assert set(value) == set(schema["properties"]) == set(schema["required"]), at
        for name, member in value.items():
            valid(member, schema["properties"][name], f"{at}/{name}")


def test_the_json_is_what_the_schema_says(wired: Any) -> None:
    _, tx, rx = wired(seed=3, drop=0.1, duplicate=0.1)
    fields = [measure.Increment("udp.dport", 3)]
    stream = measure.Stream(64, rate=10_000, fields=fields, name="one")
    result = measure.run(tx=tx, rx=rx, streams=stream, seconds=0.5)
    told = json.loads(result.to_json())
    valid(told, measure.SCHEMA)
    json.dumps(measure.SCHEMA)
    assert told["lost"] == result.lost
    assert told["streams"][0]["flows"][2]["lost"] == result.streams[0].flows[2].lost
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.lost = 0  # type: ignore[misc]
    assert result.plot().svg.startswith("<svg")


@pytest.mark.needs("testpmd")
def test_a_measured_port_can_be_used_as_before(
    pair: tuple[virtnic.Port, virtnic.Port, Testpmd],
) -> None:
    """All buffers come back, and the queues."""
    tx, rx, _ = pair
    free = tx.memory.buffers_free
    measure.run(tx=tx, rx=rx, streams=measure.Stream("imix", rate=10_000), seconds=0.3)

    def back() -> bool:
        tx.reclaim()
        return tx.memory.buffers_free == free

    eventually(back)
    tx.send([make_frame(60)])
    assert len(rx.recv(1, timeout=20)) == 1


def test_a_queue_in_use_is_busy(port: virtnic.Port) -> None:
    began, over = threading.Event(), threading.Event()

    def progress(_: virtnic.Result) -> bool:
        began.set()
        return not over.is_set()

    thread = threading.Thread(target=virtnic.drop, args=(port,), kwargs={"progress": progress})
    thread.start()
    assert began.wait(20)
    with pytest.raises(virtnic.PortBusy):
        measure.run(tx=port, rx=port, streams=measure.Stream(64), seconds=0.1)
    over.set()
    thread.join()
    assert measure.run(tx=port, rx=None, streams=measure.Stream(64), seconds=0.05).sent > 0
