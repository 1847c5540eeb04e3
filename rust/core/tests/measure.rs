//! Streams through a port whose device is in this process: every frame is looked at, and comes back.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[allow(dead_code)]
#[path = "port_hostile/device.rs"]
mod device;

use device::{Format, HEADER, Kind, Rig, pool};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use virtnic::engine::{Control, Field, Measurement, Outcome, Pattern, Place, Plan, Stream};
use virtnic::virtio::ring::testing::{PackedDevice, SplitDevice};

const KIND: Kind = Kind { event_idx: false, in_order: false, merge: false };
const FRAMES: u64 = 3000;
const SIGNATURE: usize = 18;

/// A UDP frame without a checksum of its own, in an IPv4 packet with one.
fn template(payload: usize) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0];
    frame.extend((28 + payload as u16).to_be_bytes());
    frame.extend([0, 0, 0, 0, 64, 17, 0, 0, 198, 18, 0, 1, 198, 18, 0, 2, 0, 9, 0, 9]);
    frame.extend((8 + payload as u16).to_be_bytes());
    frame.extend([0, 0]);
    frame.extend((0..payload).map(|at| at as u8));
    let sum = !header_sum(&frame);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

fn header_sum(frame: &[u8]) -> u16 {
    let pairs =
        frame[14..34].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum: u32 = pairs.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

fn increment(name: &str, count: u64) -> Field {
    let pattern = Pattern::Increment { first: None, step: 1, count };
    Field { place: Place::Named(name.to_owned()), pattern }
}

/// Sends a stream of two templates to a device that sends all back. It writes into the buffers that
/// it has sent, as a backend does that changes addresses in place. Returns the outcome, and the
/// frames that the device saw.
fn measured<D: Format>(fields: Vec<Field>) -> (Outcome, Vec<Vec<u8>>) {
    let mut rig = Rig::<D>::new(&pool(), KIND);
    let frames = vec![template(40), template(700)];
    let stream = Stream { frames, fields, rate: None, burst: 1, flow: true };
    let plan = Plan {
        streams: vec![stream],
        warmup: Duration::ZERO,
        drain: Duration::from_secs(20),
        verify: true,
    };
    let run = Measurement::new(&rig.port, Some(&rig.port), plan).unwrap();
    let over = AtomicBool::new(false);
    let mut seen = Vec::new();
    let (port, tx, rx) = (&rig.port, &mut rig.tx, &mut rig.rx);
    std::thread::scope(|scope| {
        let (over, seen) = (&over, &mut seen);
        scope.spawn(move || {
            while !over.load(Ordering::Acquire) {
                let mut some = false;
                while let Some(chain) = tx.take() {
                    let part = chain.parts[0];
                    let mut bytes = tx.view().read(part.iova, part.len as usize);
                    bytes[10] = 1; // the received frame has one buffer
                    tx.view().write(part.iova.plus(HEADER as u64), &[0xff; 50]);
                    tx.put(&chain, 0);
                    let back = loop {
                        if let Some(back) = rx.take() {
                            break back;
                        }
                        if over.load(Ordering::Acquire) {
                            return;
                        }
                        tx.flush();
                        std::thread::yield_now();
                    };
                    rx.view().write(back.parts[0].iova, &bytes);
                    rx.put(&back, bytes.len() as u32);
                    rx.flush();
                    seen.push(bytes[HEADER..].to_vec());
                    some = true;
                }
                tx.flush();
                if !some {
                    std::thread::yield_now();
                }
            }
        });
        let mut tick = |_: &_| Ok(true);
        run.run(port, Some(port), Control::new(None, Some(FRAMES), &mut tick)).unwrap();
        over.store(true, Ordering::Release);
    });
    rig.port.stop();
    (run.outcome().unwrap(), seen)
}

fn check<D: Format>(fields: Vec<Field>, count: u64) {
    let (outcome, seen) = measured::<D>(fields);
    let flows = &outcome.streams[0].flows;
    let total = |of: fn(&virtnic::engine::FlowCounts) -> u64| flows.iter().map(of).sum::<u64>();
    assert_eq!(flows.len() as u64, count);
    assert_eq!((total(|flow| flow.sent), total(|flow| flow.received)), (FRAMES, FRAMES));
    assert_eq!((outcome.corrupt, outcome.foreign, total(|flow| flow.reordered)), (0, 0, 0));
    assert_eq!(seen.len() as u64, FRAMES);
    let templates = [template(40), template(700)];
    for (number, frame) in seen.iter().enumerate() {
        let template = &templates[number % 2];
        assert_eq!(header_sum(frame), 0xffff, "frame {number}");
        let end = frame.len() - SIGNATURE;
        assert_eq!(&frame[..24], &template[..24], "frame {number}");
        assert_eq!(&frame[38..end], &template[38..end], "frame {number}");
        let address = u32::from_be_bytes([frame[26], frame[27], frame[28], frame[29]]);
        assert_eq!(u64::from(address - 0xc612_0001), number as u64 % count.min(9999), "{number}");
    }
}

#[test]
fn a_device_that_writes_into_sent_frames_changes_no_later_one() {
    check::<SplitDevice>(vec![increment("ip.src", 7)], 7);
    check::<PackedDevice>(vec![increment("ip.src", 7)], 7);
}

#[test]
fn fields_that_are_too_many_for_a_table_are_written_one_by_one() {
    check::<SplitDevice>(vec![increment("ip.src", 9999)], 9999);
    check::<PackedDevice>(vec![increment("ip.src", 9999)], 9999);
}
