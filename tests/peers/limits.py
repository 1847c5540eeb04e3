"""A time limit for each test, including clean-up.

pytest-timeout raises once, and not at all after a failure. What waits for a thread without end,
as an executor does when it is left, would then hang in its clean-up, and all tests with it.
"""

import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Generator
from types import FrameType
from typing import Any

import pytest
import pytest_timeout

#: Seconds for the clean-up of a test that failed, and for each further step of one that hangs.
CLEAN_UP, AGAIN = 60.0, 10.0


class Limits:
    """A plugin in place of pytest-timeout's own timer, which reads the limits."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_timeout_set_timer(self, item: pytest.Item, settings: Any) -> bool:
        """Raise in the main thread at the time limit, and again until the test has ended."""

        def over(_number: int, _frame: FrameType | None) -> None:
            __tracebackhide__ = True
            pytest_timeout.timeout_sigalrm(item, settings)

        signal.signal(signal.SIGALRM, over)
        signal.setitimer(signal.ITIMER_REAL, settings.timeout, AGAIN)
        return True

    @pytest.hookimpl(tryfirst=True)
    def pytest_timeout_cancel_timer(self, item: pytest.Item) -> bool | None:
        """Start the time of the clean-up: this is called after a failure, too."""
        if item.config.getoption("usepdb"):
            return None
        if signal.getitimer(signal.ITIMER_REAL)[0]:
            signal.setitimer(signal.ITIMER_REAL, CLEAN_UP, AGAIN)
        return True

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self) -> Generator[None, object, object]:
        """End it with the test."""
        try:
            return (yield)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self, config: pytest.Config) -> None:
        """Abandon threads that never end: the interpreter would wait for them."""
        main = threading.main_thread()
        left = [t for t in threading.enumerate() if t is not main and not t.daemon]
        for thread in left:
            thread.join(AGAIN)
        if any(thread.is_alive() for thread in left):
            if capture := config.pluginmanager.getplugin("capturemanager"):
                capture.suspend_global_capture()
            sys.stdout.flush()
            print("threads that a test left behind do not end:", file=sys.stderr, flush=True)
            faulthandler.dump_traceback(all_threads=True)
            os._exit(1)
