//! The smoltcp device: takes one received frame at a time, queues any number of frames to send.

use super::packets::{Packet, Packets};
use super::wire::Abilities;
use crate::net::Offload;
use smoltcp::phy::{self, Checksum, DeviceCapabilities, Medium, PacketMeta};
use smoltcp::wire::{
    ETHERNET_HEADER_LEN, IpProtocol, Ipv4Address, Ipv4Packet, Ipv6Address, Ipv6Packet, checksum,
};
use std::num::NonZeroUsize;

/// With this many frames queued, sockets do not send more.
pub(super) const BACKLOG: usize = 64;

#[derive(Debug)]
pub(super) struct Device {
    mtu: usize,
    abilities: Abilities,
    pub(super) inbox: Option<Packet>,
    /// The storage of processed frames.
    pub(super) used: Packets,
    pub(super) outbox: Packets,
    /// Number of frames that the wire had no room for.
    pub(super) held: usize,
    /// Number of frames that smoltcp has sent.
    pub(super) made: u64,
    /// Ignores the limit, so that all fragments of a datagram are sent.
    pub(super) finishing: bool,
}

impl Device {
    pub(super) fn new(mtu: u16, abilities: Abilities) -> Self {
        let (inbox, used, outbox, held) = Default::default();
        let (made, finishing) = Default::default();
        Self { mtu: mtu.into(), abilities, inbox, used, outbox, held, made, finishing }
    }
    /// The longest IP packet, bytes.
    pub(super) fn mtu(&self) -> usize {
        self.mtu
    }
    /// Whether too many frames are queued for sockets to send more.
    pub(super) fn full(&self) -> bool {
        self.outbox.len() + self.held >= BACKLOG
    }
}

impl phy::Device for Device {
    type RxToken<'a> = RxToken<'a>;
    type TxToken<'a> = TxToken<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(RxToken<'_>, TxToken<'_>)> {
        let packet = self.inbox.take()?;
        let (abilities, made, outbox) = (self.abilities, &mut self.made, &mut self.outbox);
        let room = TxToken { abilities, made, outbox, segment: None };
        Some((RxToken { packet, used: &mut self.used }, room))
    }
    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<TxToken<'_>> {
        if !self.finishing && self.full() {
            return None;
        }
        let (abilities, made, outbox) = (self.abilities, &mut self.made, &mut self.outbox);
        Some(TxToken { abilities, made, outbox, segment: None })
    }
    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.mtu + ETHERNET_HEADER_LEN;
        // `demux` verifies received frames, unless the device did.
        capabilities.checksum.udp = Checksum::Tx;
        capabilities.checksum.tcp =
            if self.abilities.checksum { Checksum::None } else { Checksum::Tx };
        capabilities.segmentation.tcpv4 = self.abilities.segmentation.and_then(NonZeroUsize::new);
        capabilities
    }
}

/// One received frame.
pub(super) struct RxToken<'a> {
    packet: Packet,
    used: &'a mut Packets,
}

impl phy::RxToken for RxToken<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, look: F) -> R {
        let result = look(&self.packet.bytes);
        self.used.recycle(self.packet);
        result
    }
}

/// A frame to send.
pub(super) struct TxToken<'a> {
    abilities: Abilities,
    made: &'a mut u64,
    outbox: &'a mut Packets,
    segment: Option<u16>,
}

impl phy::TxToken for TxToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        *self.made += 1;
        let result = self.outbox.push_with(length, Offload::NONE, write);
        if self.abilities.checksum
            && let Some(packet) = self.outbox.last_mut()
        {
            packet.offload = offload(&mut packet.bytes, self.segment).unwrap_or_default();
        }
        result
    }
    fn set_meta(&mut self, meta: PacketMeta) {
        self.segment = meta.segmentation_offload_size.map(Into::into);
    }
}

/// The offload metadata for a TCP segment: the device completes the checksum, whose field gets the
/// sum of the pseudo-header, and segments the frame (section 5.1.6.2).
fn offload(frame: &mut [u8], segment: Option<u16>) -> Option<Offload> {
    const FIELD: usize = 16;
    let (start, sum, gso_type) = match (frame.get(12)?, frame.get(13)?) {
        (0x08, 0x00) => {
            let packet = Ipv4Packet::new_checked(&frame[ETHERNET_HEADER_LEN..]).ok()?;
            if packet.next_header() != IpProtocol::Tcp {
                return None;
            }
            let header = usize::from(packet.header_len());
            let length = u32::from(packet.total_len()) - header as u32;
            let (source, target): (Ipv4Address, Ipv4Address) =
                (packet.src_addr(), packet.dst_addr());
            let sum = checksum::pseudo_header_v4(&source, &target, IpProtocol::Tcp, length);
            (ETHERNET_HEADER_LEN + header, sum, Offload::TCPV4)
        }
        (0x86, 0xdd) => {
            let packet = Ipv6Packet::new_checked(&frame[ETHERNET_HEADER_LEN..]).ok()?;
            if packet.next_header() != IpProtocol::Tcp {
                return None;
            }
            let length = u32::from(packet.payload_len());
            let (source, target): (Ipv6Address, Ipv6Address) =
                (packet.src_addr(), packet.dst_addr());
            let sum = checksum::pseudo_header_v6(&source, &target, IpProtocol::Tcp, length);
            (ETHERNET_HEADER_LEN + packet.header_len(), sum, Offload::TCPV6)
        }
        _ => return None,
    };
    frame.get_mut(start + FIELD..start + FIELD + 2)?.copy_from_slice(&sum.to_be_bytes());
    let header = start + usize::from(frame.get(start + 12)? >> 4) * 4;
    let mut offload = Offload {
        flags: Offload::NEEDS_CSUM,
        csum_start: start as u16,
        csum_offset: FIELD as u16,
        ..Offload::NONE
    };
    if let Some(size) = segment {
        offload.gso_type = gso_type;
        offload.gso_size = size;
        offload.hdr_len = header as u16;
    }
    Some(offload)
}
