"""`virtnic.vhost_user.Frontend`: single front-end messages."""

import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

import virtnic
from peers.testpmd import Testpmd
from peers.vhost_backend import Connection, ScriptedBackend
from peers.vhost_user import Message
from virtnic.vhost_user import Frontend, ProtocolFeature, Refused, Region, Request


def test_each_message_says_what_it_is_called(scratch: Path) -> None:
    memory = virtnic.Memory("4M", hugepages=None)
    with (
        ScriptedBackend(scratch / "vhu0", pairs=3) as backend,
        Frontend(backend.path) as frontend,
        Path(os.devnull).open() as null,
    ):
        assert frontend.get_features() == backend.features
        assert frontend.get_protocol_features() == ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK
        frontend.set_protocol_features(ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK)
        assert frontend.acknowledged
        assert frontend.get_queue_num() == 3
        frontend.set_owner()
        frontend.set_features(1 << 32)
        frontend.set_mem_table([Region.of(memory), Region.of(memory)])
        frontend.set_vring_num(0, 256)
        frontend.set_vring_base(0, 7)
        frontend.set_vring_addr(0, 0x1000, 0x3000, 0x2000)
        frontend.set_vring_kick(0, null.fileno())
        frontend.set_vring_call(0, None)
        frontend.set_vring_err(0, null.fileno())
        frontend.set_vring_enable(0)
        assert frontend.get_vring_base(0) == 0
        (connection,) = backend.connections
        said = {message.request: message for message in connection.messages}
        assert backend.wait(lambda: len(connection.messages) == 15)
        assert said[Request.SET_MEM_TABLE].payload[:4] == b"\2\0\0\0"
        assert len(said[Request.SET_MEM_TABLE].fds) == 2
        assert said[Request.SET_VRING_ADDR].payload == struct.pack(
            "=IIQQQQ", 0, 0, 0x1000, 0x3000, 0x2000, 0
        )
        assert said[Request.SET_VRING_CALL].number == 1 << 8
        assert (len(said[Request.SET_VRING_KICK].fds), said[Request.SET_VRING_CALL].fds) == (1, ())
        assert all(m.wants_ack for m in connection.messages[4:14])


def test_what_goes_wrong_has_names(scratch: Path) -> None:
    def refuse(connection: Connection, message: Message) -> bool:
        if message.request == Request.SET_OWNER:
            connection.send(message.reply(struct.pack("=Q", 22)))
        elif message.request == Request.SET_STATUS:
            connection.close()
        elif message.request == Request.GET_STATUS:
            connection.send(message.reply(b""))
        else:
            return message.request == Request.SET_FEATURES
        return True

    with pytest.raises(FileNotFoundError):
        Frontend(scratch / "nothing")
    with ScriptedBackend(scratch / "vhu0", hook=refuse) as backend:
        with Frontend(backend.path, timeout=0.2) as frontend:
            frontend.set_protocol_features(ProtocolFeature.REPLY_ACK)
            with pytest.raises(Refused, match=r"refused SET_OWNER \(it answered 22\)") as caught:
                frontend.set_owner()
            assert caught.value.code == 22
            with pytest.raises(virtnic.DeviceError, match="GET_STATUS has 0 bytes where 8"):
                frontend.get_status()
            with pytest.raises(TimeoutError, match=r"did not answer SET_FEATURES within 0\.2 s"):
                frontend.set_features(0)
            assert frontend.receive(0.0) is None
            with pytest.raises(ConnectionError):
                frontend.set_status(1)
            with pytest.raises(ValueError, match="up to 65536 bytes and 32 descriptors"):
                frontend.send(1, bytes(70_000))
            with pytest.raises(OSError, match="-1 is not a descriptor"):
                frontend.send(1, fds=[-1])
        with pytest.raises(ConnectionError, match="closed here"):
            frontend.get_features()


@pytest.mark.needs("testpmd")
def test_a_real_backend_answers(testpmd: Callable[..., Testpmd]) -> None:
    with Frontend(testpmd().sockets[0]) as frontend:
        assert frontend.get_features() >> 32 & 1
        assert ProtocolFeature.REPLY_ACK in frontend.get_protocol_features()
