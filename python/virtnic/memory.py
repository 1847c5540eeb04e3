"""Shared packet memory, as users ask for it."""

from __future__ import annotations

import warnings
from typing import Literal, Self

from virtnic import _native
from virtnic.streams import keep_standard_streams
from virtnic.teardown import Owner
from virtnic.units import parse_size

__all__ = ["Hugepages", "Memory", "parse_size"]

#: Which pages back a memory: the largest that are free, 1 GiB, 2 MiB, or ordinary ones.
Hugepages = Literal["auto", "1G", "2M"] | None

_PAGES = {"auto": 0, "1G": 1 << 30, "2M": 2 << 20, None: 4096}


class Memory(Owner, _native.Memory):
    """One shared file, mapped, prefaulted and sealed: all that devices may touch.

    Every port of a memory takes its packet buffers from it, so a burst received on one
    can be sent on another without a copy.

    Parameters
    ----------
    size
        Bytes, or text such as ``"256M"``: a power of two, for QEMU makes it a PCI BAR.
    hugepages
        ``"auto"`` takes the largest pages that are free and falls back with one warning;
        ``"1G"`` and ``"2M"`` insist; None takes ordinary pages.
    iova
        Where devices see it: ``"va"`` at this process's own address, ``"pa"`` at the
        host-physical address (contiguous; needs CAP_SYS_ADMIN), or an address.
    node
        The NUMA node to take it from.
    directory
        A hugetlbfs mount to make the file in, for ``shmem="plain"``; else a memfd.
    buffer_size
        Bytes of data that a packet buffer holds.
    jumbo_buffers
        How many buffers there shall be besides for longer frames: to send them,
        and to receive them where the feature MRG_RXBUF is in force, as it is where QEMU moves
        the frames. By default they take a sixteenth of the memory, and there are none in less
        than 4 MiB.
    jumbo_size
        Bytes of data that one of them holds. The default, 64 KiB, is for the longest frame there
        is; with less, such as 9018 for an MTU of 9000, there are more of them.

    Raises ValueError, MemoryUnavailable, PermissionError.

    """

    def __new__(
        cls,
        size: int | str = "32M",
        *,
        hugepages: Hugepages = "auto",
        iova: Literal["va", "pa"] | int = "va",
        node: int | None = None,
        directory: str | None = None,
        buffer_size: int = 2048,
        jumbo_buffers: int | None = None,
        jumbo_size: int | None = None,
    ) -> Self:
        """Make one; see the class."""
        keep_standard_streams()  # it has descriptors
        if hugepages not in _PAGES:
            raise ValueError(f"hugepages is 'auto', '1G', '2M' or None, not {hugepages!r}")
        self = super().__new__(
            cls,
            parse_size(size),
            pages=_PAGES[hugepages],
            iova=iova,
            node=node,
            directory=directory,
            buffer_size=buffer_size,
            jumbo_buffers=jumbo_buffers,
            jumbo_size=jumbo_size,
        )
        if self.fallback:
            warnings.warn(self.fallback, RuntimeWarning, stacklevel=2)
        return self

    def __repr__(self) -> str:
        return (
            f"<virtnic.Memory: {self.size >> 20} MiB in pages of {self.page_size >> 10} KiB "
            f"at IOVA {self.iova:#x}, {self.buffers_free} of {self.buffers} buffers free>"
        )
