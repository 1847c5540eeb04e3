"""`Memory`: shared packet memory."""

from __future__ import annotations

import warnings
from typing import Literal, Self

from virtnic import _native
from virtnic.arguments import suggest_options, whole_number
from virtnic.streams import keep_standard_streams
from virtnic.teardown import Owner
from virtnic.units import parse_size

__all__ = ["Hugepages", "Memory", "parse_size"]

#: Page sizes of a memory: the largest with free pages, 1 GiB, 2 MiB, or ordinary pages.
Hugepages = Literal["auto", "1G", "2M"] | None

_PAGES = {"auto": 0, "1G": 1 << 30, "2M": 2 << 20, None: 4096}


class Memory(Owner, _native.Memory):
    """One shared file, mapped, prefaulted and sealed: the only memory that devices can access.

    All ports on a memory take their packet buffers from it, so a burst received on one can be sent
    on another without a copy.

    Parameters
    ----------
    size
        Bytes, or text such as ``"256M"``: a power of two, because QEMU maps it as a PCI BAR.
    hugepages
        ``"auto"`` uses the largest size with free pages, and warns once if it is not the largest;
        ``"1G"`` and ``"2M"`` require that size; None uses ordinary pages.
    iova
        The address at which devices see it: ``"va"``, its address in this process; ``"pa"``, its
        physical address (contiguous memory; needs CAP_SYS_ADMIN); or an address.
    node
        NUMA node to allocate from.
    directory
        A hugetlbfs mount for the file, with ``shmem="plain"``; otherwise a memfd is used.
    buffer_size
        Data bytes per packet buffer.
    jumbo_buffers
        Number of additional buffers for longer frames: for sending, and for receiving if MRG_RXBUF
        was negotiated, as it is where QEMU moves the frames. By default they take a sixteenth of
        the memory, and there are none in less than 4 MiB.
    jumbo_size
        Data bytes per jumbo buffer. The default, 64 KiB, holds the longest possible frame; a
        smaller size, such as 9018 for an MTU of 9000, allows more of them.

    Raises ValueError, MemoryUnavailable, PermissionError.

    """

    @suggest_options
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
        """Create a memory; see the class."""
        keep_standard_streams()  # it opens descriptors
        if hugepages not in _PAGES:
            raise ValueError(f"hugepages must be 'auto', '1G', '2M' or None, not {hugepages!r}")
        whole_number("node", node, optional=True)
        whole_number("buffer_size", buffer_size)
        whole_number("jumbo_buffers", jumbo_buffers, optional=True)
        whole_number("jumbo_size", jumbo_size, optional=True)
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
            warnings.warn(self.fallback, RuntimeWarning, stacklevel=3)
        return self

    def __repr__(self) -> str:
        return (
            f"<virtnic.Memory: {self.size >> 20} MiB in pages of {self.page_size >> 10} KiB "
            f"at IOVA {self.iova:#x}, {self.buffers_free} of {self.buffers} buffers free>"
        )
