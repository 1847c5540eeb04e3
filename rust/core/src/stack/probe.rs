//! ARP and echo requests whose replies smoltcp does not return.

use super::{arp, random};
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::icmp;
use smoltcp::wire::EthernetAddress;
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

#[derive(Debug)]
pub(super) struct Probes {
    next: u64,
    pub(super) requests: Vec<Request>,
    pub(super) echoes: Vec<Echo>,
}

impl Probes {
    pub(super) fn new() -> Self {
        // Late replies to an earlier program's requests do not match.
        Self { next: random(), requests: Vec::new(), echoes: Vec::new() }
    }
    /// A unique number.
    pub(super) fn number(&mut self) -> u64 {
        self.next = self.next.wrapping_add(1);
        self.next
    }
    /// Matches a received ARP frame with the pending requests.
    pub(super) fn arp_arrived(
        &mut self,
        frame: &[u8],
        own: EthernetAddress,
        arrived: Instant,
        news: &Condvar,
    ) {
        if self.requests.is_empty() {
            return;
        }
        let Some((target, mac)) = arp::parse_reply(frame, own) else { return };
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
