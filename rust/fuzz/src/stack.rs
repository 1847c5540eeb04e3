//! The TCP/IP stack: frames of every kind, as a peer on the wire may send them.

use crate::Input;
use virtnic::stack::testing::{Bare, MAC};

const PEER: [u8; 6] = [2, 0, 0, 0, 0, 9];
/// No input makes more sockets: those that are opened here, and the backlogs of two.
const MOST: usize = 4 + 2 * (8 + 1) + 16;
/// An Ethernet frame of 1,500 bytes of IP.
const LONGEST: usize = 1514;

fn ethernet(ethertype: u16) -> Vec<u8> {
    let mut frame = [MAC.0, PEER].concat();
    frame.extend(ethertype.to_be_bytes());
    frame
}

/// An IPv4 packet with a right header around bytes of the input.
fn ipv4(protocol: u8, place: u16, body: &[u8]) -> Vec<u8> {
    let mut header = vec![0x45, 0];
    header.extend((20 + body.len() as u16).to_be_bytes());
    header.extend([0, 7]);
    header.extend(place.to_be_bytes());
    header.extend([64, protocol, 0, 0, 10, 0, 0, 9, 10, 0, 0, 1]);
    let mut sum: u32 =
        header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    sum = (sum & 0xffff) + (sum >> 16);
    header[10..12].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
    [ethernet(0x0800), header, body.to_vec()].concat()
}

/// An IPv6 packet with a right header around bytes of the input.
fn ipv6(next: u8, hops: u8, group: bool, body: &[u8]) -> Vec<u8> {
    let mut header = vec![0x60, 0, 0, 0];
    header.extend((body.len() as u16).to_be_bytes());
    header.extend([next, hops, 0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
    let own: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let all: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    header.extend(if group { all } else { own });
    [ethernet(0x86dd), header, body.to_vec()].concat()
}

/// A TCP header to port 80, whose fields are of the input.
fn tcp(input: &mut Input<'_>, ack: u32) -> Vec<u8> {
    let (port, flags, options) = (input.byte(), input.byte(), usize::from(input.byte() % 11));
    let mut header = vec![0x10, port & 3, 0, 80];
    header.extend(u32::from(input.short()).to_be_bytes());
    header.extend(ack.wrapping_add(u32::from(input.byte() % 4)).to_be_bytes());
    header.extend([((5 + options) as u8) << 4, flags]);
    header.extend(input.short().to_be_bytes());
    header.extend([0; 4]);
    let mut given = input.bytes(options * 4).to_vec();
    given.resize(options * 4, 0);
    header.extend(given);
    let length = usize::from(input.byte());
    header.extend(input.bytes(length));
    header
}

/// The sequence number of the newest segment among what was sent.
fn newest(sent: &[Vec<u8>]) -> Option<u32> {
    let frame = sent.iter().rev().find(|frame| frame.len() >= 54 && frame[12..14] == [8, 0])?;
    (frame[23] == 6).then(|| u32::from_be_bytes([frame[38], frame[39], frame[40], frame[41]]))
}

/// The target.
pub fn target(data: &[u8]) {
    let mut input = Input::new(data);
    let mut host = Bare::new(&["10.0.0.1/24", "fd00::1/64"]).unwrap();
    host.listen("0.0.0.0:80".parse().unwrap(), 8).unwrap();
    host.listen("[::]:80".parse().unwrap(), 8).unwrap();
    host.datagrams("0.0.0.0:53".parse().unwrap()).unwrap();
    host.datagrams("[::]:53".parse().unwrap()).unwrap();
    let mut seq = 0;
    let mut steps = 0;
    while !input.is_empty() && steps < 200 {
        steps += 1;
        let what = input.byte();
        let frame = match what % 10 {
            0 => {
                let length = usize::from(input.short() % 2048);
                input.bytes(length).to_vec()
            }
            1 | 2 => ipv4(6, 0x4000, &tcp(&mut input, seq)),
            3 => ipv6(6, 64, false, &tcp(&mut input, seq)),
            4 => {
                // UDP, a fragment of it, ICMP, IGMP, and what there is not.
                let (protocol, place) = (input.byte(), input.short());
                let length = usize::from(input.byte());
                ipv4(
                    [17, 17, 1, 2, protocol][usize::from(protocol % 5)],
                    place,
                    input.bytes(length),
                )
            }
            5 => {
                let (next, group) = (input.byte(), input.byte() & 1 == 1);
                let length = usize::from(input.byte());
                let body = input.bytes(length);
                ipv6([58, 0, 17, 44, next][usize::from(next % 5)], 255, group, body)
            }
            6 => {
                // ARP: from then on the peer is known.
                let mut frame = ethernet(0x0806);
                frame.extend([0, 1, 8, 0, 6, 4, 0, 1 + (input.byte() & 1)]);
                frame.extend(PEER);
                frame.extend([10, 0, 0, 9]);
                frame.extend(MAC.0);
                frame.extend([10, 0, 0, 1]);
                frame
            }
            7 => {
                let length = usize::from(input.byte());
                [ethernet(0x0806), input.bytes(length).to_vec()].concat()
            }
            8 => {
                host.serve();
                continue;
            }
            _ => Vec::new(),
        };
        host.receive(&frame, what & 0x80 == 0);
        let sent = host.turn();
        seq = newest(&sent).map_or(seq, |sent| sent.wrapping_add(1));
        assert!(sent.iter().all(|frame| frame.len() <= LONGEST), "a frame is too long");
        assert!(host.failure().is_none(), "{:?}", host.failure());
        assert!(host.sockets() <= MOST + steps, "{} sockets", host.sockets());
    }
}
