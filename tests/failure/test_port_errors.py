"""Bad arguments and failing devices: a clear error, nothing lost."""

import os
import select
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import virtnic
from peers.process import freeze
from support.frames import arp_request, is_arp_reply
from support.waiting import PROMPT, eventually, pause
from virtnic.nic.options import Interrupts


def quietly(code: str) -> list[str]:
    """Return the command that runs Python code."""
    return [sys.executable, "-W", "ignore", "-c", code]


def test_no_qemu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIRTNIC_QEMU", "/nonexistent/qemu-system-x86_64")
    with pytest.raises(virtnic.QemuNotFound, match="qemu-system-x86"):
        virtnic.open("user")


def test_not_an_x86_qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "qemu-system-arm"
    script.write_text(
        "#!/bin/sh\necho 'QEMU emulator version 8.2.0'\necho 'virt  QEMU ARM machine'\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("VIRTNIC_QEMU", str(script))
    with pytest.raises(virtnic.QemuError, match="x86_64"):
        virtnic.open("user")


@pytest.mark.parametrize(
    ("netdev", "quote"),
    [
        ("nonsense", "nonsense"),
        ("user,nonsense=1", "nonsense"),
        ("tap,ifname=nosuchtap,script=no,queues=x", "queues"),
        ("user,hostfwd=nonsense", "nonsense"),
    ],
)
def test_a_netdev_that_qemu_rejects(qemu_command: str, netdev: str, quote: str) -> None:
    with pytest.raises((virtnic.QemuError, ValueError), match=quote):
        virtnic.open(netdev)


def test_a_property_that_qemu_rejects(qemu_command: str) -> None:
    with pytest.raises(virtnic.QemuError, match="nonsense"):
        virtnic.open("user", properties={"nonsense": 1})


@pytest.mark.parametrize("size", [3 << 20, 0, -1, "12X", 4096])
def test_bad_memory_sizes(size: int | str) -> None:
    with pytest.raises(ValueError, match=r"size|power of two"):
        virtnic.Memory(size)


def test_more_hugepages_than_are_free() -> None:
    with pytest.raises(virtnic.MemoryUnavailable, match=r"hugepages.*nr_hugepages"):
        virtnic.Memory("64G", hugepages="2M")


@pytest.mark.parametrize("iova", [1, 0x1000, 0xC0000000, 1 << 62, -1, "here"])
def test_bad_iovas(iova: int | str) -> None:
    with pytest.raises((ValueError, OverflowError)):
        virtnic.Memory("2M", iova=iova)  # type: ignore[arg-type]


def test_pa_without_the_privilege() -> None:
    """In a process of another user: this one may be root."""
    if os.geteuid() != 0:
        with pytest.raises(PermissionError, match="CAP_SYS_ADMIN"):
            virtnic.Memory("2M", iova="pa")
        return
    code = (
        "import os\n"
        "from virtnic import Memory\n"  # that user may not be able to read Python's modules
        "os.setgid(65534); os.setuid(65534)\n"
        "try: Memory('2M', iova='pa')\n"
        "except PermissionError as e: print(e)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert "CAP_SYS_ADMIN" in result.stdout, result


def test_wrong_frames(port: virtnic.Port) -> None:
    good = arp_request(port.mac)
    room = port.memory.largest_frame
    cases: list[tuple[object, type[Exception], str]] = [
        (b"", ValueError, "empty"),
        (bytes(room + 1), ValueError, f"{room + 1} bytes"),
        (17, TypeError, "bytes-like"),
        ("text", TypeError, "bytes-like"),
        (None, TypeError, "bytes-like"),
    ]
    for bad, kind, words in cases:
        with pytest.raises(kind, match=words) as caught:
            port.send([good, good, bad, good])  # type: ignore[list-item]
        assert caught.value.queued == 2  # type: ignore[attr-defined]
        assert "frame 2" in str(caught.value)
        got: list[bytes] = []
        while len(got) < 2:
            burst = port.recv(64, timeout=20.0)
            assert burst, "the frames before the bad one were not sent"
            got += burst.tobytes()
        assert all(map(is_arp_reply, got))
    assert len(port.recv(64, timeout=0.05)) == 0
    with pytest.raises(TypeError, match=r"\[frame\]"):
        port.send(good)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        port.send(5)  # type: ignore[arg-type]
    for length in (1, 13, port.memory.buffer_size, room):
        assert port.send([bytes(length)]) == 1


@pytest.mark.parametrize("maximum", [0, -1, 1 << 20])
def test_recv_of_a_bad_number(port: virtnic.Port, maximum: int) -> None:
    with pytest.raises(ValueError, match="burst"):
        port.recv(maximum)


@pytest.mark.parametrize("timeout", [-1.0, float("nan")])
def test_recv_with_a_bad_timeout(port: virtnic.Port, timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        port.recv(1, timeout=timeout)


def test_bad_port_options(qemu: virtnic.Qemu) -> None:
    for options in (
        {"queue_size": 100},
        {"queue_size": 70000},
        {"queue_size": -1},
        {"interrupts": "carrier pigeon"},
        {"features": {"NO_SUCH_FEATURE": True}},
        {"features": {"VERSION_1": False}},
        {"properties": {"addr": "5"}},
        {"mac": "not a mac"},
    ):
        with pytest.raises((ValueError, virtnic.QemuError)):
            qemu.attach("user", **options)
    assert qemu.ports == ()
    with pytest.raises(virtnic.DeviceError, match="RING_PACKED"):
        qemu.attach("user", features={"RING_PACKED": True})
    # What failed left no slot and no vector taken.
    with qemu.attach("user") as port:
        port.send([arp_request(port.mac)])
        assert port.recv(1, timeout=20.0)


@pytest.mark.parametrize("interrupts", ["msix", "intx", "none"])
def test_qemu_killed_while_a_call_waits(qemu_command: str, interrupts: Interrupts) -> None:
    with virtnic.open("user", interrupts=interrupts) as port:
        pid = port.qemu.pid
        killed: list[float] = []

        def kill() -> None:
            pause(0.2)
            killed.append(time.monotonic())
            os.kill(pid, signal.SIGKILL)

        thread = threading.Thread(target=kill)
        thread.start()
        with pytest.raises(virtnic.QemuDied):
            port.recv(64, timeout=None)
        assert time.monotonic() - killed[0] < PROMPT
        thread.join()
        with pytest.raises(virtnic.QemuDied):
            port.recv(64)
        with pytest.raises(virtnic.QemuDied):
            port.send([b"\0" * 60])
    assert port.memory.buffers_free == port.memory.buffers


def test_closing_waits_once_for_a_qemu_that_stands_still(qemu: virtnic.Qemu) -> None:
    """Not once for each port, and who waits is told."""
    ports = [qemu.attach("user") for _ in range(3)]
    with ThreadPoolExecutor(1) as executor:
        waiting = executor.submit(ports[0].recv, 64, None)
        assert eventually(lambda: ports[0].stats()["rx_sleeps"])
        freeze(qemu.pid)
        began = time.monotonic()
        qemu.close()
        assert time.monotonic() - began < PROMPT
        with pytest.raises(virtnic.PortClosed):
            waiting.result(20.0)
    assert all(port.closed for port in ports)
    assert qemu.memory.buffers_free == qemu.memory.buffers


def test_a_reader_by_fileno_learns_that_qemu_died(port: virtnic.Port) -> None:
    fd = port.fileno()
    os.kill(port.qemu.pid, signal.SIGKILL)
    assert select.select([fd], [], [], 20.0)[0] == [fd]
    with pytest.raises(virtnic.QemuDied):
        port.recv(64)


def test_nothing_outlives_a_killed_process(qemu_command: str) -> None:
    """SIGKILL: QEMU and every file of ours go with the process."""
    code = (
        "import sys, time, virtnic\n"
        "port = virtnic.open('user')\n"
        "print(port.qemu.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen(quietly(code), stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        process.kill()
        process.wait()
        deadline = time.monotonic() + 20.0
        while time.monotonic() < deadline:
            state = Path(f"/proc/{pid}/stat")
            if not state.exists() or state.read_text().split()[2] == "Z":
                break
            time.sleep(0.01)
        else:
            pytest.fail(f"QEMU {pid} outlived the process that started it")


def test_ctrl_c_ends_a_wait(qemu_command: str) -> None:
    code = (
        "import virtnic\n"
        "with virtnic.open('user') as port:\n"
        "    try:\n"
        "        print(port.qemu.pid, flush=True)\n"
        "        port.recv(1, timeout=None)\n"
        "    except KeyboardInterrupt: print('interrupted', flush=True)\n"
    )
    process = subprocess.Popen(quietly(code), stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        pause(0.3)
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == "interrupted\n"
        assert process.wait(10) == 0
    assert not Path(f"/proc/{pid}").exists()


def test_a_device_that_lies_breaks_the_port(port: virtnic.Port) -> None:
    """The used ring in shared memory says something impossible."""
    port.send([arp_request(port.mac)])
    assert port.recv(1, timeout=20.0)
    memory = port.memory
    name, _descriptors, _available, used = port.queue_addresses[0]
    assert name == "rx"
    offset = memory.offset_of(used)
    index = int.from_bytes(memory.read(offset + 2, 2), "little")
    # One more used entry, with an id that no ring of this size has.
    entry = offset + 4 + 8 * (index % port.queue_size)
    memory.write(entry, (0xFFFF0000).to_bytes(4, "little") + (64).to_bytes(4, "little"))
    memory.write(offset + 2, ((index + 1) & 0xFFFF).to_bytes(2, "little"))
    with pytest.raises(virtnic.DeviceError, match="id"):
        port.recv(64)
    with pytest.raises(virtnic.DeviceError, match="broken"):
        port.recv(64)
    with pytest.raises(virtnic.DeviceError, match="broken"):
        port.send([b"\0" * 60])


def test_chosen_accelerator_that_is_not_there(qemu_command: str) -> None:
    with pytest.raises(ValueError, match="accel"):
        virtnic.open("user", accel="warp")  # type: ignore[arg-type]
