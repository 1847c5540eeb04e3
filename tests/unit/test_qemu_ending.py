"""Reports of the end of a QEMU: once to every callback, or to none."""

import threading

import pytest

from virtnic.qemu.ending import Ending


def death() -> str:
    """Say how it ended."""
    return "it was killed"


def test_everybody_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    ending, told = Ending(), list[str]()
    ending.add(lambda _: 1 // 0, death)
    ending.add(lambda error: told.append(str(error)), death)
    ending.tell(death)
    ending.tell(death)
    assert told == ["it was killed"]
    assert caplog.text.count("it was killed") == 1
    assert "ZeroDivisionError" in caplog.text
    caplog.clear()
    # A callback that is added later is called at once.
    ending.add(lambda error: told.append(str(error)), death)
    assert len(told) == 2


def test_one_that_is_closed_did_not_die() -> None:
    ending, told = Ending(), list[Exception]()
    ending.add(told.append, death)
    ending.forget()
    ending.tell(death)
    assert told == []


def test_what_follows_can_wait_for_a_report_in_another_thread() -> None:
    ending, told, hold = Ending(), list[str](), threading.Event()

    def slow() -> str:
        hold.wait(30)
        return death()

    ending.add(lambda error: told.append(str(error)), death)
    reporting = threading.Thread(target=ending.tell, args=(slow,))
    reporting.start()
    ending.wait_told(0.01)
    assert told == []
    hold.set()
    ending.tell(death)  # returns at once: it is being reported
    ending.wait_told(30)
    assert told == ["it was killed"]
    reporting.join()


def test_who_replaces_it_keeps_it_from_nobody() -> None:
    """It closes the rest of the dead QEMU, perhaps before every callback was called."""
    ending, told = Ending(), list[str]()
    ending.add(lambda _: ending.forget(), death)
    ending.add(lambda error: told.append(str(error)), death)
    ending.tell(death)
    assert told == ["it was killed"]
