"""Clauses NTF-…: kicks and calls, suppressed or not."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from virtnic.check.clause import Wrong
from virtnic.check.device import EVENT_IDX, Device, frame_of
from virtnic.check.rings import both

if TYPE_CHECKING:
    from virtnic.check.clause import Bench
    from virtnic.check.ring import Ring

__all__ = ["CLAUSES"]

#: How long no call may come, where none is asked for.
_QUIET = 0.02
#: Round trips of NTF-11.
_TRIPS = 100_000


def _device(bench: Bench, packed: bool, want: int = 0, *, silent: bool = False) -> Device:
    """Return a device of 16 entries that starts just before the end of the split index."""
    bases = None if packed else [0, 0xFFF0]
    device = Device(bench, packed=packed, size=16, want=want, bases=bases, silent=silent)
    time.sleep(_QUIET)  # a backend may call once when a ring starts
    device.tx.call.drain()
    return device


def _wakes(bench: Bench, packed: bool) -> str:
    device = Device(bench, packed=packed, size=16)
    for number in range(20):
        time.sleep(0.005)
        device.send([frame_of(number)])
        device.sent(1)
    device.stop()
    return "20 frames were used, each sent after 5 ms of silence"


def _called(ring: Ring, timeout: float, what: str) -> None:
    if not ring.call.wait(timeout):
        raise Wrong(f"no call came {what}")
    ring.call.drain()


def _calls(bench: Bench, packed: bool) -> str:
    device = _device(bench, packed)
    device.tx.ask_for_call()
    for number in range(200):
        device.send([frame_of(number)])
        _called(device.tx, bench.timeout, f"for frame {number}")
        device.sent(1)
    device.stop()
    return "200 calls came"


def _suppressed(bench: Bench, packed: bool) -> str:
    device = _device(bench, packed, silent=True)
    for number in range(50):
        device.send([frame_of(number)])
        device.sent(1)
    time.sleep(_QUIET)
    count = device.tx.call.drain()
    device.stop()
    if count:
        raise Wrong(f"{count} calls came for 50 frames")
    return "50 frames, no call"


def _at_index(bench: Bench, packed: bool) -> str:
    device = _device(bench, packed, EVENT_IDX)
    for number in range(120):
        count = 1 + number % 5
        device.tx.ask_for_call(count - 1)
        device.send([frame_of(each) for each in range(count)])
        _called(device.tx, bench.timeout, f"for buffer {count} of {count}, in round {number}")
        device.sent(count)
    device.stop()
    return "a call came for the buffer that was asked for, 120 times"


def _not_before(bench: Bench, packed: bool) -> str:
    device = _device(bench, packed, EVENT_IDX)
    # A backend that does not know yet where it called last may call for the first buffer.
    device.send([frame_of(0)])
    device.sent(1, settle=_QUIET)
    device.tx.call.drain()
    for number in range(10):
        device.tx.ask_for_call(7)
        device.send([frame_of(each) for each in range(5)])
        device.sent(5)
        time.sleep(_QUIET / 4)
        if device.tx.call.drain():
            raise Wrong(f"a call came before the eighth buffer, in round {number}")
        device.send([frame_of(each) for each in range(4)])
        _called(device.tx, bench.timeout, f"for the eighth buffer, in round {number}")
        device.sent(4)
    device.stop()
    return "no call came for 5 buffers, one for the eighth, ten times"


def _wanted(want: int, bench: Bench, packed: bool) -> str:
    device = _device(bench, packed, want, silent=True)
    kicks = sent = 0
    while sent < 2000:
        count = 1 + sent * 7 // 3 % 4
        for number in range(count):
            device.add(device.tx, frame_of(sent + number))
        device.tx.publish()
        if device.tx.wants_kick(count):
            device.tx.kick.signal()
            kicks += 1
        device.sent(count)
        sent += count
        if not sent % 50:
            time.sleep(0.001)  # a backend that sleeps goes to sleep
    device.stop()
    return f"{sent} frames were used with {kicks} kicks"


def _early(bench: Bench, packed: bool) -> str:
    device = Device(bench, packed=packed, size=16, start=False)
    device.start(0)
    device.start(1)
    device.send([frame_of(number) for number in range(3)])
    time.sleep(_QUIET)
    device.enable(0)
    device.enable(1)
    device.sent(3)
    device.stop()
    return "3 frames that were kicked before were used"


def _replaced(bench: Bench, packed: bool) -> str:
    device = _device(bench, packed)
    ring = device.tx
    for number in range(3):
        event = bench.event()
        device.frontend.set_vring_call(1, event.fileno())
        time.sleep(_QUIET / 4)
        event.drain()
        ring.ask_for_call()
        device.send([frame_of(number)])
        if not event.wait(bench.timeout):
            raise Wrong("no call came on an eventfd that replaced another")
        device.sent(1)
        device.frontend.set_vring_call(1, None)
        event.drain()
        device.send([frame_of(number)])
        device.sent(1, settle=_QUIET / 4)
        if event.drain():
            raise Wrong("a call came on an eventfd that was taken away")
    device.stop()
    return "calls came on the newest eventfd only"


def _polled(bench: Bench, packed: bool) -> str:
    device = Device(bench, packed=packed, size=16)
    for number in range(3):
        event = bench.event()
        device.frontend.set_vring_kick(1, event.fileno())
        device.add(device.tx, frame_of(number))
        device.tx.publish()
        event.signal()
        device.sent(1)
    device.frontend.set_vring_kick(1, None)
    for number in range(20):
        device.add(device.tx, frame_of(number))
        device.tx.publish()
        device.sent(1)
    device.stop()
    return "kicks on new eventfds were heard, and without one the ring was polled"


def _trips(bench: Bench, packed: bool) -> str:
    device = Device(bench, packed=packed, size=64)
    ring, piece = device.tx, device.shared(frame_of(1))
    sent = used = 0
    deadline = time.monotonic() + bench.timeout
    while used < _TRIPS:
        count = min(32 - (sent - used), _TRIPS - sent)
        if count:
            for _ in range(count):
                ring.add([piece])
            ring.publish()
            ring.kick.signal()
            sent += count
        found = len(ring.pop())
        used += found
        if found:
            deadline = time.monotonic() + bench.timeout
        elif time.monotonic() > deadline:
            raise Wrong(f"after {used} round trips nothing was used for {bench.timeout:g} s")
        else:
            time.sleep(0)
    device.stop()
    return f"{used} round trips"


_ALL = (
    *both(
        1,
        "a kick wakes the backend",
        "VIRTIO 1.3, 2.7.13.4; VHOST_USER_SET_VRING_KICK",
        "VIRTIO 1.3, 2.8.21; VHOST_USER_SET_VRING_KICK",
        "Sends 20 frames, each after a pause.",
        "Each is used.",
        _wakes,
        prefix="NTF",
        group="notify",
    ),
    *both(
        2,
        "each used buffer is signalled if a call is wanted",
        "VIRTIO 1.3, 2.7.7.2; VHOST_USER_SET_VRING_CALL",
        "VIRTIO 1.3, 2.8.10; VHOST_USER_SET_VRING_CALL",
        "Sends 200 frames, each after the call for the one before.",
        "A call comes for each.",
        _calls,
        prefix="NTF",
        group="notify",
    ),
    *both(
        3,
        "no call comes if none is wanted",
        "VIRTIO 1.3, 2.7.7.2",
        "VIRTIO 1.3, 2.8.10",
        "Suppresses calls by the flag, and sends 50 frames.",
        "No call comes (SHOULD NOT).",
        _suppressed,
        prefix="NTF",
        group="notify",
    ),
    *both(
        4,
        "EVENT_IDX: a call comes for the buffer that was asked for",
        "VIRTIO 1.3, 2.7.7.2",
        "VIRTIO 1.3, 2.8.10",
        "Asks for a call at the last of 1 to 5 buffers, 120 times, across the wrap of the index.",
        "It comes each time.",
        _at_index,
        prefix="NTF",
        group="notify",
    ),
    *both(
        5,
        "EVENT_IDX: no call comes before that buffer",
        "VIRTIO 1.3, 2.7.7.2",
        "VIRTIO 1.3, 2.8.10",
        "Asks for a call at the eighth buffer, and sends five, then four.",
        "None comes for the five (SHOULD NOT), one for the eighth.",
        _not_before,
        prefix="NTF",
        group="notify",
    ),
    *both(
        6,
        "kicks that the backend wants are enough",
        "VIRTIO 1.3, 2.7.10",
        "VIRTIO 1.3, 2.8.10",
        "Sends 2,000 frames, and kicks only when the flags of the backend ask for it.",
        "All are used.",
        partial(_wanted, 0),
        prefix="NTF",
        group="notify",
    ),
    *both(
        7,
        "EVENT_IDX: kicks that the backend wants are enough",
        "VIRTIO 1.3, 2.7.10",
        "VIRTIO 1.3, 2.8.10",
        "Sends 2,000 frames, and kicks only when the event index of the backend asks for it.",
        "All are used.",
        partial(_wanted, EVENT_IDX),
        prefix="NTF",
        group="notify",
    ),
    *both(
        8,
        "a kick before SET_VRING_ENABLE is not lost",
        "Vhost-user Protocol, Ring states",
        "Vhost-user Protocol, Ring states",
        "Sends three frames, and enables the ring afterwards.",
        "The frames are used.",
        _early,
        prefix="NTF",
        group="notify",
    ),
    *both(
        9,
        "the call eventfd can be replaced and taken away",
        "Vhost-user Protocol, VHOST_USER_SET_VRING_CALL",
        "Vhost-user Protocol, VHOST_USER_SET_VRING_CALL",
        "Gives the running ring new eventfds and none, in turn.",
        "Calls come on the newest; without one, frames are used all the same.",
        _replaced,
        prefix="NTF",
        group="notify",
    ),
    *both(
        10,
        "the kick eventfd can be replaced; without one the ring is polled",
        "Vhost-user Protocol, VHOST_USER_SET_VRING_KICK",
        "Vhost-user Protocol, VHOST_USER_SET_VRING_KICK",
        "Gives the running ring new eventfds, then none, and sends frames.",
        "All are used.",
        _polled,
        prefix="NTF",
        group="notify",
    ),
    *both(
        11,
        "a hundred thousand round trips",
        "VIRTIO 1.3, 2.7.13",
        "VIRTIO 1.3, 2.8.21",
        "Keeps 32 frames with the backend, until 100,000 were used.",
        "None is lost.",
        _trips,
        prefix="NTF",
        group="notify",
    ),
)
CLAUSES = tuple(sorted(_ALL, key=lambda clause: clause.ring == "packed"))
