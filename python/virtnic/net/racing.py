"""Connects to the first of several addresses that answers (RFC 8305, "Happy Eyeballs")."""

from __future__ import annotations

import errno
import select
import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from virtnic.net.addresses import Address
    from virtnic.net.socket import Socket

__all__ = ["DELAY", "interleave", "race"]

#: Seconds until the next attempt starts beside those that are running (section 5).
DELAY = 0.25


def interleave(addresses: Iterable[Address]) -> list[Address]:
    """Return the addresses with the families alternating, that of the first address first."""
    addresses = list(addresses)
    six = bool(addresses) and ":" in addresses[0][0]
    first = [address for address in addresses if (":" in address[0]) == six]
    second = [address for address in addresses if (":" in address[0]) != six]
    mixed: list[Address] = []
    while first or second:
        mixed += first[:1] + second[:1]
        first, second = first[1:], second[1:]
    return mixed


def race(
    addresses: list[Address], make: Callable[[Address], Socket], timeout: float | None
) -> Socket:
    """Return the first socket that connects; ``make`` creates one for an address.

    Raises TimeoutError, or the last error if every attempt fails.
    """
    runners = _Runners(make)
    try:
        winner = runners.run(addresses, timeout)
    except BaseException:
        runners.close(None)
        raise
    runners.close(winner)
    return winner


class _Runners:
    """Running attempts to connect; each starts a while after the one before."""

    def __init__(self, make: Callable[[Address], Socket]) -> None:
        self._make = make
        self._running: dict[int, tuple[Socket, Address]] = {}
        self._opened: list[Socket] = []
        self._poll = select.poll()
        self._last: OSError | None = None

    def close(self, winner: Socket | None) -> None:
        for attempt in self._opened:
            if attempt is not winner:
                attempt.close()

    def run(self, addresses: list[Address], timeout: float | None) -> Socket:
        over = float("inf") if timeout is None else time.monotonic() + timeout
        waiting = list(addresses)
        while waiting or self._running:
            if waiting and (winner := self._begin(waiting.pop(0))):
                return winner
            next_at = time.monotonic() + DELAY if waiting else float("inf")
            while self._running:
                now = time.monotonic()
                if now >= over:
                    raise TimeoutError(f"no connection to {addresses[0][0]} within {timeout:g} s")
                if now >= next_at:
                    break
                until = min(next_at, over, now + 60)
                for number, _ in self._poll.poll((until - now) * 1000 + 1):
                    if winner := self._look(number):
                        return winner
        raise self._last or OSError(errno.EINVAL, "there is no address to connect to")

    def _begin(self, address: Address) -> Socket | None:
        try:
            attempt = self._make(address)
            self._opened.append(attempt)
            attempt.setblocking(False)
            code = attempt.connect_ex(address)
        except OSError as error:
            self._last = error
            return None
        if code == 0:
            return attempt
        if code != errno.EINPROGRESS:
            self._last = OSError(code, f"connecting to {address}")
            return None
        number = attempt.fileno()
        self._running[number] = (attempt, address)
        self._poll.register(number, select.POLLOUT)
        return None

    def _look(self, number: int) -> Socket | None:
        attempt, address = self._running.pop(number)
        self._poll.unregister(number)
        code = attempt.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code == 0:
            return attempt
        self._last = OSError(code, f"connecting to {address}")
        return None
