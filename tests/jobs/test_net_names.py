"""Names: a server in the kernel's namespace, which answers wrongly, too; and what follows."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

import virtnic
from peers.kernel import LONG
from peers.names import NameServer
from peers.netns import Netns
from virtnic import net


@pytest.fixture
def stack(netns: Netns, tmp_path: Path) -> Iterator[net.Stack]:
    hosts = tmp_path / "hosts"
    hosts.write_text("10.99.0.1 filed.test filed # a comment\nfd99::1 filed.test\n")
    server = NameServer(netns)
    try:
        with (
            virtnic.open(netns.netdev) as port,
            net.Stack(
                port,
                address=["10.99.0.2/24", "fd99::2/64"],
                gateway="10.99.0.1",
                dns=["10.99.0.1"],
                search=["none", "test"],
                hosts=hosts,
            ) as stack,
        ):
            netns.wait_for_carrier()
            yield stack
    finally:
        server.close(netns)


def addresses(stack: net.Stack, name: str, family: int = 0) -> list[str]:
    return [info[4][0] for info in stack.getaddrinfo(name, 80, family, socket.SOCK_STREAM)]


def test_names_of_all_kinds(stack: net.Stack) -> None:
    assert addresses(stack, "host.test", socket.AF_INET) == ["10.99.0.1"]
    assert addresses(stack, "host") == ["10.99.0.1"]
    assert addresses(stack, "both.test") == ["fd99::77", "10.99.0.1"]
    assert addresses(stack, "alias.test") == ["10.99.0.1"]
    # Longer than a datagram: asked again by TCP.
    assert len(addresses(stack, "long.test.", socket.AF_INET)) == 100
    assert addresses(stack, "filed", socket.AF_INET) == ["10.99.0.1"]
    assert addresses(stack, "FILED.test") == ["fd99::1", "10.99.0.1"]
    assert addresses(stack, "192.0.2.7") == ["192.0.2.7"]
    for name, code in (
        ("nobody.test", socket.EAI_NONAME),
        ("circle.test", socket.EAI_NODATA),
    ):
        with pytest.raises(socket.gaierror) as caught:
            addresses(stack, name)
        assert caught.value.errno == code


def test_of_two_addresses_the_one_that_answers_is_used(stack: net.Stack, netns: Netns) -> None:
    """`both.test` has an IPv6 address, which nobody has."""
    with netns.open_socket(socket.AF_INET, socket.SOCK_STREAM) as server:
        server.bind(("10.99.0.1", 0))
        server.listen()
        with stack.create_connection(("both.test", server.getsockname()[1]), LONG) as ours:
            assert ours.getpeername()[0] == "10.99.0.1"
            with server.accept()[0] as theirs:
                theirs.sendall(b"here")
                assert ours.recv(10) == b"here"
    assert sum(one.state == "syn-sent" for one in stack.connections()) == 0
