"""The thread that waits for QEMU: its start, its end, and its state seen from other threads."""

import asyncio
import logging
import threading

import pytest

from virtnic.qemu import loop


def test_its_own_end_is_not_taken_for_a_foreign_close(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Others may look at any moment of the end, such as when the descriptors are half closed."""
    half, looked = threading.Event(), threading.Event()
    close_sockets = asyncio.SelectorEventLoop._close_self_pipe  # type: ignore[attr-defined]

    def close_and_wait(ending: asyncio.SelectorEventLoop) -> None:
        close_sockets(ending)
        half.set()
        assert looked.wait(30)

    monkeypatch.setattr(asyncio.SelectorEventLoop, "_close_self_pipe", close_and_wait)
    hold = loop.Hold()
    thread = hold.take()
    with caplog.at_level(logging.ERROR):
        ender = threading.Thread(target=hold.release)
        ender.start()
        assert half.wait(30)
        assert not thread.is_deaf
        looked.set()
        ender.join(30)
        assert not thread.is_deaf
    assert not caplog.records
    assert not ender.is_alive()


def test_a_later_thread_with_its_number_is_not_taken_for_it() -> None:
    """Who closed when its end had been interrupted was refused as if he were a callback."""
    hold = loop.Hold()
    ended = hold.take()
    hold.release()
    taken: list[bool] = []
    for _ in range(8):
        other = threading.Thread(target=lambda: taken.append(ended.inside))
        other.start()
        other.join(30)
    assert taken == [False] * 8
