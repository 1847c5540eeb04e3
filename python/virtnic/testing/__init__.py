"""For tests of programs that use virtnic, and of switches: faults, scripted devices, real peers.

:class:`FaultyPort` wraps a port and drops, duplicates, reorders, corrupts and delays its frames.
:class:`ScriptedPort` is a port without a QEMU, whose device follows a script. :func:`set_link`,
:func:`kill_qemu` and :func:`lie` make a real device misbehave. :class:`OvsDpdk`, :class:`Testpmd`
and :class:`TapNamespace` start real peers. The pytest plugin is :mod:`virtnic.testing.plugin`.
"""

from __future__ import annotations

from virtnic.testing.faults import FaultyPort
from virtnic.testing.frames import Frames
from virtnic.testing.namespace import TapNamespace
from virtnic.testing.ovs import OvsBridge, OvsDpdk
from virtnic.testing.programs import ProgramNotFound
from virtnic.testing.sabotage import kill_qemu, lie, set_link
from virtnic.testing.script import (
    Deliver,
    Die,
    Expect,
    Lie,
    Link,
    Pause,
    Refuse,
    ScriptedPort,
    Step,
    Unplug,
)
from virtnic.testing.testpmd import Testpmd, TestpmdError

__all__ = [  # noqa: RUF022 - by importance
    "FaultyPort",
    "ScriptedPort",
    "Step",
    "Deliver",
    "Expect",
    "Pause",
    "Link",
    "Refuse",
    "Lie",
    "Die",
    "Unplug",
    "OvsDpdk",
    "OvsBridge",
    "Testpmd",
    "TestpmdError",
    "TapNamespace",
    "ProgramNotFound",
    "set_link",
    "kill_qemu",
    "lie",
    "Frames",
]
