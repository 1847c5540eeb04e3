"""Timestamps of received bursts."""

import select
import time

import pytest

import virtnic
from peers.netns import Netns
from support.frames import number_of, numbered


@pytest.mark.needs("qemu", "netns")
def test_a_burst_says_when_it_was_taken(netns: Netns) -> None:
    """Between sending and the return of `recv`, whether `recv` waited or not."""
    memory = virtnic.Memory("8M", hugepages=None)
    with virtnic.open(netns.netdev, memory=memory, timestamps=True) as port:
        raw = netns.packet_socket()
        assert port.timestamps is True
        last = 0
        for number in range(20):
            before = time.time_ns()
            raw.send(numbered(netns.mac, number))
            burst = port.recv(32, timeout=20.0)
            assert [number_of(frame) for frame in burst] == [number]
            taken = burst.timestamp
            assert taken is not None
            assert max(before, last) <= taken <= time.time_ns()
            last = taken
            burst.release()
            assert burst.timestamp is None
        assert port.recv().timestamp is None

        port.set_timestamps(False)
        assert [port.timestamps] == [False]
        raw.send(numbered(netns.mac, 99))
        assert port.recv(32, timeout=20.0).timestamp is None
        raw.close()


@pytest.mark.needs("qemu", "netns")
def test_frames_of_a_device_that_went_keep_their_time(netns: Netns) -> None:
    """They are taken from the ring when the device goes, and received later."""
    memory = virtnic.Memory("8M", hugepages=None)
    with virtnic.open(netns.netdev, memory=memory) as port, netns.packet_socket() as raw:
        assert not port.timestamps
        port.set_timestamps()
        raw.send(numbered(netns.mac, 1))
        assert select.select([port], [], [], 20.0)[0]
        before = time.time_ns()
        port.restart()
        after = time.time_ns()
        burst = port.recv(32)
        assert [number_of(frame) for frame in burst] == [1]
        assert burst.timestamp is not None
        assert before <= burst.timestamp <= after
