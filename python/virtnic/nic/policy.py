"""How often, and after which pauses, what died is started again or looked for."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Recoveries", "Recovery", "policy"]


@dataclass(frozen=True, slots=True)
class Recovery:
    """How often, and after which pauses, a QEMU that died is started again, or a backend found.

    ``attempts`` in a row that fail end it: then calls raise QemuDied, or DeviceError where QEMU
    is back but the port is not. The first attempt is made at once; ``backoff`` seconds after
    it the second, and each pause is twice as long as the one before, up to ``backoff_max``. A
    QEMU that dies less than ``backoff_max`` seconds after it was started counts as a failure too.
    """

    attempts: int = 10
    backoff: float = 0.05
    backoff_max: float = 2.0

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"recovery takes at least one attempt, not {self.attempts}")
        if not 0.0 < self.backoff <= self.backoff_max:
            raise ValueError(
                f"the pause between attempts is above 0 and at most backoff_max "
                f"({self.backoff_max:g} s), not {self.backoff:g} s"
            )

    def pause(self, failures: int) -> float:
        """Return the seconds to wait after so many failures in a row."""
        return min(self.backoff * 2.0 ** min(failures - 1, 32), self.backoff_max)


def policy(recover: object, *, also: object = False) -> Recovery | None:
    """Return what an argument ``recover`` is if it is a policy. Raises TypeError.

    ``also`` is what it may be beside True, False and a policy.
    """
    if isinstance(recover, Recovery):
        return recover
    if not isinstance(recover, bool) and recover is not also:
        raise TypeError(f"recover is True, False or a virtnic.Recovery, not {recover!r}")
    return None


class Recoveries:
    """How often QEMU was replaced: what :attr:`virtnic.Qemu.recovery` is."""

    def __init__(self) -> None:
        #: How often it was, and the seconds that the last time took.
        self.recoveries = 0
        self.outage = 0.0
        #: Whether it is replaced no more: too many attempts failed, or it was closed.
        self.over = False
