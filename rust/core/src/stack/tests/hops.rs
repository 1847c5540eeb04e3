//! The search for the MAC addresses of next hops.
//!
//! No time has to pass in these tests: smoltcp asks for one address a second, and polls a socket that
//! waits for the reply after a second.

use super::peer::{arp, asked};
use crate::stack::testing::{Bare, MAC};
use smoltcp::wire::{ArpOperation, EthernetAddress};
use std::net::{Ipv4Addr, SocketAddr};

const OURS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const NEAR: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 99);

/// What was sent: `?` and an address that was asked for, or the number of a transport protocol.
fn heard(frames: &[Vec<u8>]) -> Vec<String> {
    let kind = |frame: &Vec<u8>| match (frame[12], frame[13]) {
        (8, 0) => frame[23].to_string(),
        (8, 6) => asked(frame).map_or_else(String::new, |address| format!("?{address}")),
        // The target of a neighbour solicitation.
        _ if frame[20] == 58 && frame[54] == 135 => format!("?{:x}", frame[77]),
        _ if frame[20] == 58 => String::new(),
        _ => frame[20].to_string(),
    };
    frames.iter().map(kind).filter(|text| !text.is_empty()).collect()
}

fn host() -> Bare {
    let mut host = Bare::new(&["10.0.0.1/24", "fd00::1/64"]).unwrap();
    host.turn();
    host
}

fn to(address: impl Into<std::net::IpAddr>) -> SocketAddr {
    SocketAddr::new(address.into(), 9)
}

fn answer() -> Vec<u8> {
    arp(ArpOperation::Reply, NEAR, EthernetAddress(MAC.0), OURS)
}

type Start = fn(&mut Bare, SocketAddr) -> crate::Result<()>;
const STARTS: [(Start, &str); 2] = [(Bare::connect, "6"), (Bare::send, "17")];

#[test]
fn a_socket_sends_as_soon_as_its_neighbour_has_answered() {
    for (start, protocol) in STARTS {
        let mut host = host();
        start(&mut host, to(NEAR)).unwrap();
        assert_eq!(heard(&host.turn()), ["?10.0.0.2"]);
        host.receive(&answer(), false);
        assert_eq!(heard(&host.turn()), [protocol]);
    }
}

#[test]
fn a_neighbour_is_asked_right_after_another() {
    for (start, protocol) in STARTS {
        let mut host = host();
        start(&mut host, to(NOBODY)).unwrap();
        assert_eq!(heard(&host.turn()), ["?10.0.0.99"]);
        start(&mut host, to(NEAR)).unwrap();
        // Once, however many wait for it.
        start(&mut host, to(NEAR)).unwrap();
        assert_eq!(heard(&host.turn()), ["?10.0.0.2"]);
        host.receive(&answer(), false);
        assert_eq!(heard(&host.turn()), [protocol, protocol]);
    }
}

#[test]
fn the_same_over_ipv6() {
    let near = |last: u16| std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last);
    for (start, protocol) in STARTS {
        let mut host = host();
        start(&mut host, to(near(0x99))).unwrap();
        assert_eq!(heard(&host.turn()), ["?99"]);
        start(&mut host, to(near(2))).unwrap();
        let asked = host.turn();
        assert_eq!(heard(&asked), ["?2"]);
        assert_eq!(asked[0][..6], [0x33, 0x33, 0xff, 0, 0, 2]);
        host.receive(&advertisement(near(2), near(1)), false);
        assert_eq!(heard(&host.turn()), [protocol]);
    }
}

/// A neighbour advertisement.
fn advertisement(from: std::net::Ipv6Addr, to: std::net::Ipv6Addr) -> Vec<u8> {
    use smoltcp::phy::ChecksumCapabilities;
    use smoltcp::wire::{
        Icmpv6Packet, Icmpv6Repr, IpProtocol, Ipv6Packet, Ipv6Repr, NdiscNeighborFlags, NdiscRepr,
    };
    let reply = Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert {
        flags: NdiscNeighborFlags::SOLICITED | NdiscNeighborFlags::OVERRIDE,
        target_addr: from,
        lladdr: Some(super::peer::PEER_MAC.into()),
    });
    let ip = Ipv6Repr {
        src_addr: from,
        dst_addr: to,
        next_header: IpProtocol::Icmpv6,
        payload_len: reply.buffer_len(),
        hop_limit: 255,
    };
    let mut frame = [&MAC.0[..], super::peer::PEER_MAC.as_bytes(), &[0x86, 0xdd]].concat();
    let start = frame.len();
    frame.resize(start + ip.buffer_len() + reply.buffer_len(), 0);
    let mut packet = Ipv6Packet::new_unchecked(&mut frame[start..]);
    ip.emit(&mut packet);
    let mut message = Icmpv6Packet::new_unchecked(packet.payload_mut());
    reply.emit(&from, &to, &mut message, &ChecksumCapabilities::default());
    frame
}

#[test]
fn without_an_answer_nothing_is_sent_and_nobody_asked_again() {
    for (start, _) in STARTS {
        let mut host = host();
        start(&mut host, to(NEAR)).unwrap();
        assert_eq!(heard(&host.turn()), ["?10.0.0.2"]);
        // Others' replies, and requests of the neighbour for somebody else.
        host.receive(&arp(ArpOperation::Reply, NOBODY, EthernetAddress(MAC.0), OURS), false);
        host.receive(&arp(ArpOperation::Request, NEAR, EthernetAddress::BROADCAST, NOBODY), false);
        assert_eq!(heard(&host.turn()), Vec::<String>::new());
    }
}
