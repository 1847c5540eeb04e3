"""Bursts as arrays: data, headers, put_headers."""

import numpy as np
import pytest

import virtnic
from peers.netns import Netns
from support.frames import mac_bytes, number_of, numbered

pytestmark = pytest.mark.needs("qemu", "netns")


def receive(port: virtnic.Port, netns: Netns, count: int) -> list[virtnic.Burst]:
    """Have a raw socket send numbered frames of growing length; return their bursts."""
    with netns.packet_socket() as raw:
        for i in range(count):
            raw.send(numbered(netns.mac, i, 60 + i))
    bursts = []
    got = 0
    while got < count:
        burst = port.recv(256, timeout=20.0)
        assert burst
        bursts.append(burst)
        got += len(burst)
    return bursts


def test_headers_and_back(netns: Netns) -> None:
    with virtnic.open(netns.netdev) as port:
        number = 0
        for burst in receive(port, netns, 100):
            headers = burst.headers(64)
            assert headers.shape == (len(burst), 64)
            assert headers.dtype == np.uint8
            for row, frame, length in zip(headers, burst, burst.lengths, strict=True):
                assert bytes(row[:length]) == bytes(frame[:64])
                assert not row[length:].any()
                assert number_of(frame) == number
                number += 1
            swapped = headers.copy()
            swapped[:, :6], swapped[:, 6:12] = headers[:, 6:12], headers[:, :6]
            burst.put_headers(swapped)
            lengths = list(burst.lengths)
            for frame, length in zip(burst, lengths, strict=True):
                assert len(frame) == length
                assert bytes(frame[:6]) == mac_bytes(netns.mac)
                assert bytes(frame[6:12]) == b"\xff" * 6


def test_data_is_the_packet_memory_itself(netns: Netns) -> None:
    with virtnic.open(netns.netdev) as port:
        for burst in receive(port, netns, 50):
            in_a_row = all(b == a + 1 for a, b in zip(burst.ids, burst.ids[1:], strict=False))
            if not in_a_row:
                with pytest.raises(BufferError, match="row"):
                    burst.data  # noqa: B018
                continue
            data = np.asarray(burst.data)
            assert data.shape == (len(burst), port.memory.buffer_size)
            for row, frame, length in zip(data, burst, burst.lengths, strict=True):
                assert bytes(row[:length]) == bytes(frame)
            data[:, 0] = 0x42
            assert all(frame[0] == 0x42 for frame in burst)
            np.asarray(burst.data)[0, 1] = 0x43
            assert burst[0][1] == 0x43


def test_a_view_of_the_data_keeps_the_buffers(netns: Netns) -> None:
    with virtnic.open(netns.netdev) as port:
        memory = port.memory
        burst = receive(port, netns, 1)[0]
        data = burst.data
        burst.release()
        free = memory.buffers_free
        del data
        assert memory.buffers_free == free + 1


def test_an_empty_burst_has_empty_arrays(netns: Netns) -> None:
    with virtnic.open(netns.netdev) as port:
        burst = port.recv(1)
        assert burst.headers(64).shape == (0, 64)
        assert np.asarray(burst.data).shape == (0, port.memory.buffer_size)
        burst.put_headers(burst.headers(64))


def test_wrong_shapes(netns: Netns) -> None:
    with virtnic.open(netns.netdev) as port:
        burst = receive(port, netns, 1)[0]
        for count in (0, -1, port.memory.buffer_size + 1):
            with pytest.raises(ValueError, match="headers"):
                burst.headers(count)
        with pytest.raises(ValueError, match="row"):
            burst.put_headers(b"")
        headers = np.zeros((1, 64), np.uint8)
        with pytest.raises((BufferError, ValueError), match="contiguous"):
            burst.put_headers(headers[:, ::2])
