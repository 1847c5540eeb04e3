#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use super::*;
use crate::memory::{JUMBO_SIZE, PageRequest, PageSize, Placement, Pool, Region, RegionOptions};
use crate::net::packet::burst::Burst;
use crate::net::packet::header::{self, Front, HASH_HEADER_LEN, HEADER_LEN};
use crate::net::queue::claim::Reclaim;
use crate::net::queue::{AnyRing, Common, RxQueue, TxQueue};
use crate::notify::Doorbell;
use crate::virtio::ring::RingOptions;
use crate::virtio::ring::testing::{Device, PackedDevice, SplitDevice};
use proptest::prelude::*;
use std::sync::Arc;

const SIZE: u16 = 16;
const ALL: Features = Features::SEND_OFFLOADS;
const LENGTHS: [usize; 3] = [10, HEADER_LEN, HASH_HEADER_LEN];

fn pool() -> Arc<Pool> {
    let options = RegionOptions {
        size: 4 << 20,
        pages: PageRequest::Exactly(PageSize::Base),
        placement: Placement::Virtual,
        node: None,
        directory: None,
        buffer_size: 2048,
        jumbo_buffers: Some(4),
        jumbo_size: None,
    };
    Region::new(&options).unwrap().pool()
}

/// A TCP packet over IPv4 of so many bytes in all, whose checksum field is the pseudo-header's.
fn packet(length: usize) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..length).map(|i| (i * 7) as u8).collect();
    frame[12..14].copy_from_slice(&[8, 0]);
    frame[34 + 12] = 5 << 4;
    frame[34 + 16..34 + 18].copy_from_slice(&[0x12, 0x34]);
    frame
}

fn checksum() -> Offload {
    Offload { flags: Offload::NEEDS_CSUM, csum_start: 34, csum_offset: 16, ..Offload::NONE }
}

fn segmented() -> Offload {
    Offload { gso_type: Offload::TCPV4, gso_size: 1000, ..checksum() }
}

fn check(offload: Offload, frame: &[u8], can: Features) -> Result<Offload, Refusal> {
    // SAFETY: these are the bytes of the frame.
    unsafe { offload.checked(frame.as_ptr(), frame.len(), can) }
}

fn adapt(offload: Offload, frame: &mut [u8], can: Features) -> Result<Offload, Refusal> {
    // SAFETY: these are the bytes of the frame.
    unsafe { offload.adapted(frame.as_mut_ptr(), frame.len(), can) }
}

/// The sum by the book: 16 bits at a time, in network order.
fn plain_sum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[test]
fn what_is_right_gets_the_exact_header_length() {
    let mut frame = packet(3000);
    assert_eq!(check(checksum(), &frame, ALL), Ok(checksum()));
    assert_eq!(check(segmented(), &frame, ALL), Ok(Offload { hdr_len: 54, ..segmented() }));
    frame[46] = 8 << 4;
    let exact = Offload { hdr_len: 66, ..segmented() };
    for hdr_len in [0, 66, 100, 3000] {
        assert_eq!(check(Offload { hdr_len, ..segmented() }, &frame, ALL), Ok(exact));
    }
    let ecn = Offload { gso_type: Offload::TCPV4 | Offload::ECN, ..segmented() };
    assert_eq!(check(ecn, &frame, ALL), Ok(Offload { hdr_len: 66, ..ecn }));
    let datagrams = Offload { gso_type: Offload::UDP_L4, csum_offset: 6, ..segmented() };
    assert_eq!(check(datagrams, &frame, ALL), Ok(Offload { hdr_len: 42, ..datagrams }));
    // Two VLAN tags.
    let mut tagged = frame[..12].to_vec();
    tagged.extend([0x88, 0xa8, 0, 1, 0x81, 0, 0, 2]);
    tagged.extend(&frame[12..]);
    let later = Offload { csum_start: 42, ..segmented() };
    assert_eq!(check(later, &tagged, ALL), Ok(Offload { hdr_len: 74, ..later }));
    // What only a receiver is told, and what nobody defined.
    for flags in [Offload::DATA_VALID, 0x08, 0xf8] {
        assert_eq!(
            check(Offload { flags, hdr_len: 9, ..Offload::NONE }, &frame, ALL),
            Ok(Offload::NONE)
        );
    }
}

#[test]
fn every_wrong_field_is_refused() {
    let frame = packet(3000);
    let wrong = |offload: Offload| check(offload, &frame, ALL).unwrap_err();
    let (start, offset, length) = (34, 16, 3000);
    assert_eq!(
        wrong(Offload { csum_start: 2983, ..checksum() }),
        Refusal::Checksum { start: 2983, offset, length }
    );
    assert_eq!(
        wrong(Offload { csum_offset: 2965, ..checksum() }),
        Refusal::Checksum { start, offset: 2965, length }
    );
    assert!(check(Offload { csum_offset: 2964, ..checksum() }, &frame, ALL).is_ok());
    let most = Offload { csum_start: u16::MAX, csum_offset: u16::MAX, ..checksum() };
    assert!(matches!(wrong(most), Refusal::Checksum { .. }));
    for gso_type in (1..=u8::MAX).filter(|gso| !matches!(gso & 0x7f, 1 | 3 | 4 | 5)) {
        assert_eq!(wrong(Offload { gso_type, ..segmented() }), Refusal::Type(gso_type));
    }
    for gso in [Offload::UDP, Offload::UDP_L4] {
        let gso_type = gso | Offload::ECN;
        assert_eq!(wrong(Offload { gso_type, ..segmented() }), Refusal::Type(gso_type));
    }
    assert_eq!(wrong(Offload { gso_size: 0, ..segmented() }), Refusal::NoSize);
    for flags in [0, Offload::DATA_VALID] {
        assert_eq!(wrong(Offload { flags, ..segmented() }), Refusal::NoChecksum);
    }
    let coalesced = Offload { flags: Offload::RSC_INFO | Offload::NEEDS_CSUM, ..segmented() };
    assert_eq!(wrong(coalesced), Refusal::Coalesced);
    for csum_offset in [0, 6, 15, 17] {
        let refusal = Refusal::Field { offset: csum_offset, right: 16 };
        assert_eq!(wrong(Offload { csum_offset, ..segmented() }), refusal);
    }
    let of = |gso_type| Offload { gso_type, ..segmented() };
    assert_eq!(
        wrong(of(Offload::TCPV6)),
        Refusal::Protocol { gso_type: Offload::TCPV6, ethertype: 0x0800 }
    );
    for csum_start in [0, 13, 2981] {
        assert!(matches!(wrong(Offload { csum_start, ..segmented() }), Refusal::Headers { .. }));
    }
    for hdr_len in [1, 53, 3001, u16::MAX] {
        let refusal = Refusal::HeaderLength { says: hdr_len, is: 54, length: 3000 };
        assert_eq!(wrong(Offload { hdr_len, ..segmented() }), refusal);
    }
    let mut short = packet(3000);
    for words in [0, 4] {
        short[46] = words << 4;
        assert!(matches!(check(segmented(), &short, ALL), Err(Refusal::Headers { .. })));
    }
    let mut long = packet(54);
    long[46] = 15 << 4;
    assert_eq!(check(segmented(), &long, ALL), Err(Refusal::Headers { need: 94, length: 54 }));
    // Each says what is wrong in words, and none panics on a frame of nothing.
    for length in 0..64 {
        let refusal = check(segmented(), &packet(64)[..length], ALL);
        assert!(length >= 54 || !refusal.unwrap_err().to_string().is_empty());
    }
}

#[test]
fn each_feature_counts() {
    let frame = packet(3000);
    for (gso_type, feature) in [
        (Offload::GSO_NONE, Features::CSUM),
        (Offload::TCPV4, Features::HOST_TSO4),
        (Offload::TCPV4 | Offload::ECN, Features::HOST_ECN),
        (Offload::UDP, Features::HOST_UFO),
        (Offload::UDP_L4, Features::HOST_USO),
    ] {
        let csum_offset = if gso_type & 0x7f > 1 { 6 } else { 16 };
        let offload = Offload { gso_type, csum_offset, ..segmented() };
        assert_eq!(check(offload, &frame, ALL - feature), Err(Refusal::NotNegotiated(feature)));
        assert!(check(offload, &frame, ALL).is_ok());
    }
    let mut six = frame;
    six[12..14].copy_from_slice(&[0x86, 0xdd]);
    let offload = Offload { gso_type: Offload::TCPV6, ..segmented() };
    let missing = Refusal::NotNegotiated(Features::HOST_TSO6);
    assert_eq!(check(offload, &six, ALL - Features::HOST_TSO6), Err(missing));
}

#[test]
fn a_checksum_is_calculated_where_the_device_cannot() {
    for length in [52, 53, 54, 55, 999, 2081, 2082, 2083, 9000, JUMBO_SIZE] {
        let mut frame = packet(length);
        assert_eq!(adapt(checksum(), &mut frame, Features::NONE), Ok(Offload::NONE));
        let mut expected = packet(length);
        let sum = !plain_sum(&expected[34..]);
        expected[50..52].copy_from_slice(&sum.to_be_bytes());
        assert!(frame == expected, "{length} bytes");
    }
    // Zero is never sent: to UDP it means that there is none.
    let mut frame = vec![0; 60];
    frame[34] = 0xff;
    frame[35] = 0xff;
    assert_eq!(adapt(checksum(), &mut frame, Features::NONE), Ok(Offload::NONE));
    assert_eq!(frame[50..52], [0xff, 0xff]);
    // What it can do, it is left to do; what only it can do is refused, and the frame is as before.
    let mut frame = packet(3000);
    assert_eq!(adapt(checksum(), &mut frame, Features::CSUM), Ok(checksum()));
    let hint = Offload { hdr_len: 7, ..segmented() };
    assert_eq!(adapt(hint, &mut frame, ALL), Ok(Offload { hdr_len: 54, ..segmented() }));
    for can in [Features::NONE, Features::CSUM] {
        let refusal = adapt(segmented(), &mut frame, can).unwrap_err();
        assert!(refusal.is_missing(), "{refusal}");
    }
    assert!(frame == packet(3000));
}

#[test]
fn headers_are_where_their_length_says() {
    let pool = pool();
    let mut ids = Vec::new();
    pool.take(&mut ids, 1);
    let data = pool.data_ptr(ids[0]);
    for length in LENGTHS {
        let bytes = [1, 0x81, 2, 3, 4, 5, 6, 7, 8, 9];
        let offload = Offload {
            flags: 1,
            gso_type: 0x81,
            hdr_len: 0x0302,
            gso_size: 0x0504,
            csum_start: 0x0706,
            csum_offset: 0x0908,
        };
        // SAFETY: the buffer is ours and has 64 bytes in front of its data.
        let (read, before) = unsafe {
            data.sub(64).write_bytes(0xee, 64);
            header::write(data, length, offload);
            (header::read(data, length), std::slice::from_raw_parts(data.sub(64), 64))
        };
        assert_eq!(read, offload);
        assert!(before[..64 - length].iter().all(|&byte| byte == 0xee));
        assert_eq!(before[64 - length..][..10], bytes);
        assert!(before[64 - length + 10..].iter().all(|&byte| byte == 0));
    }
    pool.give(&ids);
}

/// Frames with different headers in one burst: none loses what is left to do to it.
#[test]
fn bursts_of_different_headers_are_joined() {
    let pool = pool();
    for first in [0, 10, 12, 20] {
        for second in [0, 10, 12, 20] {
            let mut joined = burst(&pool, first, &[(segmented(), packet(100))]);
            let mut other = burst(&pool, second, &[(checksum(), packet(60))]);
            joined.append(&mut other);
            assert!(other.is_empty());
            let expected = [(first, segmented()), (second, checksum())]
                .map(|(headers, offload)| if headers == 0 { Offload::NONE } else { offload });
            match joined.offloads() {
                None => assert_eq!((first, second), (0, 0)),
                Some(offloads) => assert_eq!(offloads, expected, "{first} and {second}"),
            }
            assert!(joined.copy_out(1).unwrap() == packet(60));
        }
    }
    assert_eq!(pool.free(), pool.count());
}

/// A burst as if received, with a header of so many bytes in front of each frame.
fn burst(pool: &Arc<Pool>, headers: u8, frames: &[(Offload, Vec<u8>)]) -> Burst {
    let mut burst = Burst::new(pool.clone());
    burst.expect(if headers > 0 { Front::with_offloads(headers.into()) } else { Front::NONE });
    for (offload, frame) in frames {
        let mut ids = Vec::new();
        if frame.len() > pool.capacity() {
            ids.extend(pool.take_jumbo());
        } else {
            pool.take(&mut ids, 1);
        }
        // SAFETY: the buffer is ours and large enough.
        unsafe {
            pool.data_ptr(ids[0]).copy_from_nonoverlapping(frame.as_ptr(), frame.len());
            if headers > 0 {
                header::write(pool.data_ptr(ids[0]), headers.into(), *offload);
            }
        }
        burst.push(ids[0], frame.len() as u32);
    }
    burst
}

/// A transmit queue with these features, and the device behind it.
fn transmitter<D: Device>(
    pool: &Arc<Pool>,
    packed: bool,
    header_len: usize,
    can: Features,
) -> (TxQueue, D) {
    let (common, device) = queue::<D>(pool, packed, header_len);
    (TxQueue::new(common).with_features(can), device)
}

fn queue<D: Device>(pool: &Arc<Pool>, packed: bool, header_len: usize) -> (Common, D) {
    let options = RingOptions::new(SIZE);
    let ring = AnyRing::new(packed, pool.region(), &options).unwrap();
    let common = Common::new(1, ring, pool.clone(), Doorbell::Silent, Arc::default())
        .with_header(header_len);
    let at = common.addresses(0);
    let device = D::new(pool.region(), (at.descriptors, at.driver, at.device), &options);
    (common, device)
}

/// Sends bursts on from every header length to every other, by both rings.
#[test]
fn a_burst_is_sent_on_with_its_metadata() {
    fn send_on<D: Device>(packed: bool, from: u8, to: usize) {
        let pool = pool();
        let (mut tx, mut device) = transmitter::<D>(&pool, packed, to, ALL - Features::HOST_USO);
        let datagrams = Offload { gso_type: Offload::UDP_L4, csum_offset: 6, ..segmented() };
        let bad = Offload { csum_start: 60_000, ..checksum() };
        let frames = [
            (checksum(), packet(60)),
            (datagrams, packet(2000)),
            (Offload::NONE, packet(61)),
            (bad, packet(62)),
            (segmented(), packet(30_000)),
            (Offload { flags: Offload::DATA_VALID, ..Offload::NONE }, packet(63)),
        ];
        let mut burst = burst(&pool, from, &frames);
        assert_eq!(tx.send_burst(&mut burst).unwrap(), 4);
        assert!(burst.is_empty());
        let stats = tx.common.stats.snapshot();
        assert_eq!((stats.no_offload, stats.bad_offload, stats.ring_full), (1, 1, 0));
        assert_eq!((tx.refused(), stats.packets), (2, 4));
        let exact = Offload { hdr_len: 54, ..segmented() };
        for (offload, length) in
            [(checksum(), 60), (Offload::NONE, 61), (exact, 30_000), (Offload::NONE, 63)]
        {
            let chain = device.take().unwrap();
            assert_eq!(chain.parts[0].len as usize, to + length);
            let bytes = device.view().read(chain.parts[0].iova, to + length);
            let mut expected = vec![0; to];
            let fields =
                [offload.hdr_len, offload.gso_size, offload.csum_start, offload.csum_offset];
            expected[..2].copy_from_slice(&[offload.flags, offload.gso_type]);
            for (at, field) in fields.into_iter().enumerate() {
                expected[2 + 2 * at..4 + 2 * at].copy_from_slice(&field.to_le_bytes());
            }
            assert!(bytes[..to] == expected, "from {from} to {to}, {length} bytes");
            assert!(bytes[to..] == packet(length));
            device.put(&chain, 0);
        }
        device.flush();
        tx.reclaim().unwrap();
        assert_eq!((pool.free(), pool.jumbo_free()), (pool.count(), 4));
    }
    for from in LENGTHS {
        for to in LENGTHS {
            send_on::<SplitDevice>(false, from as u8, to);
            send_on::<PackedDevice>(true, from as u8, to);
        }
    }
}

/// What does not fit the ring stays in the burst as it was, refused frames in between or not.
#[test]
fn a_full_ring_keeps_the_rest() {
    let pool = pool();
    let (mut tx, mut device) = transmitter::<SplitDevice>(&pool, false, 12, Features::CSUM);
    let frames: Vec<_> = (0..40)
        .map(|n| (if n % 4 == 1 { segmented() } else { checksum() }, packet(100 + n)))
        .collect();
    let mut burst = burst(&pool, 20, &frames);
    let (mut sent, mut lengths) = (0, Vec::new());
    while !burst.is_empty() {
        sent += tx.send_burst(&mut burst).unwrap();
        assert_eq!(burst.offloads().map(|all| all.len()), Some(burst.len()));
        while let Some(chain) = device.take() {
            lengths.push(chain.parts[0].len as usize - 12 - 100);
            device.put(&chain, 0);
        }
        device.flush();
    }
    assert_eq!(sent, 30);
    assert_eq!(lengths, (0..40).filter(|n| n % 4 != 1).collect::<Vec<_>>());
    assert_eq!(tx.common.stats.snapshot().no_offload, 10);
    tx.reclaim_all();
    assert_eq!(pool.free(), pool.count());
}

/// Frames that were described for a device that came back with fewer features before they were queued:
/// the checksum is calculated, what cannot be done is dropped and counted.
#[test]
fn what_is_described_is_what_is_agreed() {
    let pool = pool();
    let (mut tx, mut device) = transmitter::<SplitDevice>(&pool, false, 12, ALL);
    let frames = [(checksum(), packet(60)), (segmented(), packet(2000)), (checksum(), packet(61))];
    let mut described = burst(&pool, 12, &frames);
    tx.can = Features::NONE;
    assert_eq!(tx.send_described(&mut described, ALL).unwrap(), 3);
    assert!(described.is_empty());
    let stats = tx.common.stats.snapshot();
    assert_eq!((stats.packets, stats.no_offload, stats.bad_offload), (2, 1, 0));
    for length in [60, 61] {
        let chain = device.take().unwrap();
        let bytes = device.view().read(chain.parts[0].iova, 12 + length);
        assert!(bytes[..12].iter().all(|&byte| byte == 0), "{bytes:?}");
        assert!(bytes[12..] != packet(length), "its checksum was calculated");
        device.put(&chain, 0);
    }
    // Described for what is in force they go as they are.
    tx.can = ALL;
    let mut described = burst(&pool, 12, &frames);
    assert_eq!(tx.send_described(&mut described, ALL).unwrap(), 3);
    let chain = device.take().unwrap();
    assert_eq!(device.view().read(chain.parts[0].iova, 1), [checksum().flags]);
    tx.reclaim_all();
}

/// A plain frame that goes out in a buffer that had metadata has none.
#[test]
fn metadata_is_cleared_where_there_is_none() {
    let pool = pool();
    for header_len in LENGTHS {
        let (mut tx, mut device) = transmitter::<SplitDevice>(&pool, false, header_len, ALL);
        let mut burst = burst(&pool, header_len as u8, &[(segmented(), packet(100))]);
        burst.front = Front::NONE;
        assert_eq!(tx.send_burst(&mut burst).unwrap(), 1);
        let chain = device.take().unwrap();
        let bytes = device.view().read(chain.parts[0].iova, header_len);
        assert!(bytes.iter().all(|&byte| byte == 0), "{header_len}: {bytes:?}");
        tx.reclaim_all();
    }
}

/// A receive queue says where the headers are, also in a burst that has frames already.
#[test]
fn received_frames_come_with_what_the_device_says() {
    let pool = pool();
    for header_len in LENGTHS {
        let (common, mut device) = queue::<SplitDevice>(&pool, false, header_len);
        let mut rx = RxQueue::new(common, false).with_front(Front::with_offloads(header_len));
        rx.refill();
        for mut burst in [
            Burst::new(pool.clone()),
            burst(&pool, 0, &[(Offload::NONE, packet(70))]),
            burst(&pool, 20, &[(segmented(), packet(70))]),
        ] {
            let before = burst.len();
            let chain = device.take().unwrap();
            let mut bytes = vec![0; header_len];
            bytes[..10].copy_from_slice(&[1, 0, 0, 0, 0, 0, 34, 0, 16, 0]);
            bytes.extend(packet(80));
            device.view().write(chain.parts[0].iova, &bytes);
            device.put(&chain, bytes.len() as u32);
            device.flush();
            assert_eq!(rx.recv(8, &mut burst).unwrap(), 1);
            assert_eq!(burst.offload(before), Some(checksum()));
            assert_eq!(burst.copy_out(before).unwrap(), packet(80));
            if before > 0 {
                let first = burst.offload(0).unwrap();
                assert!(first == segmented() || first == Offload::NONE);
            }
        }
        rx.reclaim_all();
    }
    assert_eq!(pool.free(), pool.count());
}

/// Without negotiated offloads, only whether the device has verified the checksum counts.
#[test]
fn a_device_vouches_for_checksums_without_negotiated_offloads() {
    let pool = pool();
    for header_len in LENGTHS {
        let (common, mut device) = queue::<SplitDevice>(&pool, false, header_len);
        let front = Front::of(Features::VERSION_1, header_len);
        let mut rx = RxQueue::new(common, false).with_front(front);
        rx.refill();
        let (valid, none) = (Offload::DATA_VALID, Offload::NONE);
        for (flags, known) in [
            (0, none),
            (valid, Offload { flags: valid, ..none }),
            (1, none),
            (0xff, Offload { flags: valid, ..none }),
        ] {
            for mut burst in [
                Burst::new(pool.clone()),
                burst(&pool, 0, &[(none, packet(70))]),
                burst(&pool, 20, &[(segmented(), packet(70))]),
            ] {
                let before = burst.len();
                let (headers, offload) = (burst.headers() > 0, burst.offload(0));
                let chain = device.take().unwrap();
                let mut bytes = vec![0; header_len];
                bytes[..10].copy_from_slice(&[flags, 1, 2, 0, 3, 0, 34, 0, 16, 0]);
                bytes.extend(packet(80));
                device.view().write(chain.parts[0].iova, &bytes);
                device.put(&chain, bytes.len() as u32);
                device.flush();
                assert_eq!(rx.recv(8, &mut burst).unwrap(), 1);
                assert_eq!(burst.receive_offload(before), known);
                assert_eq!(burst.offload(before), headers.then_some(known));
                if before > 0 {
                    assert_eq!(burst.offload(0), offload);
                    assert_eq!(burst.receive_offload(0), offload.unwrap_or_default());
                }
            }
        }
        rx.reclaim_all();
    }
    assert_eq!(pool.free(), pool.count());
}

fn any_offload() -> impl Strategy<Value = Offload> {
    let number = || prop_oneof![Just(0u16), Just(6), Just(16), Just(34), 0u16..200, any::<u16>()];
    let gso = prop_oneof![Just(0u8), Just(1), Just(3), Just(4), Just(5), Just(0x81), any::<u8>()];
    (prop_oneof![0u8..8, any::<u8>()], gso, number(), number(), number(), number()).prop_map(
        |(flags, gso_type, hdr_len, gso_size, csum_start, csum_offset)| Offload {
            flags,
            gso_type,
            hdr_len,
            gso_size,
            csum_start,
            csum_offset,
        },
    )
}

proptest! {
    /// Whatever a device says of whatever bytes: what comes out is consistent, is within the
    /// frame, needs nothing that is not in force, and is taken again as it is.
    #[test]
    fn hostile_headers(
        offload in any_offload(),
        mut frame in prop::collection::vec(any::<u8>(), 0..200),
        ip in 0usize..4,
        can in 0u8..32,
    ) {
        if frame.len() >= 14 && ip > 0 {
            frame[12..14].copy_from_slice(&[[8, 0], [0x86, 0xdd], [0x81, 0]][ip - 1]);
        }
        let features = [Features::CSUM, Features::HOST_TSO4, Features::HOST_TSO6,
            Features::HOST_USO, Features::HOST_ECN];
        let can = features.into_iter().enumerate()
            .filter(|(bit, _)| can & 1 << bit != 0)
            .fold(Features::NONE, |set, (_, feature)| set | feature);
        let length = frame.len();
        if let Ok(out) = adapt(offload, &mut frame, can) {
            prop_assert_eq!(out.needs() - can, Features::NONE);
            prop_assert!(matches!(out.flags, 0 | Offload::NEEDS_CSUM));
            if out.flags != 0 {
                prop_assert!(usize::from(out.csum_start) + usize::from(out.csum_offset) + 2 <= length);
            }
            if out.gso_type != 0 {
                prop_assert!(out.gso_size > 0 && out.flags == Offload::NEEDS_CSUM);
                prop_assert!(usize::from(out.hdr_len) <= length);
                prop_assert!(out.hdr_len >= out.csum_start + 8);
            }
            prop_assert_eq!(check(out, &frame, can), Ok(out));
        }
        prop_assert_eq!(frame.len(), length);
    }
}
