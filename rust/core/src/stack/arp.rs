//! ARP requests (RFC 826). smoltcp does not return the replies, so received frames are inspected.

use super::address::{Cidr, is_unicast};
use super::{Check, Stack, deadline, link::Link, spell};
use crate::net::Mac;
use crate::{Error, Result};
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// Time before an ARP request is repeated (RFC 1122, section 2.3.2.1: at most once a second).
pub(super) const REPEAT: Duration = Duration::from_secs(1);

/// A pending ARP request.
#[derive(Debug)]
pub(super) struct Query {
    own: EthernetAddress,
    target: Ipv4Addr,
    found: Option<EthernetAddress>,
    at: Option<Instant>,
}

impl Query {
    /// Reads a received frame.
    pub(super) fn read(&mut self, frame: &[u8]) {
        if self.found.is_none()
            && let Some((target, mac)) = parse_reply(frame, self.own)
            && target == self.target
        {
            self.found = Some(mac);
        }
    }
    /// Sets the arrival time of the frames just read.
    pub(super) fn stamp(&mut self, arrived: Instant) {
        if self.found.is_some() && self.at.is_none() {
            self.at = Some(arrived);
        }
    }
}

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

impl<L: Link> Stack<L> {
    /// Resolves an address by ARP. Returns the MAC address and the time from request to reply.
    ///
    /// Always sends a request, even for a known address, and repeats it every second.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the stack has no address, and for an address that no other host of the
    /// network can have; [`Error::Timeout`]; those of the link, and what `check` returns.
    pub fn arp(
        &mut self,
        target: Ipv4Addr,
        timeout: Option<Duration>,
        check: Check,
    ) -> Result<(Mac, Duration)> {
        let own = self.own("arp")?;
        check_target(own, target)?;
        self.query = Some(Query { own: self.mac(), target, found: None, at: None });
        let result = self.await_reply_from(target, own.address, timeout, check);
        self.query = None;
        result
    }

    fn await_reply_from(
        &mut self,
        target: Ipv4Addr,
        own: Ipv4Addr,
        timeout: Option<Duration>,
        check: Check,
    ) -> Result<(Mac, Duration)> {
        let deadline = deadline(timeout);
        self.request(own, target)?;
        let mut sent = self.device.departed;
        let found = self.wait_for(deadline, check, |stack, _| {
            if let Some(Query { found: Some(mac), at: Some(at), .. }) = &stack.query {
                return Ok(Some((Mac(mac.0), at.saturating_duration_since(sent))));
            }
            if sent.elapsed() >= REPEAT {
                stack.request(own, target)?;
                sent = stack.device.departed;
            }
            Ok(None)
        })?;
        found.ok_or_else(|| no_reply(target, timeout))
    }

    /// Sends a request.
    pub(super) fn request(&mut self, own: Ipv4Addr, target: Ipv4Addr) -> Result<()> {
        self.device.push(&request(self.mac(), own, target));
        self.device.flush()
    }

    pub(super) fn mac(&self) -> EthernetAddress {
        EthernetAddress(self.device.link.mac().0)
    }
}
