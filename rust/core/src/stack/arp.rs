//! Address resolution (RFC 826) on request. smoltcp resolves what it needs and tells nobody, so the
//! question is asked with a frame of our own and the answer is read on its way in.

use super::address::is_unicast;
use super::{Check, Stack, deadline, link::Link, spell};
use crate::net::Mac;
use crate::{Error, Result};
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// A question is asked again after this time (RFC 1122, section 2.3.2.1: not more than once a second).
const REPEAT: Duration = Duration::from_secs(1);

/// A question on its way.
#[derive(Debug)]
pub(super) struct Query {
    own: EthernetAddress,
    target: Ipv4Addr,
    found: Option<EthernetAddress>,
    at: Option<Instant>,
}

impl Query {
    /// Looks whether a received frame is the answer.
    pub(super) fn look(&mut self, frame: &[u8]) {
        if self.found.is_none()
            && let Some((target, mac)) = answer(frame, self.own)
            && target == self.target
        {
            self.found = Some(mac);
        }
    }
    /// Says when the frames just looked at came.
    pub(super) fn stamp(&mut self, arrived: Instant) {
        if self.found.is_some() && self.at.is_none() {
            self.at = Some(arrived);
        }
    }
}

/// Who says to `own` that it has which address.
fn answer(frame: &[u8], own: EthernetAddress) -> Option<(Ipv4Addr, EthernetAddress)> {
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

impl<L: Link> Stack<L> {
    /// Asks who has the address: the MAC address and the time from the question to its answer.
    ///
    /// Always asks, whatever was learned before. The question is repeated every second.
    ///
    /// # Errors
    /// [`Error::Invalid`] without an address of our own, and for an address that no other host of
    /// the network can have; [`Error::Timeout`]; those of the link, and what `check` returns.
    pub fn arp(
        &mut self,
        target: Ipv4Addr,
        timeout: Option<Duration>,
        check: Check,
    ) -> Result<(Mac, Duration)> {
        let own = self.own("arp")?;
        if !own.contains(target)
            || !is_unicast(target)
            || own.reserves(target)
            || target == own.address
        {
            return Err(Error::Invalid(format!(
                "ARP finds other hosts of the network {own}; {target} is none"
            )));
        }
        self.query = Some(Query { own: self.mac(), target, found: None, at: None });
        let result = self.await_answer(own.address, target, timeout, check);
        self.query = None;
        result
    }

    fn await_answer(
        &mut self,
        own: Ipv4Addr,
        target: Ipv4Addr,
        timeout: Option<Duration>,
        check: Check,
    ) -> Result<(Mac, Duration)> {
        let deadline = deadline(timeout);
        self.ask(own, target)?;
        let mut asked = self.device.departed;
        let found = self.wait_for(deadline, check, |stack, _| {
            if let Some(Query { found: Some(mac), at: Some(at), .. }) = &stack.query {
                return Ok(Some((Mac(mac.0), at.saturating_duration_since(asked))));
            }
            if asked.elapsed() >= REPEAT {
                stack.ask(own, target)?;
                asked = stack.device.departed;
            }
            Ok(None)
        })?;
        found.ok_or_else(|| {
            Error::Timeout(format!(
                "no ARP reply from {target} within {}; is there such a host, and is the link up?",
                spell(timeout)
            ))
        })
    }

    /// Sends a question.
    pub(super) fn ask(&mut self, own: Ipv4Addr, target: Ipv4Addr) -> Result<()> {
        let mac = self.mac();
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
        self.device.push(&bytes);
        self.device.flush()
    }

    fn mac(&self) -> EthernetAddress {
        EthernetAddress(self.device.link.mac().0)
    }
}
