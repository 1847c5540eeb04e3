"""No deadlocks: every method from any thread, with a slow or hung QEMU.

The order of locks that makes it so is in ``rust/core/src/locks.rs``.
"""

import os
import random
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import virtnic
from peers import every_method
from virtnic import _native, aio, net

PROGRAMS = Path(__file__).parents[1] / "peers"
#: Seconds in which a program that does not hang has long ended, on a busy machine too.
LIMIT = 100.0

pytestmark = pytest.mark.usefixtures("qemu_command")


def run(*argv: str, limit: float = LIMIT) -> str:
    """Run a Python program and return its output. One that hangs fails and shows where."""
    process = subprocess.run(
        [sys.executable, *argv],
        capture_output=True,
        text=True,
        timeout=limit + 20,
        check=False,
        env={**os.environ, "PYTHONPATH": str(PROGRAMS.parent)},
    )
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-8000:]
    return process.stdout


def program(body: str, limit: float = LIMIT) -> str:
    """Run the text of a program that must not hang."""
    head = (
        "import faulthandler, os, signal, subprocess, sys, threading, time, virtnic\n"
        "from virtnic.nic.port import attachment_of, host_of\n"
        f"faulthandler.dump_traceback_later({limit}, exit=True)\n"
        "FRAME = b'\\xff' * 12 + b'\\x88\\xb5' + bytes(46)\n"
        "def stopped(pid, seconds):\n"
        "    os.kill(pid, signal.SIGSTOP)\n"
        "    return subprocess.Popen(['sh', '-c', f'sleep {seconds}; kill -CONT {pid}'])\n"
    )
    return run("-c", head + body, limit=limit)


@pytest.mark.parametrize(
    ("owner", "tables"),
    [
        (virtnic.Port, [every_method.PORT, every_method.LAST["port"]]),
        (_native.PortDriver, [every_method.DRIVER, every_method.LAST["driver"]]),
        (virtnic.NetQueue, [every_method.QUEUE]),
        (net.Stack, [every_method.STACK, every_method.LAST["stack"]]),
        (net.Socket, [every_method.SOCKET, every_method.LAST["socket"]]),
        (
            virtnic.Qemu,
            [every_method.QEMU, every_method.LAST["qemu"], every_method.LAST["end"]],
        ),
        (aio.Port, [every_method.AIO, every_method.LAST["aio"]]),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_every_public_method_is_tried(owner: type, tables: list[every_method.Table]) -> None:
    """One that is new has to be added to the table."""
    tried = {name for table in tables for name in table}
    there = {name for name in dir(owner) if not name.startswith("_")}
    assert there - tried == set()
    assert tried <= there


def test_every_method_from_three_threads_while_qemu_is_stopped() -> None:
    """In all pairs, with Ctrl-C at random moments; VIRTNIC_LOCKS_SECONDS=600 for a longer run."""
    longer = os.environ.get("VIRTNIC_LOCKS_SECONDS")
    seconds = float(longer or 25.0)
    seed = os.environ.get("VIRTNIC_LOCKS_SEED") or str(random.randrange(1 << 32))
    print("seed", seed)
    print(run(str(PROGRAMS / "every_method.py"), seed, str(seconds), limit=seconds + LIMIT))


def test_sending_beside_two_receivers() -> None:
    """Refills ring the doorbell with the queue locked, while others want it and the interpreter."""
    program(
        "port = virtnic.open('user', memory=virtnic.Memory('8M', hugepages=None))\n"
        "mac = bytes.fromhex(port.mac.replace(':', ''))\n"
        "arp = (b'\\xff' * 6 + mac + bytes.fromhex('0806000108000604') + b'\\0\\1' + mac"
        " + bytes([10, 0, 2, 15]) + bytes(6) + bytes([10, 0, 2, 2]))\n"
        "until = time.monotonic() + 1.5\n"
        "def again(call):\n"
        "    while time.monotonic() < until: call()\n"
        "calls = [lambda: port.recv(32, timeout=0.02), lambda: port.recv(32),"
        " lambda: port.send([arp] * 8)]\n"
        "threads = [threading.Thread(target=again, args=(call,)) for call in calls]\n"
        "for thread in threads: thread.start()\n"
        "stopped(port.qemu.pid, 0.5).wait()\n"
        "for thread in threads: thread.join()\n"
        "port.close()\n"
    )


def test_a_queue_is_stopped_and_started_beside_senders() -> None:
    """While it is, its senders get PortClosed, and another port's go on."""
    program(
        "qemu = virtnic.Qemu(virtnic.Memory('8M', hugepages=None))\n"
        "port, other = qemu.attach('user'), qemu.attach('user')\n"
        "queue, done = port.queue(0), threading.Event()\n"
        "def work(send):\n"
        "    while not done.is_set():\n"
        "        try: send([FRAME] * 8)\n"
        "        except virtnic.PortClosed: pass\n"
        "sends = (queue.send, other.send)\n"
        "threads = [threading.Thread(target=work, args=(send,)) for send in sends]\n"
        "for thread in threads: thread.start()\n"
        "for _ in range(100): queue.stop(); queue.start()\n"
        "done.set()\n"
        "for thread in threads: thread.join()\n"
        "assert queue.active and queue.send_all([FRAME], timeout=20.0) == 1\n"
        "qemu.close()\n"
    )


def test_a_queue_that_is_being_stopped_refuses_at_once() -> None:
    """Also while QEMU does not answer, and the caller holds the interpreter lock."""
    program(
        "port = virtnic.open('user', memory=virtnic.Memory('8M', hugepages=None))\n"
        "queue = port.queue(0)\n"
        "running = stopped(port.qemu.pid, 1)\n"
        "thread = threading.Thread(target=queue.stop); thread.start()\n"
        "while queue.active: time.sleep(0.001)\n"
        "for call in (lambda: queue.recv(1), lambda: queue.send([FRAME])):\n"
        "    try: call()\n"
        "    except virtnic.PortClosed as error: assert 'is being stopped' in str(error), error\n"
        "    else: raise AssertionError('it moved frames')\n"
        "assert running.poll() is None, 'nobody waited for QEMU'\n"
        "thread.join(); running.wait()\n"
        "queue.start(); assert queue.send([FRAME]) == 1\n"
        "port.close()\n"
    )


def test_sending_does_not_wait_for_a_stopped_qemu() -> None:
    """More kicks than its socket holds: none is waited for, and the last of each queue comes."""
    program(
        "qemu = virtnic.Qemu(virtnic.Memory('8M', hugepages=None))\n"
        "ports = [qemu.attach('user', features={'EVENT_IDX': False}) for _ in range(6)]\n"
        "os.kill(qemu.pid, signal.SIGSTOP)\n"
        "began = time.monotonic()\n"
        "for port in ports:\n"
        "    while port.send([FRAME]): pass\n"
        "took = time.monotonic() - began\n"
        "os.kill(qemu.pid, signal.SIGCONT)\n"
        "kicks = [port.stats()['tx_kicks'] for port in ports]\n"
        "assert sum(kicks) > 1100 and took < 8.0, (kicks, took)\n"
        "for port in ports:\n"
        "    while port.stats()['tx_completed'] < port.queue_size:\n"
        "        port.reclaim(); time.sleep(0.001)\n"
        "qemu.close()\n"
    )


def test_a_signal_handler_closes_what_it_interrupts() -> None:
    """At any moment of a SIGTERM: no thread waits for itself."""
    program(
        "for number in range(4):\n"
        "    port = virtnic.open('user', memory=virtnic.Memory('8M', hugepages=None))\n"
        "    queue = port.queue(0)\n"
        "    set_mac = lambda: port.set_mac('52:54:00:00:00:01')\n"
        "    call = (queue.stop, port.restart, set_mac, port.close)[number]\n"
        "    signal.signal(signal.SIGTERM, lambda *_: port.close())\n"
        "    running = stopped(port.qemu.pid, 0.6)\n"
        "    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()\n"
        "    try: call()\n"
        "    except (virtnic.VirtnicError, TimeoutError) as error: print(repr(error))\n"
        "    running.wait()\n"
        "    port.close()\n"
        "    assert port.closed\n"
    )


def test_a_signal_handler_changes_what_is_being_restarted() -> None:
    """It is refused at once: the device that it would wait for is brought back by its thread."""
    program(
        "port = virtnic.open('user', memory=virtnic.Memory('8M', hugepages=None))\n"
        "queue, seen = port.queue(0), []\n"
        "def handle(*_):\n"
        "    for call in (lambda: port.set_mac('52:54:00:00:00:01'), queue.stop, queue.start):\n"
        "        began = time.monotonic()\n"
        "        try: call()\n"
        "        except virtnic.PortBusy: seen.append(time.monotonic() - began)\n"
        "signal.signal(signal.SIGTERM, handle)\n"
        "running = stopped(port.qemu.pid, 0.6)\n"
        "threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()\n"
        "port.restart()\n"
        "running.wait()\n"
        "assert len(seen) == 3 and max(seen) < 5.0, seen\n"
        "assert port.send([FRAME]) == 1\n"
        "port.close()\n"
    )


def test_a_progress_function_closes_its_own_port() -> None:
    """The loop that calls it has the queues."""
    program(
        "for loop in (virtnic.reflect, virtnic.drop):\n"
        "    memory = virtnic.Memory('8M', hugepages=None)\n"
        "    port = virtnic.open('user', memory=memory)\n"
        "    try: loop(port, progress=lambda report: port.close())\n"
        "    except virtnic.PortClosed as error: print(error)\n"
        "    else: raise AssertionError('the loop went on')\n"
        "    assert memory.buffers_free == memory.buffers, 'buffers are lost'\n"
    )


def test_a_link_callback_asks_for_the_ports_while_one_is_attached() -> None:
    """It runs in the thread by which QEMU's answers come."""
    program(
        "qemu = virtnic.Qemu(virtnic.Memory('8M', hugepages=None))\n"
        "seen = threading.Event()\n"
        "def changed(port):\n"
        "    assert port in port.qemu.ports\n"
        "    seen.set()\n"
        "port = qemu.attach('user', on_link=changed)\n"
        "with host_of(qemu).devices.lock:\n"
        "    qemu.execute('set_link', name=attachment_of(port).handle.id, up=False)\n"
        "    assert seen.wait(20.0), 'the callback waits for who attaches'\n"
        "    qemu.execute('query-status')\n"
        "qemu.close()\n"
    )


def test_ctrl_c_ends_a_command_that_qemu_does_not_answer() -> None:
    """By the control queue, whose answer is waited for in memory, and for another thread's."""
    program(
        "port = virtnic.open('user', memory=virtnic.Memory('8M', hugepages=None))\n"
        "pid = port.qemu.pid\n"
        "def unheard():\n"
        "    try: port.set_mac('52:54:00:00:00:01')\n"
        "    except TimeoutError: return True\n"
        "for others in (1, 0):\n"
        "    os.kill(pid, signal.SIGSTOP)\n"
        "    threads = [threading.Thread(target=unheard) for _ in range(others)]\n"
        "    for thread in threads: thread.start()\n"
        "    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "    try: port.set_mac('52:54:00:00:00:02')\n"
        "    except KeyboardInterrupt: pass\n"
        "    else: raise AssertionError('no Ctrl-C')\n"
        "    os.kill(pid, signal.SIGCONT)\n"
        "    for thread in threads: thread.join()\n"
        "    while unheard(): pass  # until the command that was interrupted is answered\n"
        "assert port.mac == '52:54:00:00:00:01'\n"
        "port.close()\n"
    )


def test_the_interpreter_ends_while_threads_wait() -> None:
    """Daemon threads wait and send until the end, and a loop runs."""
    for body in (
        "port.recv(1, timeout=None)",
        "port.send([FRAME] * 8)",
        "virtnic.drop(port)",
        "stack.arp('10.0.2.99', timeout=None)",
        "stack.create_connection(('10.0.2.99', 9), timeout=None)",
    ):
        program(
            "port = virtnic.open('user', memory=virtnic.Memory('8M', hugepages=None))\n"
            "stack = virtnic.net.Stack(port, address='10.0.2.15/24')\n"
            "begun = threading.Event()\n"
            "def work():\n"
            "    begun.set()\n"
            f"    while True: {body}\n"
            "for _ in range(2): threading.Thread(target=work, daemon=True).start()\n"
            "begun.wait(); time.sleep(0.05)\n"
        )


def test_a_forgotten_port_of_a_slow_qemu_is_collected() -> None:
    """Its interrupt line has a thread of its own, which is waited for without the interpreter."""
    program(
        "import gc\n"
        "qemu = virtnic.Qemu(virtnic.Memory('8M', hugepages=None))\n"
        "port = qemu.attach('user', interrupts='intx')\n"
        "running = stopped(qemu.pid, 1.5)\n"
        "port.send([FRAME])\n"
        "attachment_of(port).line.signal()\n"
        "time.sleep(0.2)\n"
        "thread = threading.Thread(target=attachment_of(port).stop); thread.start()\n"
        "ticks = 0\n"
        "while thread.is_alive(): ticks += 1; time.sleep(0.01)\n"
        "assert ticks > 3, 'nobody else ran'\n"
        "running.wait(); qemu.close()\n"
    )


def test_a_fork_beside_waiting_threads() -> None:
    """The child has copies of locks that its parent's threads hold; it waits for none."""
    program(
        "port = virtnic.open('user', memory=virtnic.Memory('8M', hugepages=None))\n"
        "done = threading.Event()\n"
        "def work(call):\n"
        "    while not done.is_set(): call()\n"
        "calls = (lambda: port.send([FRAME] * 8), lambda: port.recv(32, timeout=0.001),"
        " attachment_of(port).driver.refresh_link)\n"
        "threads = [threading.Thread(target=work, args=(call,)) for call in calls]\n"
        "for thread in threads: thread.start()\n"
        "for _ in range(20):\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        signal.alarm(20)\n"
        "        more = (port.restart, lambda: port.set_mac(port.mac), port.reclaim, port.fileno)\n"
        "        for call in (*calls, *more):\n"
        "            try: call()\n"
        "            except virtnic.PortClosed: pass\n"
        "            else: os._exit(1)\n"
        "        port.close()\n"
        "        os._exit(0)\n"
        "    assert os.waitpid(child, 0)[1] == 0\n"
        "done.set()\n"
        "for thread in threads: thread.join()\n"
        "port.close()\n"
    )


def test_a_signal_handler_closes_while_qemus_output_is_read() -> None:
    """Threads in uninterruptible steps want what the main thread holds at that moment."""
    program(
        textwrap.dedent("""
        from virtnic.qemu import stderr

        port = virtnic.open("user", size="4M")
        signal.signal(signal.SIGUSR1, lambda *_: port.close())
        sockets = stderr._shared._sockets
        real = sockets.ours

        class Socket:
            def recvmsg(self, *arguments):
                if not port.closed:
                    os.kill(os.getpid(), signal.SIGUSR1)
                    [None for _ in range(1000)]  # whoever runs a handler has done so by now
                return real.recvmsg(*arguments)

        sockets.ours = Socket()
        host_of(port.qemu).machine.process._stderr.position()
        while not port.closed:
            pass
        print("ended")
        """)
    )


#: Ports of a QEMU: a signal comes right before the first input by the main thread.
INTERRUPTED = textwrap.dedent("""
    class Ports:
        def __init__(self, ports):
            self._ports = ports
        def __getattr__(self, name):
            def access(*arguments):
                main = threading.current_thread() is threading.main_thread()
                if main and name.startswith("in") and not told:
                    os.kill(os.getpid(), signal.SIGUSR1)
                    [None for _ in range(1000)]  # whoever runs a handler has done so by now
                return getattr(self._ports, name)(*arguments)
            return access
    """)


@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_a_signal_handler_closes_in_the_middle_of_an_access_to_the_bus(machine: str) -> None:
    """A thread that closes windows of bridges makes accesses of its own, and is waited for."""
    program(
        INTERRUPTED
        + textwrap.dedent(f"""
        qemu = virtnic.Qemu(virtnic.Memory("8M", hugepages=None), machine={machine!r})
        port, other, told = qemu.attach("user"), qemu.attach("user"), []
        def handle(*_):
            if not told:
                told.append(1)
                port.close()
        signal.signal(signal.SIGUSR1, handle)
        bus = host_of(qemu).devices.bus
        host = {{"pc": 0x12378086, "q35": 0x29c08086}}[{machine!r}]
        bus.config._ports = Ports(bus.config._ports)
        place = type(bus.functions[0].bdf)(0, 0, 0)
        assert bus.config.read32(place, 0) == host, "another register was read"
        assert told and port.closed and qemu.ports == (other,), qemu.ports
        again = qemu.attach("user")
        for one in again, other:
            with virtnic.net.Stack(one) as stack:
                assert stack.dhcp()
        qemu.close()
        """)
    )


def test_a_signal_handler_closes_while_another_port_is_attached() -> None:
    """Wherever that is: the addresses that one gives back and the other takes stay right."""
    program(
        textwrap.dedent("""
        qemu = virtnic.Qemu(virtnic.Memory("8M", hugepages=None), machine="q35")
        there = [qemu.attach("user") for _ in range(3)]
        closed = []
        def handle(*_):
            if there:
                closed.append(there.pop())
                closed[-1].close()
        signal.signal(signal.SIGALRM, handle)
        for number in range(24):
            signal.setitimer(signal.ITIMER_REAL, 0.001 + 0.0017 * number)
            there.insert(0, qemu.attach("user"))
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert set(qemu.ports) == set(there), (number, qemu.ports)
            if len(there) > 3:
                there.pop().close()
        assert len(closed) > 5, closed
        for port in there:
            virtnic.net.Stack(port, dhcp=True).close()
            port.close()
        assert not [f for f in host_of(qemu).devices.bus.functions if f.device in (0x1000, 0x1041)]
        qemu.close()
        """)
    )


def test_a_signal_handler_attaches_while_another_port_is_attached() -> None:
    """It is refused at once, or comes in between; neither undoes what the other one does."""
    program(
        textwrap.dedent("""
        qemu = virtnic.Qemu(virtnic.Memory("8M", hugepages=None), recover=True)
        there, refused = [], 0
        def handle(*_):
            global refused
            try: there.append(qemu.attach("user"))
            except virtnic.PortBusy: refused += 1
        signal.signal(signal.SIGALRM, handle)
        for number in range(16):
            signal.setitimer(signal.ITIMER_REAL, 0.001 + 0.002 * number)
            there.append(qemu.attach("user"))
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert set(qemu.ports) == set(there), (number, qemu.ports, there)
            if number == 8:
                os.kill(qemu.pid, signal.SIGKILL)  # all of them come back
            for port in there:
                port.set_mac(port.mac)
                virtnic.net.Stack(port, dhcp=True).close()
            while there:
                there.pop().close()
        assert refused > 3, refused
        qemu.close()
        """)
    )


def test_a_signal_handler_waits_for_no_device_that_waits_for_its_thread() -> None:
    """Who attaches has the lock that the restoration of a dead QEMU needs."""
    program(
        textwrap.dedent("""
        qemu = virtnic.Qemu(virtnic.Memory("8M", hugepages=None), recover=True)
        port, answers = qemu.attach("user"), []
        def handle(*_):
            os.kill(qemu.pid, signal.SIGKILL)
            while not port.away: time.sleep(0.01)
            for call in (port.set_promiscuous, lambda: port.set_mac("52:54:00:00:00:01")):
                try: call()
                except (virtnic.VirtnicError, TimeoutError) as error: answers.append(error)
        signal.signal(signal.SIGTERM, handle)
        os.kill(qemu.pid, signal.SIGSTOP)
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
        try: qemu.attach("user")
        except virtnic.QemuDied as error: print(error)
        else: raise AssertionError("attached to a dead QEMU")
        assert [type(error) for error in answers] == [virtnic.PortBusy] * 2, answers
        port.set_mac("52:54:00:00:00:02")  # it comes back now
        virtnic.net.Stack(port, dhcp=True).close()
        qemu.close()
        """)
    )


def test_a_signal_handler_closes_while_a_port_is_started() -> None:
    """The one that is started afterwards is stopped again."""
    program(
        textwrap.dedent("""
        import virtnic.nic.host as host
        memory = virtnic.Memory("8M", hugepages=None)
        made, real = [], host.PortDriver
        def start(**options):
            made.append(real(**options))
            qemu.close()
            return made[-1]
        host.PortDriver = start
        qemu = virtnic.Qemu(memory, recover=True)
        try: qemu.attach("user")
        except virtnic.QemuError as error: assert "closed while a port was attached" in str(error)
        else: raise AssertionError("a port of a closed QEMU")
        assert made and memory.buffers_free == memory.buffers
        """)
    )


@pytest.mark.parametrize(
    "call",
    [
        "lambda: qemu.attach('user')",
        "port.restart",
        "lambda: port.set_mac('52:54:00:00:00:01')",
        "port.queue(0).stop",
    ],
)
def test_a_signal_handler_closes_what_is_recovered(call: str) -> None:
    """SIGTERM for all processes: QEMU dies, and the handler waits for who recovers it."""
    program(
        "qemu = virtnic.Qemu(virtnic.Memory('8M', hugepages=None), recover=True)\n"
        "port = qemu.attach('user')\n"
        "def handle(*_):\n"
        "    os.kill(qemu.pid, signal.SIGKILL)\n"
        "    time.sleep(0.5)\n"
        "    qemu.close()\n"
        "signal.signal(signal.SIGTERM, handle)\n"
        "os.kill(qemu.pid, signal.SIGSTOP)\n"
        "threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()\n"
        f"try: ({call})()\n"
        "except (virtnic.VirtnicError, TimeoutError) as error: print(repr(error))\n"
        "assert qemu.closed and port.closed\n"
    )


@pytest.mark.parametrize("call", ["lambda: qemu.attach('user')", "port.restart"])
@pytest.mark.parametrize("own", [False, True], ids=["attached", "opened"])
def test_a_signal_handler_closes_beside_another_thread(call: str, own: bool) -> None:
    """Each waits for what the other one has: the lock of the ports, a change of the port."""
    program(
        "memory = virtnic.Memory('8M', hugepages=None)\n"
        + (
            "port = virtnic.open('user', memory=memory); qemu = port.qemu\n"
            if own
            else "qemu = virtnic.Qemu(memory); port = qemu.attach('user')\n"
        )
        + "def handle(*_):\n"
        "    global thread\n"
        "    thread = threading.Thread(target=port.close); thread.start()\n"
        "    time.sleep(0.3)\n"
        "    port.close()\n"
        "signal.signal(signal.SIGTERM, handle)\n"
        "running = stopped(qemu.pid, 1.2)\n"
        "threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()\n"
        f"try: ({call})()\n"
        "except (virtnic.VirtnicError, TimeoutError) as error: print(repr(error))\n"
        "running.wait(); thread.join(); port.close(); qemu.close()\n"
        "assert memory.buffers_free == memory.buffers\n"
    )
