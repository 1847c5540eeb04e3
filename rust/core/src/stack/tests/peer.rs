//! A wire in memory: sent frames are passed to a closure, which may answer.

use crate::net::{Mac, Wake};
use crate::stack::{Abilities, Host, HostOptions, Packets, Wire};
use crate::{Error, Result};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    EthernetRepr, Icmpv4Packet, Icmpv4Repr, IpProtocol, Ipv4Packet, Ipv4Repr,
};
use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

pub(super) const OURS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
pub(super) const PEER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
pub(super) const PEER_MAC: EthernetAddress = EthernetAddress([0x52, 0x54, 0, 0, 0, 2]);
pub(super) const OUR_MAC: EthernetAddress = EthernetAddress([0x52, 0x54, 0, 0, 0, 1]);

pub(super) fn ms(count: u64) -> Option<Duration> {
    Some(Duration::from_millis(count))
}

pub(super) fn go_on() -> Result<()> {
    Ok(())
}

/// Frames for a host to receive.
#[derive(Default)]
pub(super) struct Inbox {
    frames: Mutex<(VecDeque<Vec<u8>>, bool)>,
    arrived: Condvar,
}

impl Inbox {
    pub(super) fn push(&self, frame: Vec<u8>) {
        self.frames.lock().unwrap().0.push_back(frame);
        self.arrived.notify_all();
    }
}

pub(super) type Peer = Box<dyn FnMut(&[u8]) + Send>;

/// A wire to a closure.
pub(super) struct Line {
    pub(super) mac: Mac,
    pub(super) inbox: Arc<Inbox>,
    /// Called with each sent frame.
    pub(super) peer: Mutex<Peer>,
    /// The most frames that one `send` takes.
    pub(super) room: usize,
    /// When set, every call fails with it.
    pub(super) failure: Mutex<Option<Error>>,
}

impl Line {
    pub(super) fn new(last: u8) -> Self {
        Self {
            mac: Mac([0x52, 0x54, 0, 0, 0, last]),
            inbox: Arc::default(),
            peer: Mutex::new(Box::new(|_| {})),
            room: usize::MAX,
            failure: Mutex::new(None),
        }
    }
    /// A wire that calls `peer` with each sent frame and the inbox for answers.
    pub(super) fn with_peer(mut peer: impl FnMut(&[u8], &Inbox) + Send + 'static) -> Arc<Self> {
        let wire = Self::new(1);
        let inbox = wire.inbox.clone();
        *wire.peer.lock().unwrap() = Box::new(move |frame| peer(frame, &inbox));
        Arc::new(wire)
    }
    /// The two ends of a wire.
    pub(super) fn pair() -> (Arc<Self>, Arc<Self>) {
        let (a, b) = (Self::new(1), Self::new(2));
        let (to_a, to_b) = (a.inbox.clone(), b.inbox.clone());
        *a.peer.lock().unwrap() = Box::new(move |frame| to_b.push(frame.to_vec()));
        *b.peer.lock().unwrap() = Box::new(move |frame| to_a.push(frame.to_vec()));
        (Arc::new(a), Arc::new(b))
    }
    /// Fails all calls from now on.
    pub(super) fn fail(&self, error: Error) {
        *self.failure.lock().unwrap() = Some(error);
        self.inbox.arrived.notify_all();
    }
    fn check(&self) -> Result<()> {
        self.failure.lock().unwrap().clone().map_or(Ok(()), Err)
    }
}

impl Wire for Arc<Line> {
    fn mac(&self) -> Mac {
        self.mac
    }
    fn mtu(&self) -> u16 {
        1500
    }
    fn abilities(&self) -> Abilities {
        Abilities::default()
    }
    fn recv(&self, max: usize, packets: &mut Packets) -> Result<usize> {
        self.check()?;
        let mut inbox = self.inbox.frames.lock().unwrap();
        let count = max.min(inbox.0.len());
        inbox.0.drain(..count).for_each(|frame| packets.push(&frame));
        Ok(count)
    }
    fn wait(&self, timeout: Option<Duration>) -> Result<Wake> {
        self.check()?;
        let inbox = self.inbox.frames.lock().unwrap();
        let timeout = timeout.unwrap_or(Duration::from_secs(3600)).min(Duration::from_millis(20));
        let waited = self
            .inbox
            .arrived
            .wait_timeout_while(inbox, timeout, |inbox| inbox.0.is_empty() && !inbox.1);
        waited.unwrap().0.1 = false;
        Ok(Wake::Ready)
    }
    fn wake(&self) {
        self.inbox.frames.lock().unwrap().1 = true;
        self.inbox.arrived.notify_all();
    }
    fn send(&self, packets: &Packets) -> Result<usize> {
        self.check()?;
        let mut peer = self.peer.lock().unwrap();
        let mut count = 0;
        for packet in packets.iter().take(self.room) {
            peer(&packet.bytes);
            count += 1;
        }
        Ok(count)
    }
}

/// A host without an address.
pub(super) fn bare(wire: &Arc<Line>) -> Host {
    Host::new(Box::new(wire.clone()), HostOptions::default()).unwrap()
}

/// A host with the address 10.0.0.1.
pub(super) fn stack(wire: &Arc<Line>) -> Host {
    let host = bare(wire);
    host.configure("10.0.0.1/24".parse().unwrap(), None).unwrap();
    host
}

/// An Ethernet frame from the peer.
pub(super) fn frame(to: EthernetAddress, ethertype: EthernetProtocol, payload: &[u8]) -> Vec<u8> {
    let repr = EthernetRepr { src_addr: PEER_MAC, dst_addr: to, ethertype };
    let mut bytes = vec![0; repr.buffer_len() + payload.len()];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes);
    repr.emit(&mut frame);
    frame.payload_mut().copy_from_slice(payload);
    bytes
}

pub(super) fn arp(
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

pub(super) fn ip(from: Ipv4Addr, to: Ipv4Addr, next_header: IpProtocol, payload: &[u8]) -> Vec<u8> {
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

pub(super) fn icmp(from: Ipv4Addr, to: Ipv4Addr, repr: &Icmpv4Repr) -> Vec<u8> {
    let mut bytes = vec![0; repr.buffer_len()];
    repr.emit(&mut Icmpv4Packet::new_unchecked(&mut bytes), &ChecksumCapabilities::default());
    ip(from, to, IpProtocol::Icmp, &bytes)
}

/// The address that an ARP request asks for.
pub(super) fn asked(bytes: &[u8]) -> Option<Ipv4Addr> {
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
pub(super) fn echo(bytes: &[u8], reply: bool) -> Option<(u16, u16, Vec<u8>)> {
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
pub(super) fn host(
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

pub(super) fn reply(ident: u16, seq_no: u16, data: &[u8]) -> Vec<u8> {
    icmp(PEER, OURS, &Icmpv4Repr::EchoReply { ident, seq_no, data })
}
