//! Devices that write invalid data to the rings. Every call returns a result or a [`Violation`] in
//! bounded time, and after a violation a ring does nothing more until it is reset.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod ring_model;

use proptest::prelude::*;
use ring_model::region;
use std::collections::HashSet;
use virtnic::Error;
use virtnic::memory::Iova;
use virtnic::virtio::ring::testing::{Chain, Device, PackedDevice, SplitDevice, Width};
use virtnic::virtio::ring::{PackedRing, Ring, RingOptions, SplitRing, Violation};

const BUFFER: (Iova, u32) = (Iova(1 << 36), 100);

/// A ring whose device holds four writable buffers of 100 bytes, tokens 0 to 3.
fn with_four<R: Ring, D: Device>(in_order: bool) -> (R, D, Vec<Chain>) {
    let options = RingOptions { in_order, ..RingOptions::new(8) };
    let region = region();
    let mut ring = R::new(&region, &options).unwrap();
    let mut device = D::new(&region, ring.addresses(), &options);
    ring.add(true, 4, |i| (i as u32, BUFFER.0, BUFFER.1));
    ring.publish();
    let chains = device.take_all();
    assert_eq!(chains.len(), 4);
    (ring, device, chains)
}

/// Returns the violation. Checks that the ring has stopped, and that a reset returns exactly the
/// tokens that it still had.
fn refused<R: Ring>(mut ring: R, taken: usize) -> Violation {
    let mut tokens = HashSet::new();
    let violation = ring.pop(usize::MAX, |token, _| assert!(tokens.insert(token))).unwrap_err();
    assert_eq!(tokens.len(), taken);
    assert_eq!(ring.poisoned(), Some(violation));
    assert_eq!(ring.pop(usize::MAX, |_, _| panic!("it is poisoned")), Err(violation));
    assert_eq!(ring.free(), 0);
    assert_eq!(ring.add(true, 1, |_| panic!("it is poisoned")), 0);
    assert!(!ring.add_chain(9, &[BUFFER], &[]));
    assert!(!ring.publish());
    ring.reset(|token| assert!(tokens.insert(token), "{token} came back twice"));
    assert_eq!(tokens.len(), 4);
    assert_eq!((ring.poisoned(), ring.free(), ring.in_flight()), (None, 8, 0));
    assert_eq!(ring.pop(usize::MAX, |_, _| panic!("it is empty")), Ok(0));
    let error = Error::from(violation);
    assert!(matches!(&error, Error::Device(text) if text.contains(&violation.to_string())));
    violation
}

#[test]
fn used_idx_jumps_past_what_is_available() {
    for (jump, from) in [(5u16, 0u16), (0x8000, 0), (u16::MAX, 0)] {
        let (ring, device, _) = with_four::<SplitRing, SplitDevice>(false);
        let idx = device.fields().into_iter().find(|field| field.name == "used.idx").unwrap();
        device.view().set(idx, jump.into());
        let violation = refused(ring, 0);
        assert_eq!(violation, Violation::UsedIndex { from, to: jump, in_flight: 4 });
    }
}

#[test]
fn used_idx_goes_back() {
    let (mut ring, mut device, chains) = with_four::<SplitRing, SplitDevice>(false);
    device.put(&chains[0], 1);
    device.put(&chains[1], 1);
    device.flush();
    let mut first = Vec::new();
    assert_eq!(ring.pop(2, |token, _| first.push(token)), Ok(2));
    let idx = device.fields().into_iter().find(|field| field.name == "used.idx").unwrap();
    device.view().set(idx, 1);
    let violation = ring.pop(2, |_, _| panic!("nothing new")).unwrap_err();
    assert_eq!(violation, Violation::UsedIndex { from: 2, to: 1, in_flight: 2 });
}

fn id_out_of_range<R: Ring, D: Device>(ids: &[u32]) {
    for in_order in [false, true] {
        for &id in ids {
            let (ring, mut device, chains) = with_four::<R, D>(in_order);
            device.put(&chains[0], 7);
            device.put_raw(id, 7, 1);
            device.flush();
            assert_eq!(refused(ring, 1), Violation::IdOutOfRange { id, size: 8 });
        }
    }
}

#[test]
fn an_id_out_of_range() {
    id_out_of_range::<SplitRing, SplitDevice>(&[8, 0x1_0000, u32::MAX, 0x8000_0001]);
    id_out_of_range::<PackedRing, PackedDevice>(&[8, 0x8000, 0xffff]);
}

/// If the size is not a power of two, there are more slots than ids.
#[test]
fn an_id_between_the_size_and_the_next_power_of_two() {
    let options = RingOptions::new(5);
    let region = region();
    let mut ring = PackedRing::new(&region, &options).unwrap();
    let mut device = PackedDevice::new(&region, ring.addresses(), &options);
    ring.add(true, 4, |i| (i as u32, BUFFER.0, BUFFER.1));
    ring.publish();
    device.put_raw(6, 0, 1);
    device.flush();
    assert_eq!(ring.pop(1, |_, _| ()), Err(Violation::IdOutOfRange { id: 6, size: 5 }));
}

fn twice<R: Ring, D: Device>() {
    for in_order in [false, true] {
        let (ring, mut device, chains) = with_four::<R, D>(in_order);
        device.put(&chains[0], 7);
        device.put(&chains[0], 7);
        device.flush();
        assert_eq!(refused(ring, 1), Violation::NotInFlight { id: 0 });
    }
}

#[test]
fn a_buffer_is_used_twice() {
    twice::<SplitRing, SplitDevice>();
    twice::<PackedRing, PackedDevice>();
}

fn never_available<R: Ring, D: Device>() {
    for in_order in [false, true] {
        let (ring, mut device, _) = with_four::<R, D>(in_order);
        device.put_raw(5, 7, 1);
        device.flush();
        assert_eq!(refused(ring, 0), Violation::NotInFlight { id: 5 });
    }
}

#[test]
fn a_buffer_that_was_never_available() {
    never_available::<SplitRing, SplitDevice>();
    never_available::<PackedRing, PackedDevice>();
}

fn not_published<R: Ring, D: Device>() {
    for in_order in [false, true] {
        let (mut ring, mut device, chains) = with_four::<R, D>(in_order);
        ring.add(true, 1, |_| (4, BUFFER.0, BUFFER.1));
        // Correctly used buffers are still returned.
        device.put(&chains[0], 7);
        device.flush();
        assert_eq!(ring.pop(8, |token, _| assert_eq!(token, 0)), Ok(1));
        device.put_raw(4, 7, 1);
        device.flush();
        assert_eq!(ring.pop(8, |_, _| ()), Err(Violation::NotInFlight { id: 4 }));
    }
}

#[test]
fn a_buffer_that_was_added_but_not_published() {
    not_published::<SplitRing, SplitDevice>();
    not_published::<PackedRing, PackedDevice>();
}

#[test]
fn an_id_in_the_middle_of_a_chain() {
    let options = RingOptions::new(8);
    let region = region();
    let mut ring = SplitRing::new(&region, &options).unwrap();
    let mut device = SplitDevice::new(&region, ring.addresses(), &options);
    assert!(ring.add_chain(1, &[BUFFER, BUFFER], &[BUFFER]));
    ring.publish();
    assert_eq!(device.take().unwrap().descriptors, 3);
    device.put_raw(1, 7, 1);
    device.flush();
    assert_eq!(ring.pop(1, |_, _| ()), Err(Violation::NotInFlight { id: 1 }));
}

fn too_long<R: Ring, D: Device>() {
    for in_order in [false, true] {
        for len in [101, 0x8000_0000, u32::MAX] {
            let (ring, mut device, chains) = with_four::<R, D>(in_order);
            device.put(&chains[0], 100);
            device.put(&chains[1], len);
            device.flush();
            assert_eq!(refused(ring, 1), Violation::Length { id: 1, len, capacity: 100 });
        }
    }
}

#[test]
fn more_written_than_there_was_room_for() {
    too_long::<SplitRing, SplitDevice>();
    too_long::<PackedRing, PackedDevice>();
}

fn length_of_readable<R: Ring, D: Device>() {
    let options = RingOptions::new(8);
    let region = region();
    let mut ring = R::new(&region, &options).unwrap();
    let mut device = D::new(&region, ring.addresses(), &options);
    ring.add(false, 1, |_| (3, BUFFER.0, BUFFER.1));
    ring.publish();
    let chain = device.take().unwrap();
    device.put(&chain, 100);
    device.flush();
    assert_eq!(ring.pop(1, |token, len| assert_eq!((token, len), (3, 0))), Ok(1));
}

/// Some old devices report the length that they read (section 2.7.8.2), so this is not a violation.
#[test]
fn the_length_of_a_buffer_that_is_only_read_does_not_matter() {
    length_of_readable::<SplitRing, SplitDevice>();
    length_of_readable::<PackedRing, PackedDevice>();
}

#[test]
fn an_in_order_batch_that_ends_outside_itself() {
    let (ring, mut device, chains) = with_four::<SplitRing, SplitDevice>(true);
    // Two are reported as used, although the batch ends at the fourth.
    device.put_raw(chains[3].id.into(), 7, 1);
    device.put_raw(chains[3].id.into(), 7, 1);
    device.flush();
    assert_eq!(refused(ring, 1), Violation::OutOfOrder { id: 3, count: 2 });
}

/// Writes random fields between correct operations, on every kind of ring.
fn lies<R: Ring, D: Device>(options: RingOptions, plan: &[(usize, u64, u8)]) {
    let region = region();
    let mut ring = R::new(&region, &options).unwrap();
    let mut device = D::new(&region, ring.addresses(), &options);
    let fields = device.fields();
    let mut out = HashSet::new();
    let mut next = 0u32;
    for &(field, value, work) in plan {
        let writable = work & 1 != 0;
        if work & 2 != 0 {
            let count = usize::from(work >> 4);
            next += ring.add(writable, count, |i| {
                let token = next + i as u32;
                assert!(out.insert(token));
                (token, BUFFER.0, 100)
            }) as u32;
        } else if ring.add_chain(next, &[BUFFER, BUFFER], &[BUFFER][..usize::from(writable)]) {
            assert!(out.insert(next));
            next += 1;
        }
        if work & 4 != 0 {
            ring.publish();
            device.echo(usize::from(work >> 5));
        }
        let field = fields[field % fields.len()];
        // Values close to the current one find more than random values.
        let value = match value % 4 {
            0 => value,
            1 => device.view().get(field).wrapping_add(value >> 60),
            2 => device.view().get(field) ^ 1 << (value >> 58),
            _ if field.width == Width::Two => value >> 60,
            _ => value >> 56,
        };
        device.view().set(field, value);
        if work & 8 != 0 {
            ring.enable_interrupts_after((value >> 8) as u16);
        }
        let in_flight = ring.in_flight();
        let mut popped = 0;
        let result = ring.pop(usize::MAX, |token, len| {
            assert!(out.remove(&token), "{token} was not out");
            assert!(len <= 200, "{len} bytes in {token}");
            popped += 1;
        });
        assert!(popped <= in_flight);
        match result {
            Ok(count) => assert_eq!(count, popped),
            Err(violation) => {
                assert_eq!(ring.poisoned(), Some(violation));
                assert_eq!(ring.add(true, 1, |_| panic!("it is poisoned")), 0);
                break;
            }
        }
    }
    // No token is lost, whatever the device did.
    ring.reset(|token| assert!(out.remove(&token), "{token} was not out"));
    assert!(out.is_empty());
    assert_eq!(ring.free(), usize::from(options.size));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn a_split_device_that_lies(
        bits in 0u32..6,
        (event_idx, indirect, in_order) in any::<(bool, bool, bool)>(),
        plan in prop::collection::vec((0usize..4096, any::<u64>(), any::<u8>()), 1..100),
    ) {
        let options = RingOptions { size: 1 << bits, event_idx, indirect, in_order };
        lies::<SplitRing, SplitDevice>(options, &plan);
    }

    #[test]
    fn a_packed_device_that_lies(
        size in 1u16..64,
        (event_idx, indirect, in_order) in any::<(bool, bool, bool)>(),
        plan in prop::collection::vec((0usize..4096, any::<u64>(), any::<u8>()), 1..100),
    ) {
        let options = RingOptions { size, event_idx, indirect, in_order };
        lies::<PackedRing, PackedDevice>(options, &plan);
    }
}
