//! ARP and ping.

use super::peer::*;
use crate::net::Mac;
use crate::stack::{Cidr, Transport, parse_ipv4};
use crate::{Error, Result};
use smoltcp::wire::{ArpOperation, EthernetAddress, Icmpv4Repr};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

#[test]
fn two_stacks_resolve_and_ping_each_other() {
    let (a, b) = Line::pair();
    let other = bare(&b);
    other.configure("10.0.0.2/24".parse().unwrap(), None).unwrap();
    let stack = stack(&a);
    let (mac, took) = stack.arp(PEER, ms(2000), &mut go_on).unwrap();
    assert_eq!(mac, Mac(PEER_MAC.0));
    assert!(took < Duration::from_secs(1));
    // The longest are fragmented.
    for (sequence, length) in [(0, 56), (1, 0), (2, 1), (65_535, 1472), (3, 1473), (0, 20_000)] {
        let took = stack.ping(PEER.into(), sequence, length, ms(2000), &mut go_on).unwrap();
        assert!(took.is_some(), "no reply to {length} bytes");
    }
}

#[test]
fn arp_only_accepts_the_right_reply() {
    let right = arp(ArpOperation::Reply, PEER, OUR_MAC, OURS);
    let other_host = arp(ArpOperation::Reply, Ipv4Addr::new(10, 0, 0, 3), OUR_MAC, OURS);
    let not_for_us = arp(ArpOperation::Reply, PEER, PEER_MAC, OURS);
    let question = arp(ArpOperation::Request, PEER, EthernetAddress::BROADCAST, PEER);
    let short = right[..30].to_vec();
    for wrong in [other_host, not_for_us, question, short] {
        let wire = Line::with_peer(move |_, inbox| inbox.push(wrong.clone()));
        let error = stack(&wire).arp(PEER, ms(30), &mut go_on).unwrap_err();
        assert!(matches!(&error, Error::Timeout(text) if text.contains("10.0.0.2 within 0.03 s")));
    }
    let wire = Line::with_peer(move |_, inbox| inbox.push(right.clone()));
    assert_eq!(stack(&wire).arp(PEER, ms(1000), &mut go_on).unwrap().0, Mac(PEER_MAC.0));
}

#[test]
fn arp_repeats_the_request_every_second() {
    let mut count = 0;
    let wire = Line::with_peer(move |bytes, inbox| {
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
        let wire = Line::with_peer(host(move |ident, sequence, data, inbox| {
            count.fetch_add(1, Ordering::Relaxed);
            inbox.push(answer(ident, sequence, data));
        }));
        let result = stack(&wire).ping(PEER.into(), 7, 56, ms(30), &mut go_on).unwrap();
        assert_eq!(result, None, "{what} was accepted as the reply");
        assert_eq!(seen.load(Ordering::Relaxed), 1);
    }
}

#[test]
fn a_late_reply_does_not_match_the_next_request() {
    // Each request is answered with the reply to the previous one.
    let mut before: Option<Vec<u8>> = None;
    let wire = Line::with_peer(host(move |ident, sequence, data, inbox| {
        if let Some(late) = before.replace(reply(ident, sequence, data)) {
            inbox.push(late);
        }
    }));
    let stack = stack(&wire);
    for _ in 0..3 {
        assert_eq!(stack.ping(PEER.into(), 0, 56, ms(20), &mut go_on).unwrap(), None);
    }
}

/// A peer that replies to ARP and echo requests.
fn answering() -> Arc<Line> {
    Line::with_peer(host(|ident, sequence, data, inbox| inbox.push(reply(ident, sequence, data))))
}

#[test]
fn a_neighbour_is_pinged_right_after_another() {
    let stack = stack(&answering());
    let nobody = Ipv4Addr::new(10, 0, 0, 99);
    assert_eq!(stack.ping(nobody.into(), 0, 56, ms(20), &mut go_on).unwrap(), None);
    assert!(stack.ping(PEER.into(), 0, 56, ms(20_000), &mut go_on).unwrap().is_some());
}

#[test]
fn bad_addresses_are_rejected_with_a_reason() {
    let wire = Line::with_peer(|_, _| {});
    let empty = bare(&wire);
    let text = |error: Error| error.to_string();
    let none = text(empty.ping(PEER.into(), 0, 56, ms(10), &mut go_on).unwrap_err());
    assert!(none.contains("dhcp=True, address= or configure()"), "{none}");
    let none = text(empty.arp(PEER, ms(10), &mut go_on).unwrap_err());
    assert!(none.contains("dhcp=True, address= or configure()"), "{none}");
    let stack = stack(&wire);
    let tries = [
        (Ipv4Addr::new(192, 168, 0, 1), "no gateway"),
        (OURS, "own address"),
        (Ipv4Addr::BROADCAST, "one host"),
        (Ipv4Addr::new(10, 0, 0, 255), "one host"),
        (Ipv4Addr::UNSPECIFIED, "one host"),
        (Ipv4Addr::new(224, 0, 0, 1), "one host"),
    ];
    for (target, why) in tries {
        let said = text(stack.ping(target.into(), 0, 56, ms(10), &mut go_on).unwrap_err());
        assert!(said.contains(why), "{said}");
        assert!(matches!(stack.arp(target, ms(10), &mut go_on), Err(Error::Invalid(_))));
    }
    let said = text(stack.ping(PEER.into(), 0, 65_508, ms(10), &mut go_on).unwrap_err());
    assert!(said.contains("at most 65507"), "{said}");
    for bad in ["10.0.0.1", "10.0.0.1/33", "10.0.0.1/x", "10.0.0/24", "", "::1/64", "10.0.0.0/24"] {
        assert!(matches!(bad.parse::<Cidr>(), Err(Error::Invalid(_))), "{bad} was taken");
    }
    assert!(parse_ipv4("fe80::1").unwrap_err().to_string().contains("IPv6"));
    let mut zero = Line::new(0);
    zero.mac = Mac([0; 6]);
    let refused = crate::stack::Host::new(Box::new(Arc::new(zero)), Default::default());
    assert!(matches!(refused, Err(Error::Invalid(_))));
}

#[test]
fn a_refused_gateway_changes_nothing() {
    let stack = stack(&Line::with_peer(|_, _| {}));
    let refused = [
        ("10.0.1.9/24", "10.0.1.9", "own address"),
        ("10.0.1.9/24", "10.0.0.1", "own address"),
        ("10.0.1.9/24", "10.0.2.1", "none of the stack's networks"),
        ("10.0.1.9/24", "10.0.1.255", "not the address of a host"),
        ("10.0.1.9/24", "10.0.1.0", "not the address of a host"),
        ("fd00::5/64", "fd01::1", "none of the stack's networks"),
    ];
    for (address, gateway, why) in refused {
        let gateway: IpAddr = gateway.parse().unwrap();
        let said = stack.configure(address.parse().unwrap(), Some(gateway)).unwrap_err();
        assert!(matches!(&said, Error::Invalid(text) if text.contains(why)), "{said}");
    }
    let all: Vec<_> = stack.networks().unwrap().iter().map(ToString::to_string).collect();
    assert_eq!((all, stack.gateways().unwrap()), (vec!["10.0.0.1/24".to_owned()], vec![]));
}

#[test]
fn addresses_are_added_and_removed() {
    let stack = stack(&Line::with_peer(|_, _| {}));
    let shown = || {
        let all: Vec<_> = stack.networks().unwrap().iter().map(ToString::to_string).collect();
        (all.join(" "), stack.gateways().unwrap())
    };
    let gateway: IpAddr = "10.0.9.1".parse().unwrap();
    stack.configure("10.0.9.5/24".parse().unwrap(), Some(gateway)).unwrap();
    stack.configure("10.0.9.6/24".parse().unwrap(), None).unwrap();
    assert_eq!(shown(), ("10.0.0.1/24 10.0.9.5/24 10.0.9.6/24".to_owned(), vec![gateway]));
    stack.remove_address("10.0.9.5".parse().unwrap()).unwrap();
    assert_eq!(shown(), ("10.0.0.1/24 10.0.9.6/24".to_owned(), vec![gateway]));
    // The last network of the gateway.
    stack.remove_address("10.0.9.6".parse().unwrap()).unwrap();
    assert_eq!(shown(), ("10.0.0.1/24".to_owned(), vec![]));
    let said = stack.remove_address("10.0.9.6".parse().unwrap()).unwrap_err();
    assert!(matches!(&said, Error::Invalid(text) if text.contains("are: 10.0.0.1/24")), "{said}");
}

#[test]
fn other_networks_are_reached_through_the_gateway() {
    let far = Ipv4Addr::new(192, 0, 2, 1);
    let wire = Line::with_peer(host(move |ident, seq_no, data, inbox| {
        inbox.push(icmp(far, OURS, &Icmpv4Repr::EchoReply { ident, seq_no, data }));
    }));
    let stack = bare(&wire);
    stack.configure("10.0.0.1/24".parse().unwrap(), Some(PEER.into())).unwrap();
    assert!(stack.ping(far.into(), 0, 56, ms(2000), &mut go_on).unwrap().is_some());
}

#[test]
fn every_echo_request_is_answered_in_order() {
    for (room, count) in [(usize::MAX, 1000), (3, 1000)] {
        let replies = Arc::new(Mutex::new(Vec::new()));
        let seen = replies.clone();
        let mut wire = Line::new(1);
        wire.room = room;
        *wire.peer.lock().unwrap() = Box::new(move |bytes| {
            seen.lock().unwrap().extend(echo(bytes, true));
        });
        let wire = Arc::new(wire);
        wire.inbox.push(arp(ArpOperation::Request, PEER, EthernetAddress::BROADCAST, OURS));
        let stack = stack(&wire);
        for seq_no in 0..count {
            let data = [seq_no as u8; 56];
            let request = Icmpv4Repr::EchoRequest { ident: 9, seq_no, data: &data };
            wire.inbox.push(icmp(PEER, OURS, &request));
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        while replies.lock().unwrap().len() < usize::from(count) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        let replies = replies.lock().unwrap();
        let expected: Vec<_> = (0..count).map(|n| (9, n, vec![n as u8; 56])).collect();
        assert_eq!(*replies, expected, "with room for {room} frames");
        assert_eq!(stack.counters().unwrap().rx_frames, u64::from(count) + 1);
    }
}

#[test]
fn an_error_of_check_ends_any_wait_soon() {
    let stack = stack(&Line::with_peer(|_, _| {}));
    let start = Instant::now();
    let mut stop = || -> Result<()> { Err(Error::Closed("stop".to_owned())) };
    assert!(matches!(stack.arp(PEER, None, &mut stop), Err(Error::Closed(_))));
    assert!(matches!(stack.ping(PEER.into(), 0, 56, None, &mut stop), Err(Error::Closed(_))));
    assert!(matches!(stack.dhcp(None, &mut stop), Err(Error::Closed(_))));
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn the_wires_error_ends_all_calls() {
    let wire = Line::with_peer(|_, _| {});
    let stack = stack(&wire);
    let dying = wire.clone();
    let killer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(30));
        dying.fail(Error::QemuDied("killed".to_owned()));
    });
    let down = |error: Error| match error {
        Error::Down(cause) => assert!(matches!(*cause, Error::QemuDied(_)), "{cause:?}"),
        other => panic!("{other:?}"),
    };
    down(stack.dhcp(ms(20_000), &mut go_on).unwrap_err());
    down(stack.arp(PEER, None, &mut go_on).unwrap_err());
    down(stack.ping(PEER.into(), 0, 56, None, &mut go_on).unwrap_err());
    down(stack.configure("10.0.0.9/24".parse().unwrap(), None).unwrap_err());
    down(stack.socket(Transport::Stream, false).unwrap_err());
    killer.join().unwrap();
}
