"""Start QEMU, talk to it, plug NICs in and out.

``find`` knows which QEMU, ``quirks`` how versions differ, ``command`` what to start,
``process`` and ``monitor`` hold the running one, ``external`` one that somebody else
started, ``ending`` tells when it ends, ``netdev`` and ``schema`` turn what users write into QMP,
``nic`` does the QMP half of hotplug, ``machine`` puts it together.
"""

from virtnic.qemu.find import Binary, find_qemu
from virtnic.qemu.machine import Machine
from virtnic.qemu.netdev import Netdev, parse
from virtnic.qemu.nic import NicHandle
from virtnic.qemu.quirks import Version
from virtnic.qemu.spec import Spec

__all__ = ["Binary", "Machine", "Netdev", "NicHandle", "Spec", "Version", "find_qemu", "parse"]
