//! ARP (RFC 826): requests, and the replies, which smoltcp does not return.

use super::address::{Cidr, is_unicast};
use super::spell;
use crate::{Error, Result};
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
};
use std::net::Ipv4Addr;
use std::time::Duration;

/// Time before an ARP request is repeated (RFC 1122, section 2.3.2.1: at most once a second).
pub(super) const REPEAT: Duration = Duration::from_secs(1);

/// The sender's addresses in an ARP reply to `own`.
pub(super) fn parse_reply(
    frame: &[u8],
    own: EthernetAddress,
) -> Option<(Ipv4Addr, EthernetAddress)> {
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
        } if target_hardware_addr == own && source_hardware_addr.is_unicast() => {
            Some((source_protocol_addr, source_hardware_addr))
        }
        _ => None,
    }
}

/// Checks that another host in the network of `own` can have the address.
pub(super) fn check_target(own: Cidr, target: Ipv4Addr) -> Result<()> {
    if own.contains(target) && is_unicast(target) && !own.reserves(target) && target != own.address
    {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "ARP resolves addresses of other hosts in the network {own}, not {target}"
    )))
}

/// The frame of a request for `target`.
pub(super) fn request(mac: EthernetAddress, own: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
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

/// The error of a timeout without a reply.
pub(super) fn no_reply(target: Ipv4Addr, timeout: Option<Duration>) -> Error {
    Error::Timeout(format!(
        "no ARP reply from {target} within {}; is there such a host, and is the link up?",
        spell(timeout)
    ))
}
