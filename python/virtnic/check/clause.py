"""`Clause`: one rule to check. `Bench`: the backend that it is checked on."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

import virtnic
from virtnic.arguments import suggest_options
from virtnic.errors import DeviceError
from virtnic.teardown import Closing
from virtnic.vhost_user import Frontend, ProtocolFeature

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

__all__ = [
    "PROTOCOL_FEATURES",
    "RING_PACKED",
    "USED",
    "VERSION_1",
    "Bench",
    "Clause",
    "Group",
    "NotApplicable",
    "NotOffered",
    "Wrong",
    "bits",
]

#: What a clause is about.
Group = Literal["features", "messages", "rings", "net", "notify", "life", "hostile"]
#: What a clause is about where there are two kinds of rings.
RingFormat = Literal["split", "packed"]

#: Feature bits 32 (VERSION_1), 34 and 30 (the backend has protocol features).
VERSION_1, RING_PACKED, PROTOCOL_FEATURES = 1 << 32, 1 << 34, 1 << 30
#: Protocol features that :meth:`Bench.meet` enables if the backend offers them.
USED = ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK


class Wrong(Exception):
    """The backend breaks the rule; the message says what was seen."""


class NotOffered(Exception):
    """The backend lacks the feature that the clause needs; the message says which."""


class NotApplicable(Exception):
    """The clause does not concern such a backend, or the options do not say enough."""


@dataclass(frozen=True, slots=True)
class Clause:
    """One rule, and the function that checks it.

    Attributes
    ----------
    id
        Permanent: a clause whose demand changes gets a new id.
    group, title
        What the clause is about, and its short name.
    source
        The section of VIRTIO 1.3, or the message of QEMU's "Vhost-user Protocol".
    does, right
        What the check does, and what it expects: one sentence each.
    check
        Returns what was seen; raises :class:`Wrong`, :class:`NotOffered` or
        :class:`NotApplicable`.
    ring
        The format of the rings that it uses: ``split`` or ``packed``; None if it uses none, or
        if the format makes no difference.
    needs
        What the backend must do: ``return`` the frames (``--echo`` or ``--pair``), ``pair``, or
        nothing but take them.

    """

    id: str
    group: Group
    title: str
    source: str
    does: str
    right: str
    check: Callable[[Bench], str]
    ring: RingFormat | None = None
    needs: Literal["return", "pair"] | None = None

    @property
    def __name__(self) -> str:
        """The id: pytest names a parametrised test after it."""
        return self.id


def bits(features: int) -> str:
    """Return the numbers of the bits that are set, for messages."""
    return ", ".join(str(bit) for bit in range(64) if features >> bit & 1) or "none"


class Bench(Closing):
    """The backend under test. Closes every connection and eventfd that it made."""

    @suggest_options
    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        echo: bool = False,
        pair: str | os.PathLike[str] | None = None,
        timeout: float = 3.0,
    ) -> None:
        self.path, self.echo, self.pair, self.timeout = path, echo, pair, timeout
        self._stack = ExitStack()

    def connect(self, path: str | os.PathLike[str] | None = None) -> Frontend:
        """Return a new connection; no message has been sent on it."""
        return self._stack.enter_context(Frontend(path or self.path, timeout=self.timeout))

    @suggest_options
    def meet(
        self, path: str | os.PathLike[str] | None = None, *, use: ProtocolFeature = USED
    ) -> tuple[Frontend, int, ProtocolFeature]:
        """Connect, and enable those protocol features that are offered, of ``use``.

        Returns the connection, the feature bits and the protocol features that were offered.
        """
        frontend = self.connect(path)
        features = frontend.get_features()
        protocol = ProtocolFeature(0)
        if features & PROTOCOL_FEATURES:
            protocol = frontend.get_protocol_features()
            frontend.set_protocol_features(protocol & use)
        frontend.set_owner()
        return frontend, features, protocol

    def again(self) -> Self:
        """Close everything, so that the next connection is the only one."""
        self._stack.close()
        return self

    def offers(self, wanted: int) -> bool:
        """Return whether all these feature bits are offered."""
        with Frontend(self.path, timeout=self.timeout) as frontend:
            return not wanted & ~frontend.get_features()

    def answers(self) -> bool:
        """Return whether the backend answers on a new connection."""
        self.again()
        try:
            with Frontend(self.path, timeout=max(self.timeout, 5.0)) as frontend:
                frontend.get_features()
        except (OSError, DeviceError):
            return False
        return True

    def closes(self, close: Callable[[], object]) -> None:
        """Have something closed at the end of the clause."""
        self._stack.callback(close)

    def acknowledged(self) -> tuple[Frontend, int]:
        """Connect with REPLY_ACK; return the connection and the feature bits.

        Raises NotOffered where the backend has no REPLY_ACK.
        """
        frontend, features, _ = self.meet()
        if not frontend.acknowledged:
            raise NotOffered("REPLY_ACK is not offered, so a refusal cannot be seen")
        return frontend, features

    def memory(self) -> virtnic.Memory:
        """Return new memory to share with the backend."""
        return virtnic.Memory("4M", hugepages=None)

    def event(self) -> virtnic.EventFd:
        """Return a new eventfd."""
        event = virtnic.EventFd()
        self._stack.callback(event.close)
        return event

    def close(self) -> None:
        """Close them."""
        self._stack.close()
