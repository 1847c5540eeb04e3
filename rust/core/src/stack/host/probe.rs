//! ARP and echo requests whose replies smoltcp does not return.

use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::icmp;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Condvar;
use std::time::Instant;

/// A pending ARP request.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) number: u64,
    pub(super) target: Ipv4Addr,
    pub(super) found: Option<(EthernetAddress, Instant)>,
}

/// A pending echo request.
#[derive(Debug)]
pub(super) struct Echo {
    pub(super) number: u64,
    pub(super) handle: SocketHandle,
    pub(super) target: IpAddr,
    /// The ICMP message that was sent.
    pub(super) request: Vec<u8>,
    pub(super) departed: Option<Instant>,
    pub(super) replied: Option<Instant>,
}

#[derive(Debug, Default)]
pub(super) struct Probes {
    next: u64,
    pub(super) requests: Vec<Request>,
    pub(super) echoes: Vec<Echo>,
}

impl Probes {
    /// A unique number.
    pub(super) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
    /// Matches a received ARP frame with the pending requests.
    pub(super) fn arp_arrived(&mut self, frame: &[u8], arrived: Instant, news: &Condvar) {
        if self.requests.is_empty() {
            return;
        }
        let Some((target, mac)) = arp_reply(frame) else { return };
        for request in &mut self.requests {
            if request.target == target && request.found.is_none() {
                request.found = Some((mac, arrived));
                news.notify_all();
            }
        }
    }
    /// Records which echo requests were sent and answered. Returns whether one was answered.
    pub(super) fn arrived(&mut self, sockets: &mut SocketSet<'static>) -> bool {
        let mut news = false;
        for echo in &mut self.echoes {
            let socket = sockets.get_mut::<icmp::Socket<'_>>(echo.handle);
            if echo.departed.is_none() && socket.send_queue() == 0 {
                echo.departed = Some(Instant::now());
            }
            while let Ok((packet, from)) = socket.recv() {
                // Type 0 over IPv4, 129 over IPv6. After the checksum, the reply equals the request.
                let reply = matches!(packet.first(), Some(0 | 129));
                let same = packet.get(4..) == echo.request.get(4..);
                if IpAddr::from(from) == echo.target && reply && same && echo.replied.is_none() {
                    echo.replied = Some(Instant::now());
                    news = true;
                }
            }
        }
        news
    }
}

/// The sender's addresses in an ARP reply.
fn arp_reply(frame: &[u8]) -> Option<(Ipv4Addr, EthernetAddress)> {
    let frame = EthernetFrame::new_checked(frame).ok()?;
    if frame.ethertype() != EthernetProtocol::Arp {
        return None;
    }
    let packet = ArpPacket::new_checked(frame.payload()).ok()?;
    match ArpRepr::parse(&packet).ok()? {
        ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Reply,
            source_hardware_addr,
            source_protocol_addr,
            target_hardware_addr,
            ..
        } if target_hardware_addr == frame.dst_addr() && source_hardware_addr.is_unicast() => {
            Some((source_protocol_addr, source_hardware_addr))
        }
        _ => None,
    }
}

/// An ARP request for `target`.
pub(super) fn arp_request(mac: EthernetAddress, own: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let request = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: mac,
        source_protocol_addr: own,
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: target,
    };
    let mut bytes = vec![0; EthernetFrame::<&[u8]>::buffer_len(request.buffer_len())];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes);
    frame.set_src_addr(mac);
    frame.set_dst_addr(EthernetAddress::BROADCAST);
    frame.set_ethertype(EthernetProtocol::Arp);
    request.emit(&mut ArpPacket::new_unchecked(frame.payload_mut()));
    bytes
}
