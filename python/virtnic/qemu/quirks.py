"""Differences between QEMU versions: one table, and no version numbers elsewhere.

Each row gives the versions, the symptom, what virtnic does, and a test. Code asks with :func:`has`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple


class Version(NamedTuple):
    """A QEMU version; compares as a tuple."""

    major: int
    minor: int
    micro: int = 0

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.micro}"

    @classmethod
    def parse(cls, text: str) -> Version:
        """Parse the first ``X.Y[.Z]`` of a text; ValueError if there is none."""
        match = re.search(r"\b(\d+)\.(\d+)(?:\.(\d+))?", text)
        if match is None:
            raise ValueError(f"no version number in {text!r}")
        return cls(int(match[1]), int(match[2]), int(match[3] or 0))


#: The oldest tested QEMU. An older one is used with a warning.
OLDEST = Version(5, 2)


@dataclass(frozen=True, slots=True)
class Quirk:
    """One row of the table, valid for ``since <= version < before``."""

    name: str
    since: Version | None
    before: Version | None
    symptom: str
    action: str
    test: str

    @property
    def versions(self) -> str:
        """The versions as text, such as ``before 9.2``."""
        parts = []
        if self.since is not None:
            parts.append(f"since {self.since.major}.{self.since.minor}")
        if self.before is not None:
            parts.append(f"before {self.before.major}.{self.before.minor}")
        return ", ".join(parts) or "all"

    def holds(self, version: Version) -> bool:
        """Whether a QEMU version has the quirk."""
        return (self.since is None or version >= self.since) and (
            self.before is None or version < self.before
        )


# Each was seen on those of 5.2, 7.2, 10.0 and 11.1 that have it. Boundaries between these come from
# QEMU's release notes or history and were not tested.
QUIRKS: tuple[Quirk, ...] = (
    Quirk(
        name="no-qtest-accelerator",
        since=None,
        before=None,
        symptom="some builds (Debian's 7.2 and 10.0) lack the qtest accelerator, which "
        "`-accel help` does not show: `invalid accelerator qtest`",
        action="accel=auto gives QEMU the list qtest, tcg, kvm and reads which are missing; "
        "without qtest the vCPU is parked by a three-instruction firmware",
        test="tests/device/test_qemu_start.py::test_accel_auto_takes_what_there_is",
    ),
    Quirk(
        name="qtest-clock-stands-still",
        since=None,
        before=None,
        symptom="with accel=qtest the virtual clock does not advance, so slirp's timers never fire",
        action="step the clock in real time once a netdev that needs it is attached",
        test="tests/device/test_qemu_hotplug.py::test_clock_runs_for_slirp",
    ),
    Quirk(
        name="q35-acpi-hotplug",
        since=Version(6, 1),
        before=None,
        symptom="q35 hands hotplug behind root ports to ACPI, whose bus numbering depends on "
        "the topology; before 6.1 it is native",
        action="disable ACPI hotplug, so that all versions use the native PCI Express slot "
        "registers",
        test="tests/device/test_qemu_hotplug.py::test_native_hotplug_on_q35",
    ),
    Quirk(
        name="q35-slot-power",
        since=Version(6, 2),
        before=None,
        symptom="a device added behind a root port with a power controller does not respond to "
        "configuration access until the slot is powered",
        action="root ports without power controller (power_controller_present=off)",
        test="tests/device/test_qemu_hotplug.py::test_native_hotplug_on_q35",
    ),
    Quirk(
        name="typed-device-add",
        since=Version(9, 2),
        before=None,
        symptom="device_add takes each property in its own JSON type only: `mq` as a boolean, "
        "`disable-legacy` as the string on or off",
        action="ask this QEMU for the type of each property (device-list-properties) and convert",
        test="tests/device/test_qemu_hotplug.py::test_properties_are_typed_by_qemu",
    ),
    Quirk(
        name="queue-size-ignored",
        since=Version(10, 0),
        before=Version(10, 1),
        symptom="a receive queue has 1024 entries whatever `rx_queue_size` is, although that reads "
        "back as set (seen on 10.0.13; not on 5.2, 7.2 and 11.1)",
        action="the driver sets 256 unless more was requested; with the legacy interface, which "
        "cannot change it, queue_size= can only be 1024",
        test="tests/device/test_legacy.py::test_the_queue_size_is_the_devices",
    ),
    Quirk(
        name="no-split-wx",
        since=None,
        before=Version(6, 0),
        symptom="tcg has no `split-wx`: where writable memory must not be executable "
        "(systemd's MemoryDenyWriteExecute), it does not start (`mprotect of jit buffer`)",
        action="split-wx=on elsewhere; there the accelerator qtest works, which such QEMUs have",
        test="tests/device/test_qemu_surroundings.py::test_without_writable_and_executable_memory",
    ),
    Quirk(
        name="reconnect-in-seconds",
        since=None,
        before=Version(9, 2),
        symptom="a socket chardev has no `reconnect-ms`, only `reconnect` in whole seconds, which "
        "newer ones (10.2) no longer have",
        action="reconnect=1 there, reconnect-ms=100 elsewhere",
        test="tests/device/test_qemu_vhost_user.py::test_reconnect_by_version",
    ),
    Quirk(
        name="stream-no-reconnect",
        since=None,
        before=Version(8, 0),
        symptom="a stream netdev has neither `reconnect` (8.0 to 10.1) nor `reconnect-ms` (9.2)",
        action="a ValueError; elsewhere either is translated to the one that this QEMU has",
        test="tests/device/test_netdev_stream.py::test_reconnecting_in_this_qemus_unit",
    ),
    Quirk(
        name="platform-unplug-crash",
        since=None,
        before=Version(7, 2),
        symptom="QEMU dies of SIGABRT (`do_address_space_destroy`) when a device with "
        "`iommu_platform=on` is unplugged (seen on 5.2; not on 7.2 and later)",
        action="none: close such a QEMU instead of detaching the port",
        test="tests/device/test_features.py::test_unplugging_behind_the_platform",
    ),
    Quirk(
        name="vhost-user-msix-crash",
        since=None,
        before=Version(10, 0),
        symptom="QEMU dies of SIGSEGV when a vhost-user device starts with MSI-X vectors on its "
        "queues and there is no KVM irqfd (seen on 5.2 and 7.2; not on 10.0 and 11.1)",
        action="the queues get no vector (0xffff) and are polled or signalled by the interposer; "
        "the configuration vector stays",
        test="tests/device/test_qemu_vhost_user.py::test_queue_vectors_are_refused_where_qemu_crashes",
    ),
    Quirk(
        name="vhost-user-loss-crash",
        since=None,
        before=Version(7, 2),
        symptom="QEMU may die of SIGSEGV (`Failed to set msg fds`, `ring restore failed`) when a "
        "vhost-user backend ends at the moment its device starts (seen on 5.2, in about "
        "one of six attempts; never half a second later, nor on 7.2, 10.0 and 11.1)",
        action="none: calls raise QemuDied, and with recover=True another QEMU is started",
        test="tests/device/test_events.py::test_a_backend_that_goes_at_once",
    ),
)

_BY_NAME = {quirk.name: quirk for quirk in QUIRKS}


def has(version: Version, name: str) -> bool:
    """Whether a QEMU version has a quirk. KeyError for an unknown quirk."""
    return _BY_NAME[name].holds(version)


def of(version: Version) -> list[Quirk]:
    """All quirks of a QEMU version."""
    return [quirk for quirk in QUIRKS if quirk.holds(version)]
