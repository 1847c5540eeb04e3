//! Tests of a host with hand-made frames.

use crate::stack::testing::{Bare, MAC};

const PEER: [u8; 6] = [2, 0, 0, 0, 0, 9];
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// An Ethernet frame with a TCP segment from 10.0.0.9.
fn segment(port: u16, to: u16, seq: u32, ack: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = [&MAC.0[..], &PEER, &[8, 0]].concat();
    let length = (40 + payload.len()) as u16;
    let mut ip = vec![0x45, 0];
    ip.extend(length.to_be_bytes());
    ip.extend([0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 9, 10, 0, 0, 1]);
    let sum = !smoltcp::wire::checksum::data(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    frame.extend(ip);
    frame.extend(port.to_be_bytes());
    frame.extend(to.to_be_bytes());
    frame.extend(seq.to_be_bytes());
    frame.extend(ack.to_be_bytes());
    frame.extend([0x50, flags, 0x20, 0, 0, 0, 0, 0]);
    frame.extend(payload);
    frame
}

/// An ARP request of the peer, which has 10.0.0.9.
fn arp() -> Vec<u8> {
    let mut frame = [&MAC.0[..], &PEER, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]].concat();
    frame.extend(PEER);
    frame.extend([10, 0, 0, 9]);
    frame.extend(MAC.0);
    frame.extend([10, 0, 0, 1]);
    frame
}

/// Flags, sequence and acknowledgement number of the TCP segments in `frames`.
fn segments(frames: &[Vec<u8>]) -> Vec<(u8, u32, u32)> {
    let word = |frame: &[u8], at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().unwrap());
    frames
        .iter()
        .filter(|frame| frame[12..14] == [8, 0] && frame[23] == 6)
        .map(|frame| (frame[47], word(frame, 38), word(frame, 42)))
        .collect()
}

fn host() -> Bare {
    let mut host = Bare::new(&["10.0.0.1/24", "fd00::1/64"]).unwrap();
    host.listen("0.0.0.0:80".parse().unwrap(), 8).unwrap();
    host.datagrams("0.0.0.0:53".parse().unwrap()).unwrap();
    host.receive(&arp(), false);
    host.turn();
    host
}

#[test]
fn a_syn_flood_is_limited_by_the_backlog() {
    let mut host = host();
    let before = host.sockets();
    for port in 1000..5000 {
        host.receive(&segment(port, 80, 7, 0, SYN, b""), true);
    }
    assert!(host.sockets() <= before + 9, "{}", host.sockets());
    let answers = segments(&host.turn());
    assert!(answers.iter().all(|(flags, _, _)| *flags == SYN | ACK), "{answers:?}");
    assert!(answers.len() <= 9);
    // A reset of a half-open connection makes room for another.
    host.receive(&segment(1000, 80, 8, 0, RST, b""), true);
    let before = host.sockets();
    host.receive(&segment(6000, 80, 7, 0, SYN, b""), true);
    assert_eq!(host.sockets(), before + 1);
}

#[test]
fn a_segment_with_a_wrong_checksum_is_dropped() {
    let mut host = host();
    let before = host.sockets();
    host.receive(&segment(1000, 80, 7, 0, SYN, b""), false);
    assert_eq!(host.sockets(), before);
    assert_eq!(segments(&host.turn()), []);
}

#[test]
fn a_connection_to_a_closed_port_is_reset() {
    let mut host = host();
    host.receive(&segment(1000, 81, 7, 0, SYN, b""), true);
    let answers = segments(&host.turn());
    assert_eq!(answers, [(RST | ACK, 0, 8)]);
    // A reset is not answered.
    host.receive(&segment(1000, 81, 7, 0, RST, b""), true);
    assert_eq!(segments(&host.turn()), []);
}

#[test]
fn a_reset_outside_the_window_is_ignored() {
    let mut host = host();
    host.receive(&segment(1000, 80, 100, 0, SYN, b""), true);
    let (_, seq, _) = segments(&host.turn())[0];
    host.receive(&segment(1000, 80, 101, seq.wrapping_add(1), ACK, b"hello"), true);
    host.turn();
    host.serve();
    let before = host.sockets();
    host.receive(&segment(1000, 80, 0x7000_0000, 0, RST, b""), true);
    host.turn();
    assert_eq!(host.sockets(), before);
    assert!(host.failure().is_none());
}
