//! The search for the MAC addresses of next hops, by ARP and neighbour discovery (RFC 4861).
//!
//! smoltcp sends at most one request a second, whatever the addresses, and a socket that waits for a
//! reply is polled after a second. So requests that smoltcp does not send are sent here, and the
//! waiting sockets are polled as soon as the reply is there.

use super::entry::Id;
use super::state::State;
use super::{arp, demux};
use crate::net::Mac;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, Icmpv6Packet, Icmpv6Repr, IpProtocol,
    Ipv6Packet, Ipv6Repr, NdiscRepr,
};
use std::net::{IpAddr, Ipv6Addr};

impl State {
    /// The next hop for a destination; `None` for broadcast and multicast, and without a route.
    pub(super) fn next_hop(&self, to: IpAddr) -> Option<IpAddr> {
        if to.is_multicast() || self.is_broadcast(to) {
            return None;
        }
        if self.interface.ip_addrs().iter().any(|cidr| cidr.contains_addr(&to.into())) {
            return Some(to);
        }
        let routes = self.interface.routes();
        let route = match to {
            IpAddr::V4(_) => routes.get_default_ipv4_route(),
            IpAddr::V6(_) => routes.get_default_ipv6_route(),
        };
        route.map(|route| route.via_router.into())
    }

    /// Asks for the MAC address of the next hop for `to`, at most once a second, and polls the socket
    /// `id` when it is known.
    pub(super) fn resolve(&mut self, to: IpAddr, id: Option<Id>) {
        let Some(hop) = self.next_hop(to) else { return };
        let ask = self.hops.wait(hop, id, self.now());
        let last = self.device.outbox.last_mut();
        if !ask || last.is_some_and(|last| demux::asks_for(&last.bytes) == Some(hop)) {
            return;
        }
        let Ok(own) = self.source(hop) else { return };
        let frame = match (own, hop) {
            (IpAddr::V4(own), IpAddr::V4(hop)) => {
                arp::request(EthernetAddress(self.mac.0), own, hop)
            }
            (IpAddr::V6(own), IpAddr::V6(hop)) => solicitation(self.mac, own, hop),
            _ => return,
        };
        self.device.outbox.push(&frame);
    }

    /// Polls the sockets that wait for the sender of a processed frame.
    pub(super) fn hop_answered(&mut self, hop: IpAddr) {
        let Some(waiting) = self.hops.answered(hop) else { return };
        for id in waiting {
            self.enqueue(id);
        }
        // A ping has no socket of its own.
        self.news.notify_all();
    }
}

/// The frame of a neighbour solicitation (section 4.3).
fn solicitation(mac: Mac, own: Ipv6Addr, hop: Ipv6Addr) -> Vec<u8> {
    let [.., a, b, c] = hop.octets();
    // The solicited-node multicast address (RFC 4291, section 2.7.1).
    let group = Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c]);
    let lladdr = Some(EthernetAddress(mac.0).into());
    let request = Icmpv6Repr::Ndisc(NdiscRepr::NeighborSolicit { target_addr: hop, lladdr });
    let ip = Ipv6Repr {
        src_addr: own,
        dst_addr: group,
        next_header: IpProtocol::Icmpv6,
        payload_len: request.buffer_len(),
        hop_limit: 255,
    };
    let length = ip.buffer_len() + request.buffer_len();
    let mut bytes = vec![0; EthernetFrame::<&[u8]>::buffer_len(length)];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes);
    frame.set_src_addr(EthernetAddress(mac.0));
    frame.set_dst_addr(EthernetAddress([0x33, 0x33, 0xff, a, b, c]));
    frame.set_ethertype(EthernetProtocol::Ipv6);
    let mut packet = Ipv6Packet::new_unchecked(frame.payload_mut());
    ip.emit(&mut packet);
    let mut message = Icmpv6Packet::new_unchecked(packet.payload_mut());
    request.emit(&own, &group, &mut message, &ChecksumCapabilities::default());
    bytes
}
