"""The recovery policy: number of attempts, and pauses."""

from __future__ import annotations

from dataclasses import dataclass

from virtnic.arguments import suggest_options

__all__ = ["Recoveries", "Recovery", "policy"]


@suggest_options
@dataclass(frozen=True, slots=True)
class Recovery:
    """How often, and after which pauses, to restart a dead QEMU or look for a lost backend.

    Recovery ends after ``attempts`` consecutive failures: calls then raise QemuDied, or DeviceError
    if QEMU is back but the port is not. The first attempt is made at once, the second ``backoff``
    seconds later; each pause is twice the previous one, up to ``backoff_max``. A QEMU that dies
    less than ``backoff_max`` seconds after its start counts as a failure too.
    """

    attempts: int = 10
    backoff: float = 0.05
    backoff_max: float = 2.0

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"recovery needs at least one attempt, not {self.attempts}")
        if not 0.0 < self.backoff <= self.backoff_max:
            raise ValueError(
                f"backoff must be above 0 and at most backoff_max "
                f"({self.backoff_max:g} s), not {self.backoff:g} s"
            )

    def pause(self, failures: int) -> float:
        """Return the pause in seconds after this many consecutive failures."""
        return min(self.backoff * 2.0 ** min(failures - 1, 32), self.backoff_max)


def policy(recover: object, *, also: object = False) -> Recovery | None:
    """Return the policy of an argument ``recover``, or None. Raises TypeError.

    ``also`` is a value allowed besides True, False and a policy.
    """
    if isinstance(recover, Recovery):
        return recover
    if not isinstance(recover, bool) and recover is not also:
        raise TypeError(f"recover must be True, False or a virtnic.Recovery, not {recover!r}")
    return None


class Recoveries:
    """How often QEMU was recovered: the value of :attr:`virtnic.Qemu.recovery`."""

    def __init__(self) -> None:
        #: Number of recoveries, and the duration of the last one in seconds.
        self.recoveries = 0
        self.outage = 0.0
        #: Whether recovery has ended: too many attempts failed, or QEMU was closed.
        self.over = False
