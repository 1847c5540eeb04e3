//! DHCP.

use super::peer::*;
use crate::Error;
use crate::stack::{Cidr, Host, Lease};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    DhcpMessageType, DhcpPacket, DhcpRepr, EthernetFrame, IpProtocol, Ipv4Packet, UdpPacket,
    UdpRepr,
};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// The answers of a DHCP server.
#[derive(Clone, Copy)]
pub(super) struct Offer {
    pub(super) from: Ipv4Addr,
    pub(super) address: Ipv4Addr,
    pub(super) mask: Ipv4Addr,
    pub(super) router: Option<Ipv4Addr>,
    seconds: u32,
    silent_after_offer: bool,
}

pub(super) const OFFER: Offer = Offer {
    from: PEER,
    address: Ipv4Addr::new(10, 0, 0, 15),
    mask: Ipv4Addr::new(255, 255, 255, 0),
    router: Some(PEER),
    seconds: 86_400,
    silent_after_offer: false,
};

pub(super) fn server(offer: Offer) -> impl FnMut(&[u8], &Inbox) + Send + 'static {
    let mut alive = true;
    move |bytes, inbox| {
        let Some(answer) = serve(bytes, offer).filter(|_| alive) else { return };
        alive = !offer.silent_after_offer;
        inbox.push(answer);
    }
}

pub(super) fn serve(bytes: &[u8], offer: Offer) -> Option<Vec<u8>> {
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

/// The IPv4 address and the gateway.
fn settings(stack: &Host) -> (Option<String>, Option<IpAddr>) {
    let address = stack.networks().unwrap().first().map(ToString::to_string);
    (address, stack.gateways().unwrap().first().copied())
}

/// Waits until the stack has an address, or has none.
fn eventually(stack: &Host, address: bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(20);
    while settings(stack).0.is_some() != address {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

#[test]
fn dhcp_gets_a_lease_and_configures_the_stack() {
    let wire = Line::with_peer(server(OFFER));
    let stack = bare(&wire);
    let lease = stack.dhcp(ms(5000), &mut go_on).unwrap();
    let address = Cidr { address: OFFER.address, prefix: 24 };
    let expected = Lease {
        address,
        gateway: Some(PEER),
        server: PEER,
        dns: vec![Ipv4Addr::new(10, 0, 0, 3)],
        duration: Duration::from_secs(86_400),
        elapsed: lease.elapsed,
    };
    assert_eq!(lease, expected);
    assert_eq!(settings(&stack), (Some("10.0.0.15/24".to_owned()), Some(PEER.into())));
    assert_eq!(stack.name_servers().unwrap(), [Ipv4Addr::new(10, 0, 0, 3)]);
    // A second lease replaces the first.
    assert_eq!(stack.dhcp(ms(5000), &mut go_on).unwrap().address, address);
    assert_eq!(stack.networks().unwrap().len(), 1);
}

#[test]
fn addresses_of_ones_own_stay_beside_the_lease() {
    let stack = stack(&Line::with_peer(server(OFFER)));
    let other: IpAddr = "10.0.0.9".parse().unwrap();
    stack.dhcp(ms(5000), &mut go_on).unwrap();
    let all = || -> Vec<_> { stack.networks().unwrap().iter().map(ToString::to_string).collect() };
    assert_eq!(all(), ["10.0.0.1/24", "10.0.0.15/24"]);
    assert_eq!(stack.gateways().unwrap(), [IpAddr::from(PEER)]);
    // A gateway that was configured is kept, and the lease goes on.
    stack.configure("10.0.0.77/24".parse().unwrap(), Some(other)).unwrap();
    assert_eq!(stack.name_servers().unwrap().len(), 1);
    stack.dhcp(ms(5000), &mut go_on).unwrap();
    assert_eq!(stack.gateways().unwrap(), [other]);
    // Without its address there is no lease.
    stack.remove_address(OFFER.address.into()).unwrap();
    assert_eq!(all(), ["10.0.0.1/24", "10.0.0.77/24"]);
    assert!(stack.name_servers().unwrap().is_empty());
}

#[test]
fn dhcp_reports_what_is_missing() {
    let text = |peer: Offer| {
        let wire = Line::with_peer(server(peer));
        match bare(&wire).dhcp(ms(30), &mut go_on) {
            Err(Error::Timeout(text)) => text,
            other => panic!("{other:?}"),
        }
    };
    let wire = Line::with_peer(|_, _| {});
    let nobody = bare(&wire).dhcp(ms(30), &mut go_on).unwrap_err().to_string();
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
        let wire = Line::with_peer(server(Offer { router: Some(router), ..OFFER }));
        let stack = bare(&wire);
        assert_eq!(stack.dhcp(ms(2000), &mut go_on).unwrap().gateway, None);
        assert!(stack.gateways().unwrap().is_empty());
        let far = IpAddr::from([192, 0, 2, 1]);
        assert!(stack.ping(far, 0, 56, ms(10), &mut go_on).is_err());
    }
}

#[test]
fn the_address_ends_with_its_lease() {
    let alive = Arc::new(AtomicBool::new(true));
    let on = alive.clone();
    let mut give = server(Offer { seconds: 1, ..OFFER });
    let wire = Line::with_peer(move |bytes, inbox| {
        if on.load(Ordering::Relaxed) {
            give(bytes, inbox);
        }
    });
    let stack = bare(&wire);
    assert_eq!(stack.dhcp(ms(2000), &mut go_on).unwrap().duration, Duration::from_secs(1));
    alive.store(false, Ordering::Relaxed);
    assert!(eventually(&stack, false), "{:?}", stack.networks());
    assert_eq!(settings(&stack), (None, None));
    // Whoever comes back is asked for another.
    alive.store(true, Ordering::Relaxed);
    assert!(eventually(&stack, true));
}

#[test]
fn a_lease_is_renewed() {
    let asked_again = Arc::new(AtomicUsize::new(0));
    let count = asked_again.clone();
    let (mut give, mut resolve) = (server(Offer { seconds: 2, ..OFFER }), host(|_, _, _, _| {}));
    let wire = Line::with_peer(move |bytes, inbox| {
        resolve(bytes, inbox);
        count.fetch_add(usize::from(serve(bytes, OFFER).is_some()), Ordering::Relaxed);
        give(bytes, inbox);
    });
    let stack = bare(&wire);
    stack.dhcp(ms(2000), &mut go_on).unwrap();
    assert_eq!(asked_again.load(Ordering::Relaxed), 2, "a discovery and a request");
    let deadline = Instant::now() + Duration::from_secs(20);
    while asked_again.load(Ordering::Relaxed) < 5 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(asked_again.load(Ordering::Relaxed) >= 5, "it was not renewed");
    assert!(settings(&stack).0.is_some(), "the lease was lost");
}
