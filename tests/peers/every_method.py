"""Call all pairs of public methods from three threads, on a QEMU that is paused at times.

The table says how each is called; ``tests/failure/test_locks.py`` sees to it that none is missing.
As a program: ``every_method.py SEED SECONDS`` calls until all pairs were seen (or for as long as
it may), with a SIGINT at random moments; it ends with 0, or says what hung.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import functools
import itertools
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from errno import ENETDOWN
from socket import SHUT_WR, SO_BROADCAST, SO_ERROR, SOL_SOCKET
from socket import SOCK_DGRAM as UDP
from typing import Any

import virtnic
from support.inside import attachment_of, driver_of, machine_of
from virtnic import NetQueue, aio, net

#: Longer than any wait for QEMU (10 s each, and some calls have several).
TIMEOUT = 60.0
#: The longest stop of QEMU, seconds.
LONGEST_STOP = 2.0

PEER = ("10.0.2.2", 9)
FRAME = b"\xff" * 12 + b"\x88\xb5" + bytes(46)


class World:
    """A QEMU with a port, and what its methods are called with."""

    def __init__(self) -> None:
        """Start it."""
        self.qemu = virtnic.Qemu(virtnic.Memory("8M", hugepages=None))
        self.port = self.qemu.attach("user")
        self.queue = self.port.queue(0)
        self.pid = self.qemu.pid
        self._lock = threading.Lock()
        self._make_stack()

    def _make_stack(self) -> None:
        self.stack = net.Stack(self.port, address="10.0.2.15/24")
        self.sockets = [self.stack.socket(), self.stack.socket(), self.stack.socket(type=UDP)]
        self.sockets[0].listen()
        self.sockets[2].connect(PEER)
        for each in self.sockets:
            each.settimeout(0.001)

    def replace(self, stack: net.Stack) -> None:
        """Make another stack on the port, whose device was reset below this one."""
        with self._lock:
            if self.stack is stack and not stack.closed:
                stack.close()
                self._make_stack()

    def close(self) -> None:
        """End it, whatever interrupts that."""
        while True:
            with contextlib.suppress(KeyboardInterrupt):
                self.qemu.close()
                self.stack.close()
                return


def get(name: str) -> Callable[[Any], object]:
    """Read an attribute, which may be a property that asks QEMU."""
    return lambda owner: getattr(owner, name)


def attach(qemu: virtnic.Qemu) -> None:
    """Attach a port and detach it."""
    qemu.detach(qemu.attach("user"))


def nic(qemu: virtnic.Qemu) -> None:
    """Plug a NIC and unplug it, without its driver."""
    machine = machine_of(qemu)
    machine.remove_nic(machine.add_nic("user"), None)


def suspend(port: virtnic.Port) -> None:
    """Set the queues aside, and go on with the same device: one that was there was reset."""
    driver_of(port).suspend()
    reattach(port)
    port.restart()


def of_driver(name: str) -> Callable[[Any], object]:
    """Read an attribute of a port's driver."""
    return lambda port: getattr(driver_of(port), name)


def abandon(port: virtnic.Port) -> None:
    """Give the device up, and take it back."""
    driver_of(port).abandon("a test")
    port.restart()


def reattach(port: virtnic.Port) -> None:
    """Go on with the same device."""
    registers = attachment_of(port).registers()
    driver_of(port).reattach(machine_of(port.qemu).qtest, **registers)


def stop_queue(queue: NetQueue) -> None:
    """Stop a queue; others may start it first."""
    queue.stop()
    queue.start()


def awaited(call: Callable[[aio.Port], Any]) -> Callable[[Any], object]:
    """Await something of an aio port, for no longer than a moment."""

    async def run(port: virtnic.Port) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(call(aio.Port(port)), 0.002)

    return lambda port: asyncio.run(run(port))


async def changes(port: aio.Port) -> None:
    """Wait for a change of the link."""
    await anext(port.link_changes())


def of_stack(call: Callable[[net.Stack], object]) -> Callable[[Any], object]:
    """Call a method of a stack; one whose port failed is replaced."""

    def run(world: World) -> None:
        stack = world.stack
        try:
            call(stack)
        except OSError as error:
            if error.errno == ENETDOWN:
                world.replace(stack)
            raise

    return run


def one(call: Callable[[net.Socket], object]) -> Callable[[Any], object]:
    """Call a method of one of several sockets."""

    def run(world: World) -> None:
        of_stack(lambda _: call(random.choice(world.sockets)))(world)

    return run


def of_the_stack(name: str) -> Callable[[Any], object]:
    """Read an attribute of the stack."""
    return of_stack(lambda stack: getattr(stack, name))


def remove_address(stack: net.Stack) -> None:
    """Remove an address that was added."""
    stack.configure("10.0.2.99/24")
    stack.remove_address("10.0.2.99")


def of_one(name: str) -> Callable[[Any], object]:
    """Read an attribute of one of several sockets."""
    return one(lambda socket: getattr(socket, name))


def attribute(name: str) -> Callable[[Any], object]:
    """Read an attribute of an aio port."""

    async def run(port: virtnic.Port) -> object:
        return getattr(aio.Port(port), name)

    return lambda port: asyncio.run(run(port))


Table = dict[str, Callable[[Any], object]]


def read(names: str, how: Callable[[str], Callable[[Any], object]] = get) -> Table:
    """Read each of these attributes."""
    return {name: how(name) for name in names.split()}


PORT: Table = {
    **read(
        "away closed duplex features frontend interrupts legacy link mac max_queues "
        "memory mtu polling qemu queue_addresses queue_size queues restarts ring rss rss_limits "
        "speed standby statistics timestamps"
    ),
    "add_vlan": lambda port: port.add_vlan(7),
    "fileno": lambda port: port.fileno(),
    "on_link": lambda port: port.on_link(lambda _: None),
    "queue": lambda port: port.queue(0),
    "reclaim": lambda port: port.reclaim(),
    "recv": lambda port: port.recv(32, timeout=0.001),
    "remove_vlan": lambda port: port.remove_vlan(7),
    "restart": lambda port: port.restart(),
    "send": lambda port: port.send([FRAME] * 8),
    "send_all": lambda port: port.send_all([FRAME] * 300, timeout=0.001),
    "set_allmulticast": lambda port: port.set_allmulticast(),
    "set_coalescing": lambda port: port.set_coalescing("rx", 1, 1),
    "set_guest_offloads": lambda port: port.set_guest_offloads([]),
    "set_mac": lambda port: port.set_mac(port.mac),
    "set_mac_filter": lambda port: port.set_mac_filter([port.mac]),
    "set_polling": lambda port: port.set_polling(0),
    "set_promiscuous": lambda port: port.set_promiscuous(),
    "set_queues": lambda port: port.set_queues(1),
    "set_receive_mode": lambda port: port.set_receive_mode("promiscuous"),
    "set_rss": lambda port: port.set_rss(),
    "set_statistics": lambda port: port.set_statistics("extended"),
    "set_timestamps": lambda port: port.set_timestamps(),
    "stats": lambda port: port.stats(),
    "tx_fileno": lambda port: port.tx_fileno(),
    "wait_ready": lambda port: port.wait_ready(0.001),
    "wait_writable": lambda port: port.wait_writable(0.001),
    "xstats": lambda port: port.xstats(),
}
#: What virtnic itself does with a port's device.
DRIVER: Table = {
    **read("drops_long_frames link rss_limits withholds", of_driver),
    "abandon": abandon,
    "check": lambda port: driver_of(port).check(),
    "device_gone": lambda port: driver_of(port).device_gone(),
    "reattach": reattach,
    "refresh_link": lambda port: driver_of(port).refresh_link(),
    "restart_if_needed": lambda port: driver_of(port).restart_if_needed(),
    "rss_config": lambda port: driver_of(port).rss_config(),
    "rx_descriptor": lambda port: driver_of(port).rx_descriptor(),
    "set_recoverable": lambda port: driver_of(port).set_recoverable(False),
    "set_rss_config": lambda port: driver_of(port).set_rss_config([0] * 40, [0], 1),
    "suspend": suspend,
    "tx_descriptor": lambda port: driver_of(port).tx_descriptor(),
}
#: What its other threads do with it.
TOLD: Table = {
    "configuration_changed": lambda port: attachment_of(port).configuration_changed(),
    "ended": lambda port: attachment_of(port).callbacks.ended(),
    "link_changed": lambda port: attachment_of(port).link_changed(),
    "subscribe": lambda port: attachment_of(port).add_link_callback(lambda _: None, lambda: None)(),
}
QUEUE: Table = {
    **read("active index port"),
    "fileno": lambda queue: queue.fileno(),
    "send_all": lambda queue: queue.send_all([FRAME] * 300, timeout=0.001),
    "reclaim": lambda queue: queue.reclaim(),
    "recv": lambda queue: queue.recv(32),
    "send": lambda queue: queue.send([FRAME] * 8),
    "set_coalescing": lambda queue: queue.set_coalescing("tx", 1, 1),
    "start": lambda queue: queue.start(),
    "stats": lambda queue: queue.stats(),
    "stop": stop_queue,
    "tx_fileno": lambda queue: queue.tx_fileno(),
    "wait_writable": lambda queue: queue.wait_writable(0.001),
}
STACK: Table = {
    **read("address addresses closed gateway gateways name_servers", of_the_stack),
    "arp": of_stack(lambda stack: stack.arp("10.0.2.2", timeout=0.002)),
    "configure": of_stack(lambda stack: stack.configure("10.0.2.15/24")),
    "connections": of_stack(lambda stack: stack.connections()),
    "create_connection": of_stack(lambda stack: stack.create_connection(PEER, 0.002).close()),
    "create_server": of_stack(lambda stack: stack.create_server(("", 0)).close()),
    "dhcp": of_stack(lambda stack: stack.dhcp(timeout=0.002)),
    "getaddrinfo": of_stack(lambda stack: stack.getaddrinfo("10.0.2.2", 80)),
    "ping": of_stack(lambda stack: stack.ping("10.0.2.2", timeout=0.002)),
    "remove_address": of_stack(remove_address),
    "socket": of_stack(lambda stack: stack.socket().close()),
    "stats": of_stack(lambda stack: stack.stats()),
    "wait_ipv6": of_stack(lambda stack: stack.wait_ipv6(timeout=0.002)),
}
SOCKET: Table = {
    **read("family proto timeout type", of_one),
    "accept": one(lambda socket: socket.accept()),
    "bind": one(lambda socket: socket.bind(("", 0))),
    "connect": one(lambda socket: socket.connect(PEER)),
    "connect_ex": one(lambda socket: socket.connect_ex(PEER)),
    "detach": one(lambda socket: socket.detach()),
    "fileno": one(lambda socket: socket.fileno()),
    "getblocking": one(lambda socket: socket.getblocking()),
    "getpeername": one(lambda socket: socket.getpeername()),
    "getsockname": one(lambda socket: socket.getsockname()),
    "getsockopt": one(lambda socket: socket.getsockopt(SOL_SOCKET, SO_ERROR)),
    "gettimeout": one(lambda socket: socket.gettimeout()),
    "listen": one(lambda socket: socket.listen()),
    "makefile": one(lambda socket: socket.makefile("rb").close()),
    "recv": one(lambda socket: socket.recv(64)),
    "recv_into": one(lambda socket: socket.recv_into(bytearray(64))),
    "recvfrom": one(lambda socket: socket.recvfrom(64)),
    "recvfrom_into": one(lambda socket: socket.recvfrom_into(bytearray(64))),
    "send": one(lambda socket: socket.send(FRAME)),
    "sendall": one(lambda socket: socket.sendall(FRAME)),
    "sendmsg": one(lambda socket: socket.sendmsg([FRAME, FRAME])),
    "sendto": one(lambda socket: socket.sendto(FRAME, PEER)),
    "setblocking": one(lambda socket: socket.setblocking(False)),
    "setsockopt": one(lambda socket: socket.setsockopt(SOL_SOCKET, SO_BROADCAST, 1)),
    "settimeout": one(lambda socket: socket.settimeout(0.001)),
    "shutdown": one(lambda socket: socket.shutdown(SHUT_WR)),
    "stats": one(lambda socket: socket.stats()),
}
QEMU: Table = {
    **read("accel bus closed command directory machine memory pid ports recovery stderr version"),
    "attach": attach,
    "connect": lambda qemu: type(qemu).connect("/nonexistent"),
    "events": lambda qemu: qemu.events().close(),
    "execute": lambda qemu: qemu.execute("query-status"),
    "watch": lambda qemu: qemu.watch(lambda _: None)(),
}
#: What virtnic itself does with QEMU.
MACHINE: Table = {
    "add_nic": nic,
    "listen": lambda qemu: machine_of(qemu).monitor.listen(lambda _: None)(),
    "nics": lambda qemu: machine_of(qemu).nics,
    "on_death": lambda qemu: machine_of(qemu).on_death(lambda _: None),
}
AIO: Table = {
    **read("closed features interrupts link mac memory mtu qemu queue_size ring", attribute),
    "link_changes": awaited(changes),
    "recv": awaited(lambda port: port.recv()),
    "send": awaited(lambda port: port.send([FRAME] * 300)),
    "send_all": awaited(lambda port: port.send_all([FRAME] * 300)),
    "stats": awaited(lambda port: asyncio.to_thread(port.stats)),
    "wait_ready": awaited(lambda port: port.wait_ready(0.001)),
}
#: Methods after which not every other one can be called.
LAST: dict[str, Table] = {
    "port": {"close": lambda port: port.close()},
    "driver": {
        "refuse": lambda port: driver_of(port).refuse(),
        "stop": lambda port: attachment_of(port).stop(),
    },
    "qemu": {"detach": lambda qemu: [qemu.detach(port) for port in qemu.ports]},
    "stack": {"close": of_stack(lambda stack: stack.close())},
    "socket": {"close": one(lambda socket: socket.close())},
    "machine": {"keep_little": lambda qemu: machine_of(qemu).keep_little()},
    "end": {"close": lambda qemu: qemu.close()},
    "aio": {"close": lambda port: asyncio.run(_close(port))},
}


async def _close(port: virtnic.Port) -> None:
    await aio.Port(port).close()


def calls(world: World) -> dict[str, Callable[[], object]]:
    """Every method of a world that can be called again and again, by name."""
    owners: list[tuple[str, Any, Table]] = [
        ("port", world.port, PORT),
        ("driver", world.port, DRIVER),
        ("told", world.port, TOLD),
        ("queue", world.queue, QUEUE),
        ("stack", world, STACK),
        ("socket", world, SOCKET),
        ("qemu", world.qemu, QEMU),
        ("machine", world.qemu, MACHINE),
        ("aio", world.port, AIO),
    ]
    return {
        f"{kind}.{name}": functools.partial(call, owner)
        for kind, owner, table in owners
        for name, call in table.items()
    }


def endings(world: World) -> dict[str, Callable[[], object]]:
    """Every method that ends something."""
    owners: dict[str, Any] = {
        **dict.fromkeys(("port", "driver", "aio"), world.port),
        **dict.fromkeys(("qemu", "machine", "end"), world.qemu),
        **dict.fromkeys(("stack", "socket"), world),
    }
    return {
        f"{kind}.{name}": functools.partial(call, owners[kind])
        for kind, table in LAST.items()
        for name, call in table.items()
    }


#: Methods that return at once, whatever QEMU and other threads do.
PROMPT = (
    *(f"port.{name}" for name in PORT if not name.startswith(("set_", "re"))),
    *(f"driver.{name}" for name in DRIVER if not name.startswith(("set_", "re"))),
    *("told.ended", "told.link_changed", "told.subscribe"),
    *("port.recv", "port.reclaim", "port.restarts", "port.set_polling", "port.set_statistics"),
    "port.set_timestamps",
    *(f"queue.{name}" for name in QUEUE if name not in ("start", "stop", "set_coalescing")),
    *(f"stack.{name}" for name in STACK),
    *(f"socket.{name}" for name in SOCKET),
    *(f"qemu.{name}" for name in ("accel", "closed", "events", "ports", "watch")),
    "machine.nics",
    *(f"aio.{name}" for name in AIO),
)
#: Not short calls: they change the port, wait for all of it, or call others back.
SLOW = ("driver.abandon", "driver.suspend", "port.add_vlan")


class Watch:
    """Ends the program when a thread makes no progress, and prints where all threads are."""

    def __init__(self) -> None:
        """Begin."""
        self.failures: list[str] = []
        self._running: dict[int, tuple[str, float]] = {}
        threading.Thread(target=self._look, daemon=True).start()

    def call(self, name: str, call: Callable[[], object]) -> None:
        """Call it; virtnic's own errors are fine, and an interruption ends with the call."""
        me = threading.get_ident()
        self._running[me] = (name, time.monotonic())
        try:
            call()
        except (
            virtnic.VirtnicError,
            OSError,
            ValueError,
            KeyboardInterrupt,
            RuntimeError,
            EOFError,
        ):
            pass
        except BaseException:
            self.failures.append(f"{name}: {traceback.format_exc()}")
        finally:
            self._running.pop(me, None)

    def _look(self) -> None:
        while True:
            time.sleep(1.0)
            for name, since in list(self._running.values()):
                if time.monotonic() - since > TIMEOUT:
                    os.write(2, f"{name} hangs\n".encode())
                    faulthandler.dump_traceback()
                    os._exit(3)


class Interrupter:
    """SIGINT at random moments: its handler must run soon, and raises in the main thread."""

    def __init__(self, rng: random.Random) -> None:
        """Begin; in the main thread."""
        self.count, self.longest = 0, 0.0
        self._handled = threading.Event()
        self._over = threading.Event()
        self._raising = False
        signal.signal(signal.SIGINT, self._handle)
        self._thread = threading.Thread(target=self._run, args=(rng,))
        self._thread.start()

    def _handle(self, *_: object) -> None:
        self._handled.set()
        if self._raising:
            self._raising = False
            raise KeyboardInterrupt

    def _run(self, rng: random.Random) -> None:
        while not self._over.wait(rng.uniform(0.05, 0.5)):
            self._handled.clear()
            began = time.monotonic()
            os.kill(os.getpid(), signal.SIGINT)
            if not self._handled.wait(TIMEOUT):
                os.write(2, b"deaf to Ctrl-C\n")
                faulthandler.dump_traceback()
                os._exit(4)
            self.count += 1
            self.longest = max(self.longest, time.monotonic() - began)

    def interrupt(self, call: Callable[[], object]) -> None:
        """Call what a signal may interrupt."""
        with contextlib.suppress(KeyboardInterrupt):
            self._raising = True
            call()
            self._raising = False

    def close(self) -> None:
        """No more."""
        self._over.set()
        self._thread.join()


class Stopper:
    """Stops a QEMU at random moments, for about two seconds in total."""

    def __init__(self, pid: int, rng: random.Random, longest: float) -> None:
        """Begin."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(pid, rng, longest))
        self._thread.start()

    def _run(self, pid: int, rng: random.Random, longest: float) -> None:
        while not self._over.wait(rng.uniform(0.1, 0.8)):
            try:
                os.kill(pid, signal.SIGSTOP)
                self._over.wait(rng.uniform(0.0, longest))
                os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                return
            longest = rng.choice((0.05, 0.2, longest))

    def close(self) -> None:
        """No more."""
        self._over.set()
        self._thread.join()


def in_pairs(rng: random.Random, until: float, watch: Watch, interrupter: Interrupter) -> int:
    """Call all pairs, one of each in this thread, and anything in a third; return how many."""
    world = World()
    table = calls(world)
    pairs = list(itertools.combinations_with_replacement(table, 2))
    rng.shuffle(pairs)
    over = threading.Event()
    jobs: list[list[str]] = [[], []]
    begin, end = threading.Barrier(2), threading.Barrier(2)

    def second() -> None:
        while True:
            begin.wait()
            if over.is_set():
                return
            for name in jobs[1]:
                watch.call(name, table[name])
            end.wait()

    def third() -> None:
        own = random.Random(rng.random())
        names = list(table)
        while not over.is_set():
            name = own.choice(names)
            watch.call(name, table[name])

    threads = [threading.Thread(target=second), threading.Thread(target=third)]
    for thread in threads:
        thread.start()
    stopper = Stopper(world.pid, rng, LONGEST_STOP)
    done = 0
    # A handful at a time: threads that meet once each mostly miss one another.
    while done < len(pairs) and time.monotonic() < until:
        some = pairs[done : done + 16]
        for side in (0, 1):
            jobs[side] = [pair[side] for pair in some]
        begin.wait()
        for name in jobs[0]:
            interrupter.interrupt(functools.partial(watch.call, name, table[name]))
        end.wait()
        done += len(some)
    over.set()
    begin.wait()
    for thread in threads:
        thread.join()
    stopper.close()
    world.close()
    return done


def beside_waiters(rng: random.Random, watch: Watch) -> None:
    """Call what is prompt while another thread's call, each in turn, waits for a stopped QEMU."""
    world = World()
    table = calls(world)
    prompt = [name for name in PROMPT if name not in SLOW]
    for name in rng.sample(list(table), len(table)):
        # Nothing is left over from the one before.
        watch.call("port.restart", table["port.restart"])
        os.kill(world.pid, signal.SIGSTOP)
        waiter = threading.Thread(target=watch.call, args=(name, table[name]))
        waiter.start()
        # Longer than it takes until the waiter wants to look for signals, and so the interpreter.
        waiter.join(0.02)
        began = time.monotonic()
        while waiter.is_alive() and time.monotonic() - began < 0.15:
            for other in rng.sample(prompt, len(prompt)):
                watch.call(other, table[other])
        os.kill(world.pid, signal.SIGCONT)
        waiter.join()
    world.close()


def beside_endings(rng: random.Random, watch: Watch, interrupter: Interrupter) -> None:
    """End something while two threads call everything else."""
    names = list(LAST.items())
    for kind, name in [(kind, name) for kind, table in names for name in table]:
        world = World()
        table, ending = calls(world), endings(world)[f"{kind}.{name}"]
        over = threading.Event()

        def everything(
            over: threading.Event = over, table: dict[str, Callable[[], object]] = table
        ) -> None:
            own = random.Random(rng.random())
            while not over.is_set():
                for name in own.sample(list(table), len(table)):
                    if not over.is_set():
                        watch.call(name, table[name])

        threads = [threading.Thread(target=everything) for _ in range(2)]
        for thread in threads:
            thread.start()
        stopper = Stopper(world.pid, rng, 0.5)
        time.sleep(rng.uniform(0.0, 0.3))
        interrupter.interrupt(functools.partial(watch.call, name, ending))
        watch.call(name, ending)  # what was interrupted is finished by the next call
        time.sleep(0.1)
        over.set()
        for thread in threads:
            thread.join()
        stopper.close()
        world.close()


def main() -> None:
    """Run as the module says."""
    seed, seconds = int(sys.argv[1]), float(sys.argv[2])
    faulthandler.enable()
    rng = random.Random(seed)
    watch = Watch()
    interrupter = Interrupter(rng)
    began = time.monotonic()
    try:
        beside_waiters(rng, watch)
        beside_endings(rng, watch, interrupter)
        done = in_pairs(rng, began + seconds, watch, interrupter)
    finally:
        interrupter.close()
    for failure in watch.failures[:5]:
        print(failure)
    print(
        f"{done} pairs in {time.monotonic() - began:.1f} s; {interrupter.count} interruptions, "
        f"handled within {interrupter.longest:.2f} s"
    )
    sys.exit(1 if watch.failures else 0)


if __name__ == "__main__":
    main()
