"""DPDK's testpmd, as users of virtnic have it."""

from virtnic.testing import Testpmd, TestpmdError
from virtnic.testing.testpmd import answer_to

__all__ = ["Testpmd", "TestpmdError", "answer_to"]
