"""Clauses FEAT-…: the feature bits that a backend offers and accepts."""

from __future__ import annotations

from virtnic.check.clause import (
    PROTOCOL_FEATURES,
    VERSION_1,
    Bench,
    Clause,
    NotOffered,
    Wrong,
    bits,
)
from virtnic.errors import DeviceError, message_of
from virtnic.vhost_user import Refused

__all__ = ["CLAUSES"]

#: Features that depend on others: each needs one of the bits listed (VIRTIO 1.3, 5.1.3.1).
_NEEDS = {
    7: (1,),
    8: (1,),
    10: (1,),
    54: (1,),
    55: (1,),
    9: (7, 8),
    11: (0,),
    12: (0,),
    14: (0,),
    56: (0,),
    13: (11, 12),
}


def _stays(bench: Bench) -> str:
    frontend, features, _ = bench.meet()
    again = frontend.get_features()
    frontend.close()  # some backends serve one front-end at a time
    other = bench.connect().get_features()
    if not features == again == other:
        raise Wrong(f"{features:#x}, then {again:#x}, and {other:#x} on a second connection")
    return f"bits {bits(features)}"


def _version_1(bench: Bench) -> str:
    features = bench.connect().get_features()
    if not features & VERSION_1:
        raise Wrong(f"bit 32 is not offered; offered are bits {bits(features)}")
    return "bit 32 is offered"


def _needs(bench: Bench) -> str:
    features = bench.connect().get_features()
    for bit, needs in _NEEDS.items():
        if features >> bit & 1 and not any(features >> need & 1 for need in needs):
            wanted = " or ".join(map(str, needs))
            raise Wrong(f"bit {bit} is offered without bit {wanted}")
    return "every dependency is offered"


def _protocol(bench: Bench) -> str:
    frontend = bench.connect()
    if not frontend.get_features() & PROTOCOL_FEATURES:
        raise NotOffered("bit 30 is not offered")
    first, again = frontend.get_protocol_features(), frontend.get_protocol_features()
    if first != again:
        raise Wrong(f"{int(first):#x}, then {int(again):#x}")
    return f"bits {bits(first)}"


def _each_alone(bench: Bench) -> str:
    frontend, features = bench.acknowledged()
    always = features & (VERSION_1 | PROTOCOL_FEATURES)
    tried = 0
    for bit in range(64):
        if not features >> bit & 1:
            continue
        needs = [need for need in _NEEDS.get(bit, ()) if features >> need & 1]
        with_it = 1 << bit | sum(1 << need for need in needs)
        if bit == 9 or bit == 13:
            with_it |= features & (1 << (1 if bit == 9 else 0))
        try:
            frontend.set_features(always | with_it)
        except DeviceError as error:
            raise Wrong(f"bit {bit}: {message_of(error)}") from None
        tried += 1
    return f"{tried} bits accepted"


def _all(bench: Bench) -> str:
    frontend, features = bench.acknowledged()
    try:
        frontend.set_features(features)
    except DeviceError as error:
        raise Wrong(message_of(error)) from None
    return f"{features:#x} accepted"


def _not_offered(bench: Bench) -> str:
    frontend, features = bench.acknowledged()
    # Bits 42 to 49 are reserved: no device type uses them (VIRTIO 1.3, 2.2).
    absent = next((bit for bit in range(42, 50) if not features >> bit & 1), None)
    if absent is None:
        raise NotOffered("every reserved bit is offered")
    try:
        frontend.set_features(features & (VERSION_1 | PROTOCOL_FEATURES) | 1 << absent)
    except Refused as refused:
        return f"bit {absent} was refused with code {refused.code}"
    except ConnectionError:
        return f"bit {absent} was refused: the backend closed the connection"
    raise Wrong(f"bit {absent} is not offered, and was acknowledged with 0")


CLAUSES = (
    Clause(
        "FEAT-01",
        "features",
        "the offered features do not change",
        "Vhost-user Protocol, VHOST_USER_GET_FEATURES",
        "Sends GET_FEATURES twice on one connection and once on another.",
        "All three replies carry the same 64 bits.",
        _stays,
    ),
    Clause(
        "FEAT-02",
        "features",
        "VERSION_1 is offered",
        "VIRTIO 1.3, 6.2",
        "Reads bit 32 of the offered features.",
        "The bit is set.",
        _version_1,
    ),
    Clause(
        "FEAT-03",
        "features",
        "each offered feature comes with those that it requires",
        "VIRTIO 1.3, 2.2.1 and 5.1.3.1",
        "Looks for offloads without CSUM or GUEST_CSUM, and ECN without TSO.",
        "No feature is offered without the features that it requires.",
        _needs,
    ),
    Clause(
        "FEAT-04",
        "features",
        "the protocol features do not change",
        "Vhost-user Protocol, VHOST_USER_GET_PROTOCOL_FEATURES",
        "If bit 30 is offered, sends GET_PROTOCOL_FEATURES twice.",
        "Both replies carry the same 64 bits.",
        _protocol,
    ),
    Clause(
        "FEAT-05",
        "features",
        "each offered feature is accepted alone",
        "VIRTIO 1.3, 2.2.2; VHOST_USER_SET_FEATURES",
        "Sends SET_FEATURES once for each offered bit, with VERSION_1 and the bits it requires.",
        "Each request is acknowledged with 0.",
        _each_alone,
    ),
    Clause(
        "FEAT-06",
        "features",
        "all offered features are accepted together",
        "VIRTIO 1.3, 2.2.2; VHOST_USER_SET_FEATURES",
        "Sends SET_FEATURES with all offered bits.",
        "The request is acknowledged with 0.",
        _all,
    ),
    Clause(
        "FEAT-07",
        "features",
        "a feature that is not offered is refused",
        "VIRTIO 1.3, 2.2.2; VHOST_USER_SET_FEATURES",
        "Sends SET_FEATURES with a reserved bit that is not offered.",
        "The acknowledgement is not 0, or the backend closes the connection.",
        _not_offered,
    ),
)
