//! Packed rings whose device died, or was taken over, and left gaps.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod ring_model;

use ring_model::region;
use virtnic::memory::Iova;
use virtnic::virtio::ring::testing::{Device, PackedDevice, View};
use virtnic::virtio::ring::{PackedRing, Ring, RingOptions};

const SIZE: u16 = 8;
/// The flags of a used descriptor, by the wrap counter of its lap (VIRTIO 1.3, 2.8.1).
const USED: [u16; 2] = [0, 0x8080];

/// Goes `start` descriptors into the ring, makes six available, and lets a device use those of
/// `used` only. Returns where the next device has to go on, and what the driver gets.
fn after(start: u16, used: &[u16], gap: u32) -> (u16, Vec<(u32, u32)>) {
    let region = region();
    let options = RingOptions::new(SIZE);
    let mut ring = PackedRing::new(&region, &options).unwrap();
    let mut device = PackedDevice::new(&region, ring.addresses(), &options);
    for token in 0..u32::from(start) {
        assert_eq!(ring.add(true, 1, |_| (token, Iova(1 << 36), 60)), 1);
        ring.publish();
        assert_eq!(device.echo(1), 1);
        assert_eq!(ring.pop(1, |_, _| ()), Ok(1));
    }
    assert_eq!(ring.add(true, 6, |i| (i as u32, Iova(1 << 36), 60)), 6);
    ring.publish();
    let view = View::new(&region);
    for &index in used {
        let (at, lap) = ((start + index) % SIZE, (start + index) / SIZE);
        let flags = USED[usize::from(lap % 2 == 0)];
        let place = ring.addresses().0.plus(u64::from(at) * 16);
        view.write(place.plus(8), &7u32.to_le_bytes());
        view.write(place.plus(14), &flags.to_le_bytes());
    }
    let follower = ring.follower().with_gap_length(gap);
    let place = follower.position();
    let position = follower.close_gaps().unwrap();
    assert_eq!(follower.close_gaps(), Some(position), "there is nothing left to do");
    assert_eq!(follower.position(), position);
    assert_eq!(place, position);
    let count = used.iter().max().map_or(0, |last| last + 1);
    assert_eq!(follower.distance(self::place(start, 0), position), count);
    let mut got = Vec::new();
    ring.pop(usize::MAX, |token, len| got.push((token, len))).unwrap();
    (position, got)
}

/// An index `count` behind the start, with its wrap counter in bit 15.
fn place(start: u16, count: u16) -> u16 {
    let (at, lap) = ((start + count) % SIZE, (start + count) / SIZE);
    at | if lap % 2 == 0 { 0x8000 } else { 0 }
}

#[test]
fn without_gaps_nothing_is_given_up() {
    for start in 0..4 * SIZE {
        assert_eq!(after(start, &[], 0), (place(start, 0), vec![]));
        assert_eq!(after(start, &[0, 1], 0), (place(start, 2), vec![(0, 7), (1, 7)]));
    }
}

#[test]
fn what_lies_in_a_gap_is_used_with_the_length_of_gaps() {
    for start in 0..4 * SIZE {
        let (position, got) = after(start, &[0, 3, 4], 0);
        assert_eq!(position, place(start, 5), "from {start}");
        assert_eq!(got, [(0, 7), (1, 0), (2, 0), (3, 7), (4, 7)], "from {start}");
        let (position, got) = after(start, &[1, 5], 9);
        assert_eq!(position, place(start, 6), "from {start}");
        assert_eq!(got, [(0, 9), (1, 7), (2, 9), (3, 9), (4, 9), (5, 7)], "from {start}");
    }
}
