//! Classification of received frames. smoltcp searches all its sockets; here each socket has its own
//! set and is found by the addresses and ports of the frame.

use smoltcp::wire::{IpProtocol, Ipv4Address, Ipv6Address, checksum};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const ETHERNET: usize = 14;
const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;
const HOP_BY_HOP: u8 = 0;
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
/// Neighbour discovery (RFC 4861, sections 4.3 and 4.4).
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;

/// The two ends of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Flow {
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
}

/// The header fields of a TCP segment that are used here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub(super) seq: u32,
    pub(super) ack: Option<u32>,
    /// Bytes of payload.
    pub(super) length: u32,
    /// The window field.
    pub(super) window: u16,
    /// Whether it has SACK blocks: something after `ack` was received.
    pub(super) sack: bool,
    pub(super) syn: bool,
    pub(super) fin: bool,
    pub(super) rst: bool,
}

/// Identifies a fragmented datagram: source, destination, identification, protocol.
pub(super) type FragmentKey = (Ipv4Addr, Ipv4Addr, u16, u8);

/// The kind of a frame.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Tcp(Flow, Segment),
    Udp(Flow),
    /// The first fragment of a UDP datagram.
    FirstFragment(Flow, FragmentKey),
    /// Another fragment.
    Fragment(FragmentKey),
    /// An ICMP error about a flow; whether it is a TCP flow, and the error number.
    Unreachable(Flow, bool, i32),
    Arp,
    /// ICMP, IGMP, neighbour discovery, and others.
    Other,
    /// The TCP or UDP checksum is wrong.
    BadChecksum,
    /// For another address, or too short.
    NotOurs,
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}
fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
fn v6(bytes: &[u8]) -> Option<Ipv6Addr> {
    Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?))
}

/// Classifies a frame. `verified`: the device has verified the checksum.
pub(super) fn classify(frame: &[u8], mac: [u8; 6], verified: bool) -> Kind {
    inspect(frame, mac, verified).unwrap_or(Kind::NotOurs)
}

fn inspect(frame: &[u8], mac: [u8; 6], verified: bool) -> Option<Kind> {
    let to = frame.get(..6)?;
    // Broadcast and multicast have the lowest bit of the first byte set.
    if to != mac && to[0] & 1 == 0 {
        return Some(Kind::NotOurs);
    }
    match be16(frame, 12)? {
        ARP => Some(Kind::Arp),
        IPV4 => ipv4(frame.get(ETHERNET..)?, verified),
        IPV6 => ipv6(frame.get(ETHERNET..)?, verified),
        _ => Some(Kind::NotOurs),
    }
}

fn ipv4(packet: &[u8], verified: bool) -> Option<Kind> {
    let header = usize::from(*packet.first()? & 0x0f) * 4;
    let total = usize::from(be16(packet, 2)?);
    if packet[0] >> 4 != 4 || header < 20 || total < header {
        return Some(Kind::NotOurs);
    }
    let source = Ipv4Addr::from(be32(packet, 12)?);
    let target = Ipv4Addr::from(be32(packet, 16)?);
    let protocol = *packet.get(9)?;
    let place = be16(packet, 6)?;
    let body = packet.get(header..total)?;
    let (more, offset) = (place & 0x2000 != 0, place & 0x1fff);
    if more || offset != 0 {
        let key = (source, target, be16(packet, 4)?, protocol);
        return Some(match (protocol, offset) {
            (UDP, 0) => Kind::FirstFragment(ports(body, target.into(), source.into())?, key),
            (UDP | TCP, _) => Kind::Fragment(key),
            _ => Kind::Other,
        });
    }
    let pseudo = || {
        let (source, target): (Ipv4Address, Ipv4Address) = (source, target);
        checksum::pseudo_header_v4(&source, &target, IpProtocol::from(protocol), body.len() as u32)
    };
    transport(protocol, body, target.into(), source.into(), verified, pseudo)
}

fn ipv6(packet: &[u8], verified: bool) -> Option<Kind> {
    if packet.first()? >> 4 != 6 {
        return Some(Kind::NotOurs);
    }
    let length = usize::from(be16(packet, 4)?);
    let mut protocol = *packet.get(6)?;
    let source = v6(packet.get(8..24)?)?;
    let target = v6(packet.get(24..40)?)?;
    let mut body = packet.get(40..40 + length)?;
    if protocol == HOP_BY_HOP {
        protocol = *body.first()?;
        body = body.get((usize::from(*body.get(1)?) + 1) * 8..)?;
    }
    let pseudo = || {
        let (source, target): (Ipv6Address, Ipv6Address) = (source, target);
        checksum::pseudo_header_v6(&source, &target, IpProtocol::from(protocol), body.len() as u32)
    };
    transport(protocol, body, target.into(), source.into(), verified, pseudo)
}

fn ports(body: &[u8], local: IpAddr, remote: IpAddr) -> Option<Flow> {
    let (from, to) = (be16(body, 0)?, be16(body, 2)?);
    Some(Flow { local: SocketAddr::new(local, to), remote: SocketAddr::new(remote, from) })
}

fn transport(
    protocol: u8,
    body: &[u8],
    local: IpAddr,
    remote: IpAddr,
    verified: bool,
    pseudo: impl Fn() -> u16,
) -> Option<Kind> {
    let right = || checksum::combine(&[pseudo(), checksum::data(body)]) == 0xffff;
    match protocol {
        TCP => {
            let flow = ports(body, local, remote)?;
            let segment = segment(body)?;
            Some(if verified || right() { Kind::Tcp(flow, segment) } else { Kind::BadChecksum })
        }
        UDP => {
            let flow = ports(body, local, remote)?;
            // Over IPv4, 0 means no checksum (RFC 768).
            let none = be16(body, 6)? == 0 && local.is_ipv4();
            Some(if verified || none || right() { Kind::Udp(flow) } else { Kind::BadChecksum })
        }
        ICMP => Some(unreachable_v4(body).unwrap_or(Kind::Other)),
        ICMPV6 => Some(unreachable_v6(body).unwrap_or(Kind::Other)),
        _ => Some(Kind::Other),
    }
}

/// Parses a segment's header.
pub(super) fn segment(body: &[u8]) -> Option<Segment> {
    let flags = *body.get(13)?;
    let header = usize::from(body[12] >> 4) * 4;
    let length = body.len().checked_sub(header)?;
    Some(Segment {
        seq: be32(body, 4)?,
        ack: (flags & 0x10 != 0).then_some(be32(body, 8)?),
        length: length as u32,
        window: be16(body, 14)?,
        sack: header > 20 && has_sack(body.get(20..header)?),
        syn: flags & 0x02 != 0,
        fin: flags & 0x01 != 0,
        rst: flags & 0x04 != 0,
    })
}

/// Whether options of TCP have SACK blocks (RFC 2018).
fn has_sack(mut options: &[u8]) -> bool {
    loop {
        match options {
            [5, ..] => return true,
            [1, rest @ ..] => options = rest,
            [0, ..] | [] | [_] => return false,
            [_, length, ..] => match options.get(usize::from(*length).max(2)..) {
                Some(rest) => options = rest,
                None => return false,
            },
        }
    }
}

/// The IP address whose MAC address a frame asks for, by ARP or neighbour discovery.
pub(super) fn asks_for(frame: &[u8]) -> Option<IpAddr> {
    match be16(frame, 12)? {
        ARP if be16(frame, 20)? == 1 => Some(Ipv4Addr::from(be32(frame, 38)?).into()),
        IPV6 if frame.get(20) == Some(&ICMPV6) && frame.get(54) == Some(&SOLICITATION) => {
            Some(v6(frame.get(62..78)?)?.into())
        }
        _ => None,
    }
}

/// The IP address whose MAC address a frame tells, and who is told: the sender and the target of an
/// ARP packet or a neighbour solicitation; the target of a neighbour advertisement.
pub(super) fn tells_of(frame: &[u8]) -> Option<(IpAddr, Option<IpAddr>)> {
    match be16(frame, 12)? {
        ARP => {
            let [from, to] = [be32(frame, 28)?, be32(frame, 38)?].map(Ipv4Addr::from);
            Some((from.into(), Some(to.into())))
        }
        IPV6 if frame.get(20) == Some(&ICMPV6) => {
            let target = v6(frame.get(62..78)?)?.into();
            match *frame.get(54)? {
                SOLICITATION => Some((v6(frame.get(22..38)?)?.into(), Some(target))),
                ADVERTISEMENT => Some((target, None)),
                _ => None,
            }
        }
        _ => None,
    }
}

/// The TCP segment of a frame that we send.
pub(super) fn sent_segment(frame: &[u8]) -> Option<Segment> {
    let packet = frame.get(ETHERNET..)?;
    match be16(frame, 12)? {
        IPV4 if packet.get(9) == Some(&TCP) => {
            segment(packet.get(usize::from(packet[0] & 0x0f) * 4..)?)
        }
        IPV6 if packet.get(6) == Some(&TCP) => segment(packet.get(40..)?),
        _ => None,
    }
}

/// An ICMP error (RFC 792). It quotes the undelivered packet, starting at the IP header.
fn unreachable_v4(body: &[u8]) -> Option<Kind> {
    if *body.first()? != 3 {
        return None;
    }
    let errno = match body.get(1)? {
        // Network, host: unreachable, unknown, prohibited.
        0 | 6 | 9 | 11 => libc::ENETUNREACH,
        2 => libc::ENOPROTOOPT,
        3 => libc::ECONNREFUSED,
        4 => return None,
        _ => libc::EHOSTUNREACH,
    };
    let quoted = body.get(8..)?;
    let header = usize::from(*quoted.first()? & 0x0f) * 4;
    let source = Ipv4Addr::from(be32(quoted, 12)?);
    let target = Ipv4Addr::from(be32(quoted, 16)?);
    about(quoted.get(header..)?, *quoted.get(9)?, source.into(), target.into(), errno)
}

/// An ICMPv6 error (RFC 4443, section 3.1).
fn unreachable_v6(body: &[u8]) -> Option<Kind> {
    if *body.first()? != 1 {
        return None;
    }
    let errno = match body.get(1)? {
        0 => libc::ENETUNREACH,
        4 => libc::ECONNREFUSED,
        1 => libc::EACCES,
        _ => libc::EHOSTUNREACH,
    };
    let quoted = body.get(8..)?;
    let source = v6(quoted.get(8..24)?)?;
    let target = v6(quoted.get(24..40)?)?;
    about(quoted.get(40..)?, *quoted.get(6)?, source.into(), target.into(), errno)
}

fn about(body: &[u8], protocol: u8, local: IpAddr, remote: IpAddr, errno: i32) -> Option<Kind> {
    let local = SocketAddr::new(local, be16(body, 0)?);
    let remote = SocketAddr::new(remote, be16(body, 2)?);
    match protocol {
        TCP | UDP => Some(Kind::Unreachable(Flow { local, remote }, protocol == TCP, errno)),
        _ => None,
    }
}
