"""Start QEMU, talk to it, plug NICs in and out.

``find`` locates QEMU, ``quirks`` lists differences between versions, ``command`` builds the command
line, ``process`` and ``monitor`` hold a running QEMU, ``external`` one started elsewhere,
``ending`` reports its end, ``netdev`` and ``schema`` convert a netdev to QMP, ``nic`` does the QMP
half of hotplug, ``machine`` combines them.
"""

from virtnic.qemu.find import Binary, find_qemu
from virtnic.qemu.machine import Machine
from virtnic.qemu.netdev import Netdev, parse
from virtnic.qemu.nic import NicHandle
from virtnic.qemu.quirks import Version
from virtnic.qemu.spec import Spec

__all__ = ["Binary", "Machine", "Netdev", "NicHandle", "Spec", "Version", "find_qemu", "parse"]
