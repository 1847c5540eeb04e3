"""A fake QEMU that follows the protocol up to a chosen fault.

``python fake_qemu.py FAULT`` followed by QEMU's options. Only the standard library.
"""

import json
import os
import random
import re
import socket
import sys
import threading
import time

VERSION = {"major": 7, "minor": 2, "micro": 0}

#: The faults by name, and part of the error that the caller gets.
FAULTS = {
    "exits": "no such luck",
    "no sockets": "QMP socket",
    "stderr for ever": "QMP socket",
    "qmp silent": "QMP socket",
    "qmp garbage": "greet",
    "qmp for ever": "greet",
    "no qtest": "QTest socket",
    "qtest silent": "does not answer",
    "qtest closes": "QTest socket",
    "qtest garbage": "QTest protocol was broken",
    "qtest for ever": "QTest protocol was broken",
    "qtest refuses": "refused",
    "qtest stops": "no reply",
    "qtest dies": "exit status 3|QTest socket",
    "pci ones": "host bridge",
    "pci zeros": "host bridge",
    "pci empty": "0 ivshmem devices",
    "pci noise": "ivshmem|host bridge|PCI|BAR",
    "pci endless": "more than 512 PCI functions",
    "shmem endless": "ivshmem devices",
}


def option(name: str) -> str:
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else ""


def listen(name: str) -> socket.socket:
    found = (re.match(rf"socket,id={name},path=([^,]*)", word) for word in sys.argv)
    [match] = filter(None, found)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(match[1])
    listener.listen()
    return listener


def qmp(fault: str, listener: socket.socket) -> None:
    connection, _ = listener.accept()
    if fault == "qmp silent":
        time.sleep(1000)
    if fault == "qmp garbage":
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        time.sleep(1000)
    while fault == "qmp for ever":
        connection.sendall(b"x" * 65536)
    greeting = {"QMP": {"version": {"qemu": VERSION, "package": ""}, "capabilities": []}}
    connection.sendall(json.dumps(greeting).encode() + b"\n")
    heard = ""
    while chunk := connection.recv(65536):
        heard += chunk.decode()
        while heard:
            try:
                request, end = json.JSONDecoder().raw_decode(heard)
            except json.JSONDecodeError:
                break
            heard = heard[end:].lstrip()
            reply = {"return": {}, "id": request["id"]} if "id" in request else {"return": {}}
            connection.sendall(json.dumps(reply).encode() + b"\n")


class Bus:
    """The configuration registers of a fake PCI bus."""

    def __init__(self, fault: str) -> None:
        self.fault = fault
        self.address = 0

    def read(self) -> int:
        function, register = self.address >> 8 & 0x7FFFFF, self.address & 0xFC
        host = register == 0 and function == 0
        if self.fault == "pci zeros":
            return 0
        if self.fault == "pci ones":
            return 0xFFFFFFFF
        if host:
            return 0x12378086
        if self.fault == "pci noise":
            return random.getrandbits(32)
        if self.fault in ("pci endless", "shmem endless") and function:
            bridge = self.fault == "pci endless"
            # Identity, class, header type; everything else is 0.
            values = {0x00: 0x000C1B36 if bridge else 0x11101AF4, 0x08: 0x06040000, 0x0C: 0x810000}
            return values.get(register, 0) if bridge or function >> 8 == 0 else 0xFFFFFFFF
        return 0xFFFFFFFF


def qtest(fault: str, listener: socket.socket) -> None:
    connection, _ = listener.accept()
    if fault == "qtest closes":
        connection.close()
        time.sleep(1000)
    if fault == "qtest silent":
        time.sleep(1000)
    if fault == "qtest garbage":
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        time.sleep(1000)
    while fault == "qtest for ever":
        connection.sendall(b"A" * 65536)
    bus = Bus(fault)
    for count, line in enumerate(connection.makefile("rb")):
        words = line.decode().split()
        if words[0] == "endianness":
            reply = "OK little"
        elif fault == "qtest stops" and count > 10:
            time.sleep(1000)
        elif fault == "qtest dies" and count > 10:
            sys.stderr.flush()
            os._exit(3)
        elif fault == "qtest refuses":
            reply = "FAIL not today"
        elif words[0] == "outl" and words[1] == "0xcf8":
            bus.address = int(words[2], 16)
            reply = "OK"
        elif words[0].startswith("in"):
            width = {"inb": 8, "inw": 16, "inl": 32}[words[0]]
            value = bus.read() if 0xCFC <= int(words[1], 16) <= 0xCFF else (1 << width) - 1
            reply = f"OK 0x{value & (1 << width) - 1:04x}"
        elif words[0] == "clock_step":
            reply = "OK 1000"
        else:
            reply = "OK"
        connection.sendall(reply.encode() + b"\n")


def main() -> None:
    fault = sys.argv[1]
    if "--version" in sys.argv:
        print("QEMU emulator version 7.2.0")
        return
    if "-machine" in sys.argv and option("-machine") == "help":
        print("Supported machines are:\npc  Standard PC\nq35  Standard PC")
        return
    while fault == "stdio for ever":
        sys.stdout.write("x" * 65536)
    if fault == "exits":
        sys.exit("no such luck")
    while fault == "stderr for ever":
        sys.stderr.write("warning: " + "w" * 10_000 + "\n")
    if fault != "no sockets":
        # A real one connects here and waits for the memory; this one wants none. Like a real one it
        # listens at both sockets before it answers at either.
        served = [(qmp, listen("qmp"))]
        if fault != "no qtest":
            served.append((qtest, listen("qtest")))
        for serve, listener in served:
            threading.Thread(target=serve, args=(fault, listener)).start()
    time.sleep(1000)


if __name__ == "__main__":
    main()
