#![allow(clippy::unwrap_used)]
use super::super::{Field, Pattern, Place};
use super::*;
use crate::net::Transport;
use proptest::prelude::*;

/// The checksum of RFC 1071, over bytes.
fn summed(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u64;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u64::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        }
    }
    folded(sum)
}

/// A UDP or TCP frame, tagged or not, with correct checksums and some padding.
fn frame(six: bool, udp: bool, tagged: bool, payload: usize, padding: usize) -> Vec<u8> {
    let mut segment: Vec<u8> = (0..payload + if udp { 8 } else { 20 }).map(|i| i as u8).collect();
    let at = if udp { 6 } else { 16 };
    if udp {
        let length = segment.len() as u16;
        segment[4..6].copy_from_slice(&length.to_be_bytes());
    } else {
        segment[12] = 0x50;
    }
    segment[at..at + 2].fill(0);
    let protocol = if udp { 17 } else { 6 };
    let length = segment.len() as u16;
    let mut ip = if six {
        let mut ip = vec![0x60, 0, 0, 0];
        ip.extend(length.to_be_bytes());
        ip.extend([protocol, 64]);
        ip.extend((0..32).map(|i| 0x20 + i));
        ip
    } else {
        let mut ip = vec![0x45, 0];
        ip.extend((length + 20).to_be_bytes());
        ip.extend([0, 1, 0, 0, 64, protocol, 0, 0, 198, 18, 0, 1, 198, 18, 0, 2]);
        let sum = !summed(&[&ip]);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        ip
    };
    let addresses = ip[if six { 8 } else { 12 }..].to_vec();
    let sum = !summed(&[&addresses, &length.to_be_bytes(), &[0, protocol], &segment]);
    segment[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    let mut frame: Vec<u8> = (0..12).collect();
    if tagged {
        frame.extend([0x81, 0, 0x40, 7]);
    }
    frame.extend(if six { [0x86, 0xdd] } else { [0x08, 0] });
    frame.append(&mut ip);
    frame.append(&mut segment);
    frame.extend(vec![0xee; padding]);
    frame
}

/// Whether all checksums of a frame are correct.
fn is_right(frame: &[u8]) -> bool {
    let layout = Layout::of(frame);
    let header = layout.ip4.is_none_or(|(at, end)| summed(&[&frame[at..end]]) == 0xffff);
    let Transport { at, end, is_udp } = layout.transport.unwrap();
    let addresses = match (layout.ip4, layout.ip6) {
        (Some((ip, _)), _) => &frame[ip + 12..ip + 20],
        (_, Some(ip)) => &frame[ip + 8..ip + 40],
        _ => unreachable!(),
    };
    let pseudo = [&((end - at) as u16).to_be_bytes()[..], &[0, if is_udp { 17 } else { 6 }]];
    header && summed(&[addresses, pseudo[0], pseudo[1], &frame[at..end]]) == 0xffff
}

fn stream(frame: Vec<u8>, fields: Vec<Field>, flow: bool) -> Stream {
    Stream { frames: vec![frame], fields, rate: None, burst: 1, flow }
}

fn field(name: &str, pattern: Pattern) -> Field {
    Field { place: Place::Named(name.to_owned()), pattern }
}

fn random(name: &str) -> Field {
    field(name, Pattern::Random { low: None, high: None, seed: 7 })
}

/// The first frames of a stream.
fn written(stream: &Stream, count: u64) -> Vec<Vec<u8>> {
    first_frames(&Program::new(stream, 9000).unwrap(), count)
}

/// The first frames that one of several queues sends of a stream.
fn written_by(stream: &Stream, lane: u64, lanes: u64, count: u64) -> Vec<Vec<u8>> {
    let program = Program::new(stream, 9000).unwrap();
    let mut variations: Vec<_> =
        program.variations.iter().map(|each| each.of_lane(lane, lanes)).collect();
    let key = Key::new();
    let each = |number| {
        let template = &program.templates[0];
        let mut frame = template.bytes.clone();
        frame.resize(template.bytes.len().next_multiple_of(LINE), 0);
        let mark = Mark { source: 0, number, time: number * 777 };
        let seal = program.signed.then_some((key, mark));
        let head = ((lane + lanes * number) % program.heads as u64) as usize;
        // SAFETY: the frame is ours, with room for the template in whole lines.
        unsafe { template.write(head, &mut variations, seal, frame.as_mut_ptr()) };
        frame.truncate(template.bytes.len());
        frame
    };
    (0..count).map(each).collect()
}

proptest! {
    #[test]
    fn checksums_follow_whatever_differs(
        six: bool, udp: bool, tagged: bool, flow: bool,
        payload in 30usize..90, padding in 0usize..12,
        offset in 0usize..40, width in 1usize..9,
    ) {
        let bytes = frame(six, udp, tagged, payload, padding);
        let layout = Layout::of(&bytes);
        let free = Place::At { offset: layout.payload + offset.min(payload - 27), width };
        let mut fields = vec![
            random("eth.src"),
            random(if six { "ipv6.src" } else { "ip.src" }),
            random(if six { "ipv6.dst" } else { "ip.dst" }),
            random(if udp { "udp.sport" } else { "tcp.sport" }),
            field(if udp { "udp.dport" } else { "tcp.dport" },
                  Pattern::Increment { first: Some(1), step: 3, count: 900 }),
        ];
        if padding == 0 || !flow {
            fields.push(Field { place: free, pattern: Pattern::Random { low: None, high: None, seed: 1 } });
        }
        for frame in written(&stream(bytes.clone(), fields, flow), 20) {
            prop_assert!(is_right(&frame));
            prop_assert_ne!(&frame, &bytes);
        }
    }
}

#[test]
fn a_wrong_checksum_stays_as_wrong_as_it_was_and_none_stays_none() {
    let mut bytes = frame(false, true, false, 40, 0);
    bytes[40..42].fill(0);
    for frame in written(&stream(bytes.clone(), vec![random("udp.sport")], true), 5) {
        assert_eq!(frame[40..42], [0, 0]);
    }
    let right = frame(false, true, false, 40, 0);
    let mut wrong = right.clone();
    wrong[41] ^= 1;
    let fields = || vec![field("udp.sport", Pattern::List(vec![5]))];
    let by = |bytes: &[u8]| {
        let frame = &written(&stream(bytes.to_vec(), fields(), false), 1)[0];
        u16::from_be_bytes([frame[40], frame[41]])
    };
    let before = u16::from_be_bytes([right[40], right[41]]);
    let after = u16::from_be_bytes([wrong[40], wrong[41]]);
    let difference = |from: u16, to: u16| folded(u64::from(to) + u64::from(!from));
    assert_eq!(difference(before, after) % 0xffff, difference(by(&right), by(&wrong)) % 0xffff);
}

#[test]
fn numbers_depend_on_the_frame_and_not_on_the_queue() {
    let fields = vec![
        field("ip.src", Pattern::Increment { first: None, step: 2, count: 5 }),
        field("udp.sport", Pattern::List(vec![7, 8, 9])),
        random("udp.dport"),
    ];
    let stream = stream(frame(false, true, false, 40, 0), fields, false);
    let program = Program::new(&stream, 9000).unwrap();
    assert_eq!((program.flows, program.heads, program.variations.len()), (15, 15, 1));
    let all = written(&stream, 60);
    assert_eq!(all[0][26..30], [198, 18, 0, 1]);
    assert_eq!((&all[7][26..30], &all[7][34..36]), (&[198, 18, 0, 5][..], &[0, 8][..]));
    for lanes in [2u64, 3, 7] {
        for lane in 0..lanes {
            for (turn, own) in written_by(&stream, lane, lanes, 8).iter().enumerate() {
                assert_eq!(own, &all[turn * lanes as usize + lane as usize]);
            }
        }
    }
}

#[test]
fn fields_in_heads_and_fields_written_one_by_one_give_the_same_frames() {
    let increment = |count| Pattern::Increment { first: Some(5), step: 7, count };
    let common = [
        field("ip.src", Pattern::Increment { first: None, step: 1, count: 100 }),
        field("udp.dport", Pattern::List(vec![9, 2, 5])),
    ];
    let with = |count| {
        let mut fields = vec![field("udp.sport", increment(count))];
        fields.extend(common.clone());
        stream(frame(false, true, false, 40, 0), fields, false)
    };
    // The table of heads has room for 2,000 combinations, not for 5,000.
    let (in_heads, alone) = (with(2000), with(5000));
    let heads = |stream| Program::new(stream, 9000).unwrap().heads;
    assert_eq!((heads(&in_heads), heads(&alone)), (2000, 300));
    let frames = written(&in_heads, 2000);
    assert!(frames.iter().all(|frame| is_right(frame)));
    assert_eq!(frames[..1999], written(&alone, 1999)[..]);
}

#[test]
fn what_a_peer_wrote_into_a_buffer_is_not_sent_again() {
    let fields = vec![field("ip.src", Pattern::Increment { first: None, step: 1, count: 3 })];
    let stream = stream(frame(false, true, true, 40, 0), fields, true);
    let program = Program::new(&stream, 9000).unwrap();
    let template = &program.templates[0];
    let (key, mark) = (Key::new(), Mark { source: 0, number: 4, time: 5 });
    let send = |mut buffer: Vec<u8>| {
        // SAFETY: the buffer is ours, with room for the template in whole lines.
        unsafe { template.write(1, &mut [], Some((key, mark)), buffer.as_mut_ptr()) };
        buffer
    };
    let mut buffer = template.bytes.clone();
    buffer.resize(template.bytes.len().next_multiple_of(LINE), 0);
    let right = send(buffer.clone());
    assert!(is_right(&right[..template.bytes.len()]));
    for at in (0..LINE).chain(template.bytes.len() - SIGNATURE..template.bytes.len()) {
        let mut changed = buffer.clone();
        changed[at] ^= 0xff;
        assert_eq!(send(changed), right, "byte {at}");
    }
}

#[test]
fn a_vlan_keeps_its_priority_and_an_address_of_ipv6_its_network() {
    let bytes = frame(true, true, true, 40, 0);
    let fields = vec![
        field("vlan.id", Pattern::Increment { first: Some(4094), step: 1, count: 2 }),
        field("ipv6.dst", Pattern::List(vec![1 << 64 | 2, 3])),
        field("ipv6.src", Pattern::Increment { first: Some(u128::MAX), step: 1, count: 1 }),
    ];
    let frames = written(&stream(bytes.clone(), fields, false), 2);
    assert_eq!(frames[0][14..16], [0x4f, 0xfe]);
    assert_eq!(frames[1][14..16], [0x4f, 0xff]);
    assert_eq!(frames[0][18 + 24..18 + 40], (1u128 << 64 | 2).to_be_bytes());
    assert_eq!(frames[1][18 + 24..18 + 40], 3u128.to_be_bytes());
    assert_eq!(frames[1][18 + 8..18 + 24], [0xff; 16]);
    assert!(frames.iter().all(|frame| is_right(frame)));
}

#[test]
fn what_cannot_be_is_refused_with_words() {
    let bytes = || frame(false, true, false, 18, 0);
    let at = |offset, width| Place::At { offset, width };
    let one = |place| Field { place, pattern: Pattern::List(vec![1]) };
    let cases = [
        (stream(bytes(), vec![one(at(59, 2))], false), "ends at byte 61, and 60"),
        (stream(bytes(), vec![one(at(usize::MAX, 2))], false), "ends at byte"),
        (stream(bytes(), vec![one(at(42, 1))], true), "ends at byte 43, and 42"),
        (stream(bytes(), vec![one(at(0, 9))], false), "1 to 8 bytes"),
        (stream(bytes(), vec![one(at(24, 2))], false), "is a checksum"),
        (stream(bytes(), vec![one(at(6, 4)), random("eth.src")], false), "in common"),
        (stream(bytes(), vec![random("tcp.sport")], false), "has no tcp.sport"),
        (stream(bytes(), vec![random("vlan.id")], false), "has no vlan.id"),
        (stream(bytes(), vec![random("ip.sorce")], false), "no field \"ip.sorce\""),
        (stream(bytes()[..50].to_vec(), vec![], true), "8 of payload"),
        (
            stream(bytes(), vec![field("udp.sport", Pattern::List(vec![]))], false),
            "without a value",
        ),
        (stream(bytes(), vec![field("udp.sport", Pattern::List(vec![70_000]))], false), "65535"),
        (
            stream(
                bytes(),
                vec![field("udp.sport", Pattern::Increment { first: None, step: 1, count: 0 })],
                false,
            ),
            "one value at least",
        ),
        (
            stream(
                bytes(),
                vec![field(
                    "udp.sport",
                    Pattern::Increment { first: Some(65_000), step: 1, count: 1000 },
                )],
                false,
            ),
            "ends at 65999",
        ),
        (
            stream(
                bytes(),
                vec![field("ip.src", Pattern::Random { low: Some(9), high: Some(8), seed: 0 })],
                false,
            ),
            "no range",
        ),
        (stream(vec![0; 13], vec![], false), "has 13 bytes"),
        (Stream { burst: 0, ..stream(bytes(), vec![], false) }, "a burst"),
        (Stream { rate: Some(0.0), ..stream(bytes(), vec![], false) }, "a rate"),
        (Stream { frames: vec![], ..stream(bytes(), vec![], false) }, "no frame"),
    ];
    for (stream, words) in cases {
        let error = Program::new(&stream, 9000).unwrap_err().to_string();
        assert!(error.contains(words), "{error:?} does not say {words:?}");
    }
}

#[test]
fn a_receiver_finds_a_changed_byte_in_front_of_the_signature() {
    let fields = vec![field("payload", Pattern::List(vec![7]))];
    let stream = stream(frame(false, true, false, 60, 0), fields, true);
    let program = Program::new(&stream, 9000).unwrap();
    let sent = &written(&stream, 1)[0];
    let judge = |frame: &[u8]| {
        let end = frame.len() - SIGNATURE;
        program.is_whole(0, &mut Vec::new(), |to| {
            to.copy_from_slice(&frame[end - to.len()..end]);
            true
        })
    };
    assert!(judge(sent));
    for at in 50..84 {
        let mut changed = sent.clone();
        changed[at] ^= 4;
        assert!(!judge(&changed), "byte {at}");
    }
}

proptest! {
    #[test]
    fn any_bytes_have_a_layout_inside_them(bytes in prop::collection::vec(any::<u8>(), 0..120)) {
        let layout = Layout::of(&bytes);
        prop_assert!(layout.payload <= bytes.len());
        if let Some(transport) = layout.transport {
            prop_assert!(transport.checksum() + 2 <= transport.end.max(transport.at + 20));
            prop_assert!(transport.end <= bytes.len());
        }
    }
}
