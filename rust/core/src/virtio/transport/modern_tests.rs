//! Tests of notifications with a fake device, as no QEMU offers NOTIFICATION_DATA or NOTIF_CONFIG_DATA.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use super::*;
use crate::memory::{PageRequest, PageSize, Placement, Region, RegionOptions};
use crate::virtio::ring::{PackedRing, Ring, RingOptions, SplitRing};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

const COMMON: u64 = 0x1000;
const NOTIFY: u64 = 0x4000;
const QUEUE: u16 = 5;
/// The notification registers of the device's queues.
const OFFSET: u64 = 3;
const CONFIG_DATA: u16 = 0xbeef;

/// The driver's writes: address, width, value.
type Writes = Vec<(u64, u8, u64)>;

/// A transport to a fake device, and its writes.
fn device() -> (ModernPci, Arc<Mutex<Writes>>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let written: Arc<Mutex<Writes>> = Arc::default();
    let seen = written.clone();
    std::thread::spawn(move || serve(theirs, &seen));
    let qtest = QTest::from_socket(OwnedFd::from(ours), Duration::from_secs(10), None).unwrap();
    let registers = Registers {
        common: COMMON,
        isr: 0x2000,
        device: 0x3000,
        notify: NOTIFY,
        device_length: 64,
        notify_multiplier: 4,
    };
    (ModernPci::new(qtest, registers), written)
}

fn serve(mut socket: UnixStream, written: &Mutex<Writes>) {
    for line in BufReader::new(socket.try_clone().unwrap()).lines().map_while(Result::ok) {
        let words: Vec<&str> = line.split(' ').collect();
        let number =
            |at: usize| u64::from_str_radix(words[at].trim_start_matches("0x"), 16).unwrap();
        let answer = match words[0] {
            "readw" if number(1) == COMMON + 30 => format!("OK {OFFSET:#x}\n"),
            "readw" if number(1) == COMMON + 56 => format!("OK {CONFIG_DATA:#x}\n"),
            "writeb" | "writew" | "writel" => {
                let width = [("writeb", 1), ("writew", 2), ("writel", 4)];
                let width = width.iter().find(|(name, _)| *name == words[0]).unwrap().1;
                written.lock().unwrap().push((number(1), width, number(2)));
                "OK\n".to_owned()
            }
            "endianness" => "OK little\n".to_owned(),
            other => panic!("the driver said {other}"),
        };
        if socket.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// Publishes buffers one by one and returns the notifications.
fn notifications<R: Ring>(accepted: Features, size: u16, count: u16) -> Writes {
    let (device, written) = device();
    device.set_driver_features(accepted).unwrap();
    let doorbell = device.doorbell(QUEUE).unwrap();
    let region = Region::new(&RegionOptions {
        size: 1 << 20,
        pages: PageRequest::Exactly(PageSize::Base),
        placement: Placement::Virtual,
        node: None,
        directory: None,
        buffer_size: 2048,
        jumbo_buffers: None,
        jumbo_size: None,
    })
    .unwrap();
    let mut ring = R::new(&region, &RingOptions::new(size)).unwrap();
    for _ in 0..count {
        assert_eq!(ring.add(false, 1, |_| (0, Iova(0x10_0000), 64)), 1);
        ring.publish_quiet();
        doorbell.ring(QUEUE, ring.next_available());
    }
    device.qtest.read(COMMON + 30, 2).unwrap();
    let written = written.lock().unwrap();
    written.iter().copied().filter(|(address, ..)| *address >= NOTIFY).collect()
}

#[test]
fn a_plain_notification_is_the_index_of_the_queue() {
    let at = NOTIFY + 4 * OFFSET;
    assert_eq!(notifications::<SplitRing>(Features::VERSION_1, 4, 2), [(at, 2, 5); 2]);
}

#[test]
fn notification_data_of_a_split_ring_is_the_available_index() {
    let at = NOTIFY + 4 * OFFSET;
    let accepted = Features::VERSION_1 | Features::NOTIFICATION_DATA;
    assert_eq!(
        notifications::<SplitRing>(accepted, 4, 4),
        [(at, 4, 0x0001_0005), (at, 4, 0x0002_0005), (at, 4, 0x0003_0005), (at, 4, 0x0004_0005)]
    );
}

#[test]
fn notification_data_of_a_packed_ring_is_the_next_descriptor_and_the_wrap_counter() {
    let at = NOTIFY + 4 * OFFSET;
    let accepted = Features::VERSION_1 | Features::NOTIFICATION_DATA | Features::RING_PACKED;
    assert_eq!(
        notifications::<PackedRing>(accepted, 3, 3),
        // The wrap counter is 1 in the first lap, which ends after the third descriptor.
        [(at, 4, 0x8001_0005), (at, 4, 0x8002_0005), (at, 4, 0x0000_0005)]
    );
}

#[test]
fn the_device_chooses_the_value_of_a_queue() {
    let at = NOTIFY + 4 * OFFSET;
    let accepted = Features::VERSION_1 | Features::NOTIF_CONFIG_DATA;
    assert_eq!(notifications::<SplitRing>(accepted, 4, 1), [(at, 2, 0xbeef)]);
    let accepted = accepted | Features::NOTIFICATION_DATA;
    assert_eq!(notifications::<SplitRing>(accepted, 4, 1), [(at, 4, 0x0001_beef)]);
}
