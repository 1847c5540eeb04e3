#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::testing::{Inbox, Wire};
use super::*;
use crate::net::Mac;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, DhcpMessageType, DhcpPacket, DhcpRepr, EthernetFrame,
    EthernetProtocol, EthernetRepr, Icmpv4Packet, Icmpv4Repr, IpProtocol, Ipv4Packet, Ipv4Repr,
    UdpPacket, UdpRepr,
};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

const OURS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const PEER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const PEER_MAC: EthernetAddress = EthernetAddress([0x52, 0x54, 0, 0, 0, 2]);
const OUR_MAC: EthernetAddress = EthernetAddress([0x52, 0x54, 0, 0, 0, 1]);

fn ms(count: u64) -> Option<Duration> {
    Some(Duration::from_millis(count))
}

fn go_on() -> Result<()> {
    Ok(())
}

fn stack(wire: &Arc<Wire>) -> Stack<Arc<Wire>> {
    let mut stack = Stack::new(wire.clone()).unwrap();
    stack.configure("10.0.0.1/24".parse().unwrap(), None).unwrap();
    stack
}

/// An Ethernet frame from the peer.
fn frame(to: EthernetAddress, ethertype: EthernetProtocol, payload: &[u8]) -> Vec<u8> {
    let repr = EthernetRepr { src_addr: PEER_MAC, dst_addr: to, ethertype };
    let mut bytes = vec![0; repr.buffer_len() + payload.len()];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes);
    repr.emit(&mut frame);
    frame.payload_mut().copy_from_slice(payload);
    bytes
}

fn arp(
    operation: ArpOperation,
    sender: Ipv4Addr,
    to: EthernetAddress,
    target: Ipv4Addr,
) -> Vec<u8> {
    let repr = ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr: PEER_MAC,
        source_protocol_addr: sender,
        target_hardware_addr: to,
        target_protocol_addr: target,
    };
    let mut bytes = vec![0; repr.buffer_len()];
    repr.emit(&mut ArpPacket::new_unchecked(&mut bytes));
    frame(to, EthernetProtocol::Arp, &bytes)
}

fn ip(from: Ipv4Addr, to: Ipv4Addr, next_header: IpProtocol, payload: &[u8]) -> Vec<u8> {
    let repr = Ipv4Repr {
        src_addr: from,
        dst_addr: to,
        next_header,
        payload_len: payload.len(),
        hop_limit: 64,
    };
    let mut bytes = vec![0; repr.buffer_len() + payload.len()];
    let mut packet = Ipv4Packet::new_unchecked(&mut bytes);
    repr.emit(&mut packet, &ChecksumCapabilities::default());
    packet.payload_mut().copy_from_slice(payload);
    frame(OUR_MAC, EthernetProtocol::Ipv4, &bytes)
}

fn icmp(from: Ipv4Addr, to: Ipv4Addr, repr: &Icmpv4Repr) -> Vec<u8> {
    let mut bytes = vec![0; repr.buffer_len()];
    repr.emit(&mut Icmpv4Packet::new_unchecked(&mut bytes), &ChecksumCapabilities::default());
    ip(from, to, IpProtocol::Icmp, &bytes)
}

/// The address that an ARP request asks for.
fn asked(bytes: &[u8]) -> Option<Ipv4Addr> {
    let frame = EthernetFrame::new_checked(bytes).ok()?;
    if frame.ethertype() != EthernetProtocol::Arp {
        return None;
    }
    match ArpRepr::parse(&ArpPacket::new_checked(frame.payload()).ok()?).ok()? {
        ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request, target_protocol_addr, ..
        } => Some(target_protocol_addr),
        _ => None,
    }
}

/// The identifier, sequence number and payload of an echo request or reply.
fn echo(bytes: &[u8], reply: bool) -> Option<(u16, u16, Vec<u8>)> {
    let frame = EthernetFrame::new_checked(bytes).ok()?;
    if frame.ethertype() != EthernetProtocol::Ipv4 {
        return None;
    }
    let ip = Ipv4Packet::new_checked(frame.payload()).ok()?;
    assert!(ip.verify_checksum());
    if ip.next_header() != IpProtocol::Icmp {
        return None;
    }
    let packet = Icmpv4Packet::new_checked(ip.payload()).ok()?;
    match Icmpv4Repr::parse(&packet, &ChecksumCapabilities::default()).ok()? {
        Icmpv4Repr::EchoRequest { ident, seq_no, data } if !reply => {
            Some((ident, seq_no, data.to_vec()))
        }
        Icmpv4Repr::EchoReply { ident, seq_no, data } if reply => {
            Some((ident, seq_no, data.to_vec()))
        }
        _ => None,
    }
}

/// A host that answers ARP requests, and calls `answer` for echo requests.
fn host(
    mut answer: impl FnMut(u16, u16, &[u8], &Inbox) + Send + 'static,
) -> impl FnMut(&[u8], &Inbox) + Send + 'static {
    move |bytes, inbox| {
        if asked(bytes) == Some(PEER) {
            inbox.push(arp(ArpOperation::Reply, PEER, OUR_MAC, OURS));
        } else if let Some((ident, sequence, data)) = echo(bytes, false) {
            answer(ident, sequence, &data, inbox);
        }
    }
}

fn reply(ident: u16, seq_no: u16, data: &[u8]) -> Vec<u8> {
    icmp(PEER, OURS, &Icmpv4Repr::EchoReply { ident, seq_no, data })
}

#[test]
fn two_stacks_resolve_and_ping_each_other() {
    let (a, b) = Wire::pair();
    let stop = Arc::new(AtomicBool::new(false));
    let server = {
        let stop = stop.clone();
        std::thread::spawn(move || {
            let mut stack = Stack::new(b).unwrap();
            stack.configure("10.0.0.2/24".parse().unwrap(), None).unwrap();
            let mut check = || match stop.load(Ordering::Relaxed) {
                true => Err(Error::Closed("done".to_owned())),
                false => Ok(()),
            };
            stack.poll(None, &mut check).unwrap_err();
        })
    };
    let mut stack = stack(&a);
    let (mac, took) = stack.arp(PEER, ms(2000), &mut go_on).unwrap();
    assert_eq!(mac, Mac(PEER_MAC.0));
    assert!(took < Duration::from_secs(1));
    for (sequence, length) in [(0, 56), (1, 0), (2, 1), (65_535, 1472), (0, 56)] {
        let took = stack.ping(PEER, sequence, length, ms(2000), &mut go_on).unwrap();
        assert!(took.is_some(), "no reply to {length} bytes");
    }
    stop.store(true, Ordering::Relaxed);
    server.join().unwrap();
}

#[test]
fn arp_only_accepts_the_right_reply() {
    let right = arp(ArpOperation::Reply, PEER, OUR_MAC, OURS);
    let other_host = arp(ArpOperation::Reply, Ipv4Addr::new(10, 0, 0, 3), OUR_MAC, OURS);
    let not_for_us = arp(ArpOperation::Reply, PEER, PEER_MAC, OURS);
    let question = arp(ArpOperation::Request, PEER, EthernetAddress::BROADCAST, PEER);
    let short = right[..30].to_vec();
    for wrong in [other_host, not_for_us, question, short] {
        let wire = Wire::with_peer(move |_, inbox| inbox.push(wrong.clone()));
        let error = stack(&wire).arp(PEER, ms(30), &mut go_on).unwrap_err();
        assert!(matches!(&error, Error::Timeout(text) if text.contains("10.0.0.2 within 0.03 s")));
    }
    let wire = Wire::with_peer(move |_, inbox| inbox.push(right.clone()));
    assert_eq!(stack(&wire).arp(PEER, ms(1000), &mut go_on).unwrap().0, Mac(PEER_MAC.0));
}

#[test]
fn arp_repeats_the_request_every_second() {
    let mut count = 0;
    let wire = Wire::with_peer(move |bytes, inbox| {
        count += usize::from(asked(bytes) == Some(PEER));
        if count == 2 {
            inbox.push(arp(ArpOperation::Reply, PEER, OUR_MAC, OURS));
        }
    });
    let start = Instant::now();
    let (_, took) = stack(&wire).arp(PEER, ms(5000), &mut go_on).unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1));
    assert!(took < Duration::from_millis(500), "{took:?} is not the second request's");
}

#[test]
fn ping_only_accepts_the_right_reply() {
    type Answer = fn(u16, u16, &[u8]) -> Vec<u8>;
    let wrong: [(&str, Answer); 7] = [
        ("another payload", |ident, sequence, data| {
            let mut data = data.to_vec();
            data[20] ^= 1;
            reply(ident, sequence, &data)
        }),
        ("a shorter payload", |ident, sequence, data| reply(ident, sequence, &data[1..])),
        ("another sequence", |ident, sequence, data| reply(ident, sequence + 1, data)),
        ("another identifier", |ident, sequence, data| reply(ident ^ 1, sequence, data)),
        ("a wrong ICMP checksum", |ident, sequence, data| {
            let mut bytes = reply(ident, sequence, data);
            *bytes.last_mut().unwrap() ^= 1;
            bytes
        }),
        ("a wrong IP checksum", |ident, sequence, data| {
            let mut bytes = reply(ident, sequence, data);
            bytes[14 + 8] ^= 1;
            bytes
        }),
        ("another host", |ident, seq_no, data| {
            let repr = Icmpv4Repr::EchoReply { ident, seq_no, data };
            icmp(Ipv4Addr::new(10, 0, 0, 3), OURS, &repr)
        }),
    ];
    for (what, answer) in wrong {
        let seen = Arc::new(AtomicUsize::new(0));
        let count = seen.clone();
        let wire = Wire::with_peer(host(move |ident, sequence, data, inbox| {
            count.fetch_add(1, Ordering::Relaxed);
            inbox.push(answer(ident, sequence, data));
        }));
        let result = stack(&wire).ping(PEER, 7, 56, ms(30), &mut go_on).unwrap();
        assert_eq!(result, None, "{what} was accepted as the reply");
        assert_eq!(seen.load(Ordering::Relaxed), 1);
    }
}

#[test]
fn a_late_reply_does_not_match_the_next_request() {
    // Each request is answered with the reply to the previous one.
    let mut before: Option<Vec<u8>> = None;
    let wire = Wire::with_peer(host(move |ident, sequence, data, inbox| {
        if let Some(late) = before.replace(reply(ident, sequence, data)) {
            inbox.push(late);
        }
    }));
    let mut stack = stack(&wire);
    for _ in 0..3 {
        assert_eq!(stack.ping(PEER, 0, 56, ms(20), &mut go_on).unwrap(), None);
    }
}

#[test]
fn a_neighbour_is_resolved_right_after_another() {
    let wire = Wire::with_peer(host(|ident, sequence, data, inbox| {
        inbox.push(reply(ident, sequence, data));
    }));
    let mut stack = stack(&wire);
    let nobody = Ipv4Addr::new(10, 0, 0, 99);
    assert_eq!(stack.ping(nobody, 0, 56, ms(20), &mut go_on).unwrap(), None);
    assert!(stack.ping(PEER, 0, 56, ms(300), &mut go_on).unwrap().is_some());
}

#[test]
fn bad_addresses_are_rejected_with_a_reason() {
    let wire = Wire::with_peer(|_, _| {});
    let mut bare = Stack::new(wire.clone()).unwrap();
    let text = |error: Error| match error {
        Error::Invalid(text) => text,
        other => panic!("{other:?}"),
    };
    let none = text(bare.ping(PEER, 0, 56, ms(10), &mut go_on).unwrap_err());
    assert!(none.contains("dhcp() or configure()"), "{none}");
    let mut stack = stack(&wire);
    let tries = [
        (Ipv4Addr::new(192, 168, 0, 1), "no gateway"),
        (OURS, "own address"),
        (Ipv4Addr::BROADCAST, "one host"),
        (Ipv4Addr::new(10, 0, 0, 255), "one host"),
        (Ipv4Addr::UNSPECIFIED, "one host"),
        (Ipv4Addr::new(224, 0, 0, 1), "one host"),
    ];
    for (target, why) in tries {
        let said = text(stack.ping(target, 0, 56, ms(10), &mut go_on).unwrap_err());
        assert!(said.contains(why), "{said}");
        assert!(matches!(stack.arp(target, ms(10), &mut go_on), Err(Error::Invalid(_))));
    }
    let said = text(stack.ping(PEER, 0, 1473, ms(10), &mut go_on).unwrap_err());
    assert!(said.contains("at most 1472"), "{said}");
    for bad in ["10.0.0.1", "10.0.0.1/33", "10.0.0.1/x", "10.0.0/24", "", "::1/64", "10.0.0.0/24"] {
        assert!(matches!(bad.parse::<Cidr>(), Err(Error::Invalid(_))), "{bad} was taken");
    }
    for gateway in [OURS, Ipv4Addr::new(10, 0, 1, 1), Ipv4Addr::new(10, 0, 0, 255)] {
        let cidr = "10.0.0.1/24".parse().unwrap();
        assert!(matches!(stack.configure(cidr, Some(gateway)), Err(Error::Invalid(_))));
    }
    assert_eq!(stack.settings().address().unwrap().to_string(), "10.0.0.1/24");
    assert!(parse_ipv4("fe80::1").unwrap_err().to_string().contains("IPv6"));
    let mut zero = Wire::new(0);
    zero.mac = Mac([0; 6]);
    assert!(matches!(Stack::new(Arc::new(zero)), Err(Error::Invalid(_))));
}

#[test]
fn other_networks_are_reached_through_the_gateway() {
    let far = Ipv4Addr::new(192, 0, 2, 1);
    let wire = Wire::with_peer(host(move |ident, seq_no, data, inbox| {
        inbox.push(icmp(far, OURS, &Icmpv4Repr::EchoReply { ident, seq_no, data }));
    }));
    let mut stack = stack(&wire);
    stack.configure("10.0.0.1/24".parse().unwrap(), Some(PEER)).unwrap();
    assert!(stack.ping(far, 0, 56, ms(1000), &mut go_on).unwrap().is_some());
}

#[test]
fn every_echo_request_is_answered_with_few_doorbells() {
    for (room, count) in [(usize::MAX, 1000), (3, 1000)] {
        let replies = Arc::new(Mutex::new(Vec::new()));
        let seen = replies.clone();
        let mut wire = Wire::new(1);
        wire.room = room;
        *wire.peer.lock().unwrap() = Box::new(move |bytes| {
            seen.lock().unwrap().extend(echo(bytes, true));
        });
        let wire = Arc::new(wire);
        let mut stack = stack(&wire);
        wire.inbox.push(arp(ArpOperation::Request, PEER, EthernetAddress::BROADCAST, OURS));
        for seq_no in 0..count {
            let data = [seq_no as u8; 56];
            let request = Icmpv4Repr::EchoRequest { ident: 9, seq_no, data: &data };
            wire.inbox.push(icmp(PEER, OURS, &request));
        }
        let handled = stack.poll(ms(200), &mut go_on).unwrap();
        assert_eq!(handled, u64::from(count) + 1);
        let replies = replies.lock().unwrap();
        let expected: Vec<_> = (0..count).map(|n| (9, n, vec![n as u8; 56])).collect();
        assert_eq!(*replies, expected, "with room for {room} frames");
        let doorbells = wire.doorbells.load(Ordering::Relaxed);
        assert!(room < 64 || doorbells <= 20, "{doorbells} doorbells");
    }
}

#[test]
fn poll_with_timeout_0_handles_one_burst() {
    let wire = Wire::with_peer(|_, _| {});
    let mut stack = stack(&wire);
    assert_eq!(stack.poll(ms(0), &mut go_on).unwrap(), 0);
    wire.inbox.push(arp(ArpOperation::Request, PEER, EthernetAddress::BROADCAST, OURS));
    assert_eq!(stack.poll(ms(0), &mut go_on).unwrap(), 1);
}

#[test]
fn an_error_of_check_ends_any_wait_soon() {
    let wire = Wire::with_peer(|_, _| {});
    let mut stack = stack(&wire);
    let start = Instant::now();
    let mut stop = || Err(Error::Closed("stop".to_owned()));
    assert!(matches!(stack.poll(None, &mut stop), Err(Error::Closed(_))));
    assert!(matches!(stack.arp(PEER, None, &mut stop), Err(Error::Closed(_))));
    assert!(matches!(stack.ping(PEER, 0, 56, None, &mut stop), Err(Error::Closed(_))));
    assert!(matches!(stack.dhcp(None, &mut stop), Err(Error::Closed(_))));
    assert!(start.elapsed() < Duration::from_secs(1));
}

#[test]
fn the_links_error_ends_the_call() {
    let wire = Wire::with_peer(|_, _| {});
    let mut stack = stack(&wire);
    let dying = wire.clone();
    let killer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(30));
        *dying.failure.lock().unwrap() = Some(Error::QemuDied("killed".to_owned()));
    });
    let error = stack.dhcp(ms(5000), &mut go_on).unwrap_err();
    assert!(matches!(error, Error::QemuDied(_)), "{error:?}");
    killer.join().unwrap();
}

/// The answers of a DHCP server.
#[derive(Clone, Copy)]
struct Offer {
    from: Ipv4Addr,
    address: Ipv4Addr,
    mask: Ipv4Addr,
    router: Option<Ipv4Addr>,
    seconds: u32,
    silent_after_offer: bool,
}

const OFFER: Offer = Offer {
    from: PEER,
    address: Ipv4Addr::new(10, 0, 0, 15),
    mask: Ipv4Addr::new(255, 255, 255, 0),
    router: Some(PEER),
    seconds: 86_400,
    silent_after_offer: false,
};

fn server(offer: Offer) -> impl FnMut(&[u8], &Inbox) + Send + 'static {
    let mut alive = true;
    move |bytes, inbox| {
        let Some(answer) = serve(bytes, offer).filter(|_| alive) else { return };
        alive = !offer.silent_after_offer;
        inbox.push(answer);
    }
}

fn serve(bytes: &[u8], offer: Offer) -> Option<Vec<u8>> {
    let frame = EthernetFrame::new_checked(bytes).ok()?;
    let ip_packet = Ipv4Packet::new_checked(frame.payload()).ok()?;
    let udp = UdpPacket::new_checked(ip_packet.payload()).ok()?;
    let packet = DhcpPacket::new_checked(udp.payload()).ok()?;
    let asked = DhcpRepr::parse(&packet).ok()?;
    let message_type = match asked.message_type {
        DhcpMessageType::Discover => DhcpMessageType::Offer,
        _ => DhcpMessageType::Ack,
    };
    let answer = DhcpRepr {
        message_type,
        your_ip: offer.address,
        client_ip: Ipv4Addr::UNSPECIFIED,
        server_ip: PEER,
        server_identifier: Some(PEER),
        subnet_mask: Some(offer.mask),
        router: offer.router,
        lease_duration: Some(offer.seconds),
        dns_servers: Some([Ipv4Addr::new(10, 0, 0, 3)].into_iter().collect()),
        requested_ip: None,
        client_identifier: None,
        parameter_request_list: None,
        max_size: None,
        ..asked
    };
    let udp = UdpRepr { src_port: 67, dst_port: 68 };
    let mut bytes = vec![0; udp.header_len() + answer.buffer_len()];
    udp.emit(
        &mut UdpPacket::new_unchecked(&mut bytes),
        &offer.from.into(),
        &Ipv4Addr::BROADCAST.into(),
        answer.buffer_len(),
        |payload| answer.emit(&mut DhcpPacket::new_unchecked(payload)).unwrap(),
        &ChecksumCapabilities::default(),
    );
    Some(ip(offer.from, Ipv4Addr::BROADCAST, IpProtocol::Udp, &bytes))
}

#[test]
fn dhcp_gets_a_lease_and_configures_the_stack() {
    let wire = Wire::with_peer(server(OFFER));
    let mut stack = Stack::new(wire).unwrap();
    let lease = stack.dhcp(ms(2000), &mut go_on).unwrap();
    let address = Cidr { address: OFFER.address, prefix: 24 };
    assert!(lease.elapsed < Duration::from_secs(1));
    let expected = Lease {
        address,
        gateway: Some(PEER),
        server: PEER,
        dns: vec![Ipv4Addr::new(10, 0, 0, 3)],
        duration: Duration::from_secs(86_400),
        elapsed: lease.elapsed,
    };
    assert_eq!(lease, expected);
    assert_eq!(stack.settings().address(), Some(address));
    assert_eq!(stack.settings().gateway(), Some(PEER));
    // A second lease replaces the first, then a fixed address replaces it.
    assert_eq!(stack.dhcp(ms(2000), &mut go_on).unwrap().address, address);
    stack.configure("10.0.0.1/24".parse().unwrap(), None).unwrap();
    stack.poll(ms(10), &mut go_on).unwrap();
    assert_eq!(stack.settings().address().unwrap().address, OURS);
}

#[test]
fn dhcp_reports_what_is_missing() {
    let text = |peer: Offer| {
        let wire = Wire::with_peer(server(peer));
        match Stack::new(wire).unwrap().dhcp(ms(30), &mut go_on) {
            Err(Error::Timeout(text)) => text,
            other => panic!("{other:?}"),
        }
    };
    let wire = Wire::with_peer(|_, _| {});
    let nobody = Stack::new(wire).unwrap().dhcp(ms(30), &mut go_on).unwrap_err().to_string();
    assert!(nobody.starts_with("no DHCP offer within 0.03 s; is there"), "{nobody}");
    let half = text(Offer { silent_after_offer: true, ..OFFER });
    assert!(half.contains("10.0.0.2 made an offer but"), "{half}");
    // The stack rejects impossible addresses.
    for hostile in [
        Offer { from: Ipv4Addr::UNSPECIFIED, ..OFFER },
        Offer { address: Ipv4Addr::new(127, 0, 0, 1), ..OFFER },
        Offer { address: Ipv4Addr::new(10, 0, 0, 255), ..OFFER },
    ] {
        let said = text(hostile);
        assert!(said.starts_with("no usable DHCP lease"), "{said}");
    }
}

#[test]
fn an_invalid_gateway_is_ignored() {
    for router in [Ipv4Addr::BROADCAST, Ipv4Addr::new(224, 0, 0, 1), OFFER.address] {
        let wire = Wire::with_peer(server(Offer { router: Some(router), ..OFFER }));
        let mut stack = Stack::new(wire).unwrap();
        assert_eq!(stack.dhcp(ms(2000), &mut go_on).unwrap().gateway, None);
        let error = stack.ping(Ipv4Addr::new(192, 0, 2, 1), 0, 56, ms(10), &mut go_on);
        assert!(matches!(error, Err(Error::Invalid(_))));
    }
}

#[test]
fn the_address_ends_with_its_lease() {
    let alive = Arc::new(AtomicBool::new(true));
    let on = alive.clone();
    let mut give = server(Offer { seconds: 1, ..OFFER });
    let wire = Wire::with_peer(move |bytes, inbox| {
        if on.load(Ordering::Relaxed) {
            give(bytes, inbox);
        }
    });
    let mut stack = Stack::new(wire).unwrap();
    assert_eq!(stack.dhcp(ms(2000), &mut go_on).unwrap().duration, Duration::from_secs(1));
    alive.store(false, Ordering::Relaxed);
    // smoltcp may be up to a second late while it looks for the server.
    stack.poll(ms(2500), &mut go_on).unwrap();
    assert_eq!(stack.settings().address(), None);
    assert_eq!(stack.settings().gateway(), None);
}

#[test]
fn a_lease_is_renewed_during_calls() {
    let asked_again = Arc::new(AtomicUsize::new(0));
    let count = asked_again.clone();
    let (mut give, mut resolve) = (server(Offer { seconds: 2, ..OFFER }), host(|_, _, _, _| {}));
    let wire = Wire::with_peer(move |bytes, inbox| {
        resolve(bytes, inbox);
        count.fetch_add(usize::from(serve(bytes, OFFER).is_some()), Ordering::Relaxed);
        give(bytes, inbox);
    });
    let mut stack = Stack::new(wire).unwrap();
    stack.dhcp(ms(2000), &mut go_on).unwrap();
    assert_eq!(asked_again.load(Ordering::Relaxed), 2, "a discovery and a request");
    for _ in 0..28 {
        stack.poll(ms(100), &mut go_on).unwrap();
        assert!(stack.settings().address().is_some(), "the lease of 2 s was lost");
    }
    assert!(asked_again.load(Ordering::Relaxed) >= 3, "it was not renewed");
}

mod garbage {
    use super::*;
    use proptest::prelude::*;

    /// Answers to a frame, of each kind that the stack parses.
    fn answers(bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut answers = vec![
            arp(ArpOperation::Reply, PEER, OUR_MAC, OURS),
            arp(ArpOperation::Request, PEER, EthernetAddress::BROADCAST, OURS),
            icmp(PEER, OURS, &Icmpv4Repr::EchoRequest { ident: 1, seq_no: 2, data: &[7; 40] }),
        ];
        answers.extend(echo(bytes, false).map(|(ident, seq, data)| reply(ident, seq, &data)));
        answers.extend(serve(bytes, OFFER));
        answers
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// Corrupt frames during ARP, ping and DHCP have no effect.
        #[test]
        fn no_frame_breaks_the_stack(
            changes in prop::collection::vec((0usize..400, any::<u8>()), 0..12),
            cut in prop::option::of(0usize..400),
            noise in prop::collection::vec(any::<u8>(), 0..80),
        ) {
            let wire = Wire::with_peer(move |bytes, inbox| {
                for mut answer in answers(bytes) {
                    // The valid answer first, to reach every state.
                    if cut.is_some_and(|cut| cut % 2 == 0) {
                        inbox.push(answer.clone());
                    }
                    answer.truncate(cut.unwrap_or(usize::MAX));
                    for &(at, value) in &changes {
                        if let Some(byte) = answer.get_mut(at) {
                            *byte = value;
                        }
                    }
                    inbox.push(answer);
                }
                inbox.push(noise.clone());
            });
            let mut stack = stack(&wire);
            let _ = stack.arp(PEER, ms(1), &mut go_on);
            let _ = stack.ping(PEER, 0, 56, ms(1), &mut go_on);
            let _ = stack.dhcp(ms(1), &mut go_on);
            prop_assert!(stack.poll(ms(0), &mut go_on).is_ok());
        }
    }
}
