//! Packed rings with gaps between used descriptors, left by a device that died or was replaced.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod ring_model;

use ring_model::region;
use virtnic::memory::Iova;
use virtnic::virtio::ring::testing::{Device, PackedDevice, View};
use virtnic::virtio::ring::{PackedRing, Ring, RingOptions};

const SIZE: u16 = 8;
/// The flags of a used descriptor, by its wrap counter (VIRTIO 1.3, 2.8.1).
const USED: [u16; 2] = [0, 0x8080];

/// Advances the ring by `start` descriptors, makes six available, and lets a device use only those
/// in `used`. Returns where the next device must continue, and what the driver gets.
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

/// The index `count` descriptors after the start, with its wrap counter in bit 15.
fn place(start: u16, count: u16) -> u16 {
    let (at, lap) = ((start + count) % SIZE, (start + count) / SIZE);
    at | if lap % 2 == 0 { 0x8000 } else { 0 }
}

#[test]
fn without_gaps_no_descriptor_is_given_up() {
    for start in 0..4 * SIZE {
        assert_eq!(after(start, &[], 0), (place(start, 0), vec![]));
        assert_eq!(after(start, &[0, 1], 0), (place(start, 2), vec![(0, 7), (1, 7)]));
    }
}

#[test]
fn descriptors_in_a_gap_are_used_with_the_gap_length() {
    for start in 0..4 * SIZE {
        let (position, got) = after(start, &[0, 3, 4], 0);
        assert_eq!(position, place(start, 5), "from {start}");
        assert_eq!(got, [(0, 7), (1, 0), (2, 0), (3, 7), (4, 7)], "from {start}");
        let (position, got) = after(start, &[1, 5], 9);
        assert_eq!(position, place(start, 6), "from {start}");
        assert_eq!(got, [(0, 9), (1, 7), (2, 9), (3, 9), (4, 9), (5, 7)], "from {start}");
    }
}

/// A ring whose in-order device died. Descriptors are counted from its position.
struct InOrder {
    ring: PackedRing,
    view: View,
    start: u16,
    got: Vec<(u32, u32)>,
}

impl InOrder {
    /// Advances the ring by `start` descriptors and makes six available.
    fn new(start: u16) -> Self {
        let region = region();
        let options = RingOptions { in_order: true, ..RingOptions::new(SIZE) };
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
        Self { ring, view: View::new(&region), start, got: Vec::new() }
    }

    fn descriptor(&self, index: u16) -> Iova {
        self.ring.addresses().0.plus(u64::from((self.start + index) % SIZE) * 16)
    }

    /// Writes the length and id of a used descriptor for a batch that ends at `last`.
    fn begin(&self, first: u16, last: u16) {
        let id = self.view.read(self.descriptor(last).plus(12), 2);
        self.view.write(self.descriptor(first).plus(8), &7u32.to_le_bytes());
        self.view.write(self.descriptor(first).plus(12), &id);
    }

    /// Also writes its flags.
    fn finish(&self, first: u16, last: u16) {
        self.begin(first, last);
        let flags = USED[usize::from(((self.start + first) / SIZE).is_multiple_of(2))];
        self.view.write(self.descriptor(first).plus(14), &flags.to_le_bytes());
    }

    fn pop(&mut self, max: usize) -> usize {
        let Self { ring, got, .. } = self;
        ring.pop(max, |token, len| got.push((token, len))).unwrap()
    }

    /// Where the next device continues.
    fn position(&mut self) -> u16 {
        self.ring.reoffer(9, |_| None);
        let follower = self.ring.follower();
        let position = follower.close_gaps().unwrap();
        assert_eq!(follower.position(), position);
        position
    }
}

/// One used descriptor stands for a batch of four. A device that continued after the first of them
/// would use buffers that were returned to the driver, and the driver would wait for ever for flags
/// in the batch.
#[test]
fn a_new_device_continues_after_an_in_order_batch() {
    for start in 0..4 * SIZE {
        for popped in 0..=4 {
            let mut it = InOrder::new(start);
            it.finish(0, 3);
            assert_eq!(it.pop(popped), popped);
            assert_eq!(it.position(), place(start, 4), "from {start}, {popped} popped");
            it.finish(4, 5);
            it.pop(usize::MAX);
            let got = [(0, 60), (1, 60), (2, 60), (3, 7), (4, 60), (5, 7)];
            assert_eq!(it.got, got, "from {start}, {popped} popped");
        }
    }
}

/// The device had written the id and length of a batch, but not its flags. The first buffer is
/// lost; the next device uses the others.
#[test]
fn a_new_device_continues_within_an_in_order_batch() {
    for start in 0..4 * SIZE {
        let mut it = InOrder::new(start);
        it.finish(0, 1);
        it.begin(2, 4);
        assert_eq!(it.position(), place(start, 3), "from {start}");
        it.finish(3, 5);
        it.pop(usize::MAX);
        let got = [(0, 60), (1, 7), (2, 9), (3, 60), (4, 60), (5, 7)];
        assert_eq!(it.got, got, "from {start}");
    }
}
