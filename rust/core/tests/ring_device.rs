//! Both ring formats with the in-process devices, including in-order batches, sizes that are not a
//! power of two, and wrap counters.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod ring_model;

use proptest::prelude::*;
use ring_model::{Behaviour, region, run, steps};
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Duration;
use virtnic::Error;
use virtnic::memory::Iova;
use virtnic::virtio::ring::testing::{Device, PackedDevice, SplitDevice};
use virtnic::virtio::ring::{PackedRing, Ring, RingOptions, SplitRing};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn packed_loses_and_doubles_nothing(
        size in prop_oneof![1u16..100, Just(128), Just(256)],
        (event_idx, indirect, in_order) in any::<(bool, bool, bool)>(),
        start in prop_oneof![0usize..600, 65_000usize..66_000],
        steps in steps(150),
    ) {
        let options = RingOptions { size, event_idx, indirect, in_order };
        let behaviour = Behaviour { in_order, exact: false, start };
        run::<PackedRing, PackedDevice>(options, behaviour, &steps);
    }

    #[test]
    fn packed_keeps_the_order_of_the_device(size in 1u16..100, steps in steps(150)) {
        let behaviour = Behaviour { in_order: true, exact: false, start: 0 };
        run::<PackedRing, PackedDevice>(RingOptions::new(size), behaviour, &steps);
    }

    #[test]
    fn split_takes_batches_in_order(
        bits in 0u32..8,
        (event_idx, indirect) in any::<(bool, bool)>(),
        start in prop_oneof![Just(0usize), 65_000usize..66_000],
        steps in steps(150),
    ) {
        let options = RingOptions { size: 1 << bits, event_idx, indirect, in_order: true };
        let behaviour = Behaviour { in_order: true, exact: true, start };
        run::<SplitRing, SplitDevice>(options, behaviour, &steps);
    }
}

/// Goes round the largest possible ring several times.
fn largest<R: Ring, D: Device>() {
    let options = RingOptions::new(32_768);
    let region = region();
    let mut ring = R::new(&region, &options).unwrap();
    let mut device = D::new(&region, ring.addresses(), &options);
    for lap in 0..5u32 {
        let added = ring.add(true, usize::MAX, |i| (lap ^ i as u32, Iova(1 << 36), 60));
        assert_eq!(added, 32_768);
        assert_eq!(ring.free(), 0);
        assert_eq!(ring.add(false, 1, |_| panic!("it is full")), 0);
        ring.publish();
        assert_eq!(ring.in_flight(), 32_768);
        assert_eq!(device.echo(usize::MAX), 32_768);
        let mut next = 0;
        let popped = ring.pop(usize::MAX, |token, len| {
            assert_eq!((token, len), (lap ^ next, 60));
            next += 1;
        });
        assert_eq!(popped, Ok(32_768));
    }
}

#[test]
fn the_largest_rings() {
    largest::<SplitRing, SplitDevice>();
    largest::<PackedRing, PackedDevice>();
}

#[test]
fn invalid_ring_sizes_are_refused() {
    let region = region();
    for size in [0, 3, 1000, 32_769] {
        let error = SplitRing::new(&region, &RingOptions::new(size)).unwrap_err();
        assert!(matches!(&error, Error::Invalid(text) if text.contains(&size.to_string())));
    }
    for size in [0, 32_769, u16::MAX] {
        assert!(PackedRing::new(&region, &RingOptions::new(size)).is_err());
    }
}

#[test]
fn areas_are_aligned_and_apart() {
    let region = region();
    for size in [1, 2, 256, 1024] {
        let (descriptors, driver, device) =
            SplitRing::new(&region, &RingOptions::new(size)).unwrap().addresses();
        // As the legacy interface computes them (section 2.7.2).
        assert_eq!(descriptors.0 % 4096, 0);
        assert_eq!(driver.0, descriptors.0 + 16 * u64::from(size));
        assert_eq!(device.0, (driver.0 + 6 + 2 * u64::from(size)).next_multiple_of(4096));
    }
    for size in [1u16, 3, 256, 1000] {
        let (descriptors, driver, device) =
            PackedRing::new(&region, &RingOptions::new(size)).unwrap().addresses();
        assert_eq!((descriptors.0 % 16, driver.0 % 4, device.0 % 4), (0, 0, 0));
        assert!(driver.0 >= descriptors.0 + 16 * u64::from(size));
        assert!(device.0 - driver.0 >= 64);
    }
}

/// With more chains than a ring has indirect tables, the others use direct descriptors.
fn tables_run_out<R: Ring, D: Device>() {
    let options = RingOptions { indirect: true, ..RingOptions::new(512) };
    let region = region();
    let mut ring = R::new(&region, &options).unwrap();
    let mut device = D::new(&region, ring.addresses(), &options);
    let parts = [(Iova(1 << 36), 10), (Iova(1 << 37), 20)];
    let mut added = 0;
    while ring.add_chain(added, &parts, &[]) {
        added += 1;
    }
    assert_eq!(added, 128 + (512 - 128) / 2);
    ring.publish();
    let mut chains = device.take_all();
    assert!(chains.iter().all(|chain| chain.parts.len() == 2));
    chains.reverse();
    for chain in &chains {
        device.put(chain, 0);
    }
    device.flush();
    let mut tokens = Vec::new();
    assert_eq!(ring.pop(usize::MAX, |token, _| tokens.push(token)), Ok(added as usize));
    assert!(tokens.iter().copied().eq((0..added).rev()));
    assert_eq!(ring.free(), 512);
}

#[test]
fn chains_without_a_free_table_go_direct() {
    tables_run_out::<SplitRing, SplitDevice>();
    tables_run_out::<PackedRing, PackedDevice>();
}

/// Publishes without checking for a kick until the index has wrapped, then checks once.
fn asks_late<R: Ring, D: Device>(event_idx: bool) {
    let options = RingOptions { event_idx, ..RingOptions::new(128) };
    let region = region();
    let mut ring = R::new(&region, &options).unwrap();
    let mut device = D::new(&region, ring.addresses(), &options);
    assert!(!ring.wants_kick(), "nothing was published");
    device.enable_kicks();
    for _ in 0..1024 {
        assert_eq!(ring.add(false, 128, |i| (i as u32, Iova(1 << 36), 60)), 128);
        ring.publish_quiet();
        assert_eq!(device.echo(128), 128);
        assert_eq!(ring.pop(128, |_, _| ()), Ok(128));
    }
    device.enable_kicks();
    ring.add(false, 1, |_| (0, Iova(1 << 36), 60));
    assert!(ring.publish());
    assert!(!ring.wants_kick());
}

#[test]
fn a_kick_is_not_lost_by_a_late_check() {
    for event_idx in [false, true] {
        asks_late::<SplitRing, SplitDevice>(event_idx);
        asks_late::<PackedRing, PackedDevice>(event_idx);
    }
}

/// A queue between two threads that sleep whenever they can. A kick or an interrupt that is not
/// enabled, or not sent, leads to a timeout.
fn both_sides_sleep<R: Ring + Send, D: Device>(event_idx: bool, after: u16) {
    const BUFFERS: u32 = 100_000;
    const TIMEOUT: Duration = Duration::from_secs(20);
    let options = RingOptions { event_idx, ..RingOptions::new(64) };
    let region = region();
    let mut ring = R::new(&region, &options).unwrap();
    let addresses = ring.addresses();
    let (kicked, kicks) = sync_channel(1);
    let (interrupted, interrupts) = sync_channel(1);
    let sleeps = thread::scope(|scope| {
        let device = scope.spawn(move || {
            let mut device = D::new(&region, addresses, &options);
            let (mut done, mut sleeps) = (0, 0u32);
            while done < BUFFERS {
                device.disable_kicks();
                while let Some(chain) = device.take() {
                    device.put(&chain, chain.capacity());
                    done += 1;
                    if device.flush() {
                        let _ = interrupted.try_send(());
                    }
                }
                if done < BUFFERS && !device.enable_kicks() {
                    sleeps += 1;
                    kicks.recv_timeout(TIMEOUT).expect("the device was not kicked");
                }
            }
            sleeps
        });
        let (mut sent, mut received, mut sleeps) = (0, 0, 0u32);
        while received < BUFFERS {
            // Use bursts of every size, so that the sides meet in every state.
            let burst = (sent % 67 + 1).min(BUFFERS - sent) as usize;
            sent += ring.add(true, burst, |i| (sent + i as u32, Iova(1 << 36), 60)) as u32;
            if ring.publish() {
                let _ = kicked.try_send(());
            }
            ring.disable_interrupts();
            let got = ring.pop(usize::MAX, |token, _| {
                assert_eq!(token, received);
                received += 1;
            });
            let idle = got.unwrap() == 0 && (ring.free() == 0 || sent == BUFFERS);
            if idle && received < BUFFERS && !ring.enable_interrupts_after(after) {
                sleeps += 1;
                interrupts.recv_timeout(TIMEOUT).expect("the driver was not interrupted");
            }
        }
        (sleeps, device.join().unwrap())
    });
    assert!(sleeps.0 > 0 && sleeps.1 > 0, "nobody ever slept: {sleeps:?}");
}

#[test]
fn no_wake_up_is_lost() {
    for after in [1, 20] {
        for event_idx in [false, true] {
            both_sides_sleep::<SplitRing, SplitDevice>(event_idx, after);
            both_sides_sleep::<PackedRing, PackedDevice>(event_idx, after);
        }
    }
}
