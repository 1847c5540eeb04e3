//! Streams of any frame, with any fields that vary.

use crate::Input;
use virtnic::engine::testing::{LONGEST, frames};
use virtnic::engine::{Field, Pattern, Place, Stream};

const NAMES: [&str; 13] = [
    "eth.src",
    "eth.dst",
    "vlan.id",
    "ip.src",
    "ip.dst",
    "ipv6.src",
    "ipv6.dst",
    "udp.sport",
    "udp.dport",
    "tcp.sport",
    "tcp.dport",
    "payload",
    "none",
];
/// Bytes that may differ beside the fields: two checksums, and the signature.
const OTHERS: usize = 2 * 2 + 18;

fn number(input: &mut Input<'_>) -> u64 {
    match input.byte() % 4 {
        0 => input.byte().into(),
        1 => input.short().into(),
        2 => input.word().into(),
        _ => u64::from(input.word()) << 32 | u64::from(input.word()),
    }
}

fn field(input: &mut Input<'_>) -> Field {
    let place = match input.byte() as usize {
        kind if kind < 0xc0 => Place::Named(NAMES[kind % NAMES.len()].to_owned()),
        _ => Place::At { offset: number(input) as usize, width: usize::from(input.byte() % 10) },
    };
    let pattern = match input.byte() % 3 {
        0 => Pattern::Increment {
            first: (input.byte().is_multiple_of(2)).then(|| number(input).into()),
            step: number(input),
            count: number(input),
        },
        1 => Pattern::List((0..input.byte() % 5).map(|_| number(input).into()).collect()),
        _ => Pattern::Random {
            low: (input.byte().is_multiple_of(2)).then(|| number(input).into()),
            high: (input.byte().is_multiple_of(2)).then(|| number(input).into()),
            seed: number(input),
        },
    };
    Field { place, pattern }
}

/// The ones' complement sum of a frame's IPv4 header, if it has one and no tag.
fn header_sum(frame: &[u8]) -> Option<u16> {
    let length = usize::from(frame.get(14)? & 15) * 4;
    if frame[12..14] != [8, 0] || frame[14] >> 4 != 4 || length < 20 {
        return None;
    }
    let header = frame.get(14..14 + length)?;
    let pairs = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum: u32 = pairs.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    Some(((sum & 0xffff) + (sum >> 16)) as u16)
}

/// A stream is refused, or its frames differ where they may, and their checksums follow.
pub fn target(data: &[u8]) {
    let mut input = Input::new(data);
    let flow = input.byte().is_multiple_of(2);
    let fields: Vec<Field> = (0..input.byte() % 5).map(|_| field(&mut input)).collect();
    let count = 1 + usize::from(input.byte() % 3);
    let mut templates = Vec::new();
    for _ in 0..count {
        let length = usize::from(input.short()) % (LONGEST + 64);
        let mut frame = input.bytes(length).to_vec();
        frame.resize(length, 0);
        templates.push(frame);
    }
    let most = OTHERS + 16 * fields.len();
    let stream = Stream { frames: templates, fields, rate: None, burst: 1, flow };
    let Ok(written) = frames(&stream, 7) else { return };
    for (number, frame) in written.iter().enumerate() {
        let template = &stream.frames[number % count];
        assert_eq!(frame.len(), template.len(), "frame {number}");
        let differ = frame.iter().zip(template).filter(|(a, b)| a != b).count();
        assert!(differ <= most, "{differ} bytes of frame {number} differ");
        if header_sum(template) == Some(0xffff) {
            // Fields at any offset may change what the header says of itself.
            let same = frame[12..15] == template[12..15];
            assert!(!same || header_sum(frame) == Some(0xffff), "the checksum of frame {number}");
        }
    }
}
