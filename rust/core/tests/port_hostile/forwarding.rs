//! Forwarding between a port with a hostile device and one with a correct device.
//!
//! A violation ends the loop with an error that names the port. The other port keeps working, and
//! no buffer of either memory is lost. Offload metadata is forwarded only if it fits the frame.

use super::device::{Format, HEADER, Kind, Random, Rig, accounted, pool};
use super::scribble::{
    Aim, Over, ROUND, by_bursts, by_loop, scribble, serve, serve_honestly, targets, wanted,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use virtnic::Error;
use virtnic::engine::{self, Forwarding, Mode};
use virtnic::memory::Pool;
use virtnic::net::Offload;
use virtnic::virtio::Features;
use virtnic::virtio::ring::testing::{Chain, PackedDevice, SplitDevice, View};

const TIMEOUT: Duration = Duration::from_secs(10);
/// Frames that are forwarded for each kind of violation.
const FRAMES: u64 = 300;

/// Forwards from the hostile port to the other one, or in the other direction.
fn between<D: Format>(pools: [&Arc<Pool>; 2], kind: Kind, aim: Aim, seed: u64) -> (u64, bool) {
    let [hostile, honest] = [Rig::<D>::new(pools[0], kind), Rig::<D>::new(pools[1], kind)];
    let aims = targets(&hostile, aim);
    let Rig { port: bad, rx: mut bad_rx, tx: mut bad_tx, .. } = hostile;
    let Rig { port: good, rx: mut good_rx, tx: mut good_tx, .. } = honest;
    let (stop, over) = (AtomicBool::new(false), AtomicBool::new(false));
    // With shared memory, the hostile device could write to headers in buffers of the other port.
    // A value of 1 is valid there.
    let honest = if Arc::ptr_eq(pools[0], pools[1]) { 1 } else { 64 };
    let view = bad_rx.view().clone();
    let pause = [0, 1000, 50_000][seed as usize % 3];
    let mode = [Mode::Io, Mode::Mac, Mode::MacSwap][seed as usize / 3 % 3];
    let forwarding =
        [Forwarding::with_backpressure, Forwarding::dropping][seed as usize / 5 % 2](mode);
    std::thread::scope(|scope| {
        let _ends = [Over(&stop), Over(&over)];
        scope.spawn(|| match aim {
            Aim::Hints => serve_honestly(&mut bad_rx, &mut bad_tx, &stop),
            _ => serve(&mut bad_rx, &mut bad_tx, pools[0], honest, &stop),
        });
        scope.spawn(|| scribble(&view, &aims, seed, pause, &stop));
        scope.spawn(|| serve_honestly(&mut good_rx, &mut good_tx, &over));
        let began = Instant::now();
        let result = by_loop(began + ROUND, |control| {
            if seed.is_multiple_of(2) {
                engine::forward(&bad, &good, forwarding, control)
            } else {
                engine::forward(&good, &bad, forwarding, control)
            }
        });
        let broke = match result {
            Ok(packets) => return (packets, false),
            Err(Error::Device(why)) => why,
            Err(other) => panic!("{other}"),
        };
        assert!(broke.starts_with(&format!("port {}: ", bad.mac())), "{broke}");
        let again = by_bursts(&bad, Instant::now() + ROUND);
        assert!(matches!(again, Err(Error::Device(_))), "{again:?}");
        // The other port is not affected.
        let mut through = 0;
        let deadline = Instant::now() + TIMEOUT;
        while through < 100 {
            through += by_bursts(&good, Instant::now() + Duration::from_millis(2)).unwrap();
            assert!(Instant::now() < deadline, "only {through} frames");
        }
        assert!(began.elapsed() < 2 * TIMEOUT);
        (through, true)
    })
    .tap(|_| {
        for port in [bad, good] {
            port.stop();
        }
        for pool in pools {
            accounted(pool);
        }
    })
}

/// Changes a value.
trait Tap: Sized {
    fn tap(self, look: impl FnOnce(&Self)) -> Self {
        look(&self);
        self
    }
}

impl<T> Tap for T {}

fn loops<D: Format>(aim: Aim) {
    let (one, other) = (pool(), pool());
    let (mut packets, mut broken) = (0, 0);
    let rounds = 4 * wanted();
    for seed in 0..rounds {
        let kind = Kind::ALL[seed as usize % Kind::ALL.len()];
        // With shared memory, buffers are handed over; between two memories, frames are copied.
        let pools = if seed / 2 % 2 == 0 { [&one, &one] } else { [&one, &other] };
        let (done, broke) = between::<D>(pools, kind, aim, seed * 7 + 1);
        assert!(aim != Aim::Hints || !broke, "{kind:?} broke over a hint");
        packets += done;
        broken += u64::from(broke);
    }
    println!("forward, {aim:?}: {packets} packets, {broken} of {rounds} ports broken");
    assert!(packets > 0, "no progress");
    assert!(aim == Aim::Hints || broken > 0, "nobody noticed");
}

#[test]
fn a_violation_ends_forwarding_and_does_not_affect_the_other_port() {
    for aim in [Aim::Everything, Aim::Reports] {
        loops::<SplitDevice>(aim);
        loops::<PackedDevice>(aim);
    }
}

#[test]
fn changing_hints_do_not_end_forwarding() {
    loops::<SplitDevice>(Aim::Hints);
    loops::<PackedDevice>(Aim::Hints);
}

/// A TCP or UDP frame over IPv4 or IPv6, or a frame of neither, with a virtio header that is
/// correct or has invalid fields.
fn frame(random: &mut Random) -> Vec<u8> {
    let tcp = random.below(2) == 0;
    let six = random.below(2) == 0;
    let start = 14 + if six { 40 } else { 20 };
    let length = start + 20 + random.below(1300);
    let mut bytes = vec![0; HEADER + length];
    for byte in &mut bytes[HEADER..] {
        *byte = random.next() as u8;
    }
    let data = &mut bytes[HEADER..];
    data[12..14].copy_from_slice(if six { &[0x86, 0xdd] } else { &[8, 0] });
    data[start + 12] = 0x50;
    let gso = match (tcp, six) {
        (true, false) => Offload::TCPV4,
        (true, true) => Offload::TCPV6,
        _ => Offload::UDP_L4,
    };
    let mut fields = [0u16; 6];
    fields[0] = Offload::NEEDS_CSUM.into();
    fields[1] = if random.below(3) == 0 { 0 } else { gso.into() };
    fields[2] = (start + if tcp { 20 } else { 8 }) as u16;
    fields[3] = 536;
    fields[4] = start as u16;
    fields[5] = if tcp { 16 } else { 6 };
    // No field is invalid, or one, or two.
    for _ in 0..random.below(3) {
        let which = random.below(fields.len());
        fields[which] = match random.below(6) {
            0 => 0,
            1 => u16::MAX,
            2 => length as u16,
            3 => fields[which].wrapping_add(1),
            4 => fields[which].wrapping_sub(1),
            _ => random.next() as u16,
        };
    }
    if random.below(8) == 0 {
        // Change the frame itself: an impossible TCP header length, another protocol.
        let at = [start + 12, 12, 13][random.below(3)];
        bytes[HEADER + at] = random.next() as u8;
    }
    bytes[0] = fields[0] as u8;
    bytes[1] = fields[1] as u8;
    for (field, place) in fields[2..].iter().zip([2, 4, 6, 8]) {
        bytes[place..place + 2].copy_from_slice(&field.to_le_bytes());
    }
    // num_buffers has no meaning without MRG_RXBUF.
    bytes[10..12].copy_from_slice(&(random.next() as u16).to_le_bytes());
    bytes
}

/// Checks a frame against what a device may expect (section 5.1.6.2), independently of the code
/// under test. Returns whether it is to be segmented.
fn judge(view: &View, chain: &Chain) -> bool {
    let bytes: Vec<u8> =
        chain.parts.iter().flat_map(|part| view.read(part.iova, part.len as usize)).collect();
    let (header, data) = bytes.split_at(HEADER);
    let field = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
    let (flags, gso) = (header[0], header[1] & !Offload::ECN);
    let (hdr_len, gso_size, start, offset) = (field(2), field(4), field(6), field(8));
    let what = format!("{header:?} before {} bytes", data.len());
    assert!(flags & !Offload::NEEDS_CSUM == 0, "flags of a received frame: {what}");
    if flags != 0 {
        assert!(start + offset + 2 <= data.len(), "no checksum field: {what}");
    }
    if header[1] == 0 {
        assert_eq!((hdr_len, gso_size), (0, 0), "{what}");
        return false;
    }
    assert!(flags == Offload::NEEDS_CSUM && gso_size > 0, "{what}");
    let (tcp, types): (bool, &[[u8; 2]]) = match gso {
        Offload::TCPV4 => (true, &[[8, 0]]),
        Offload::TCPV6 => (true, &[[0x86, 0xdd]]),
        Offload::UDP_L4 | Offload::UDP => (false, &[[8, 0], [0x86, 0xdd]]),
        _ => panic!("no such segmentation: {what}"),
    };
    assert!(tcp || header[1] == gso, "ECN without TCP: {what}");
    let tagged = matches!(data[12..14], [0x81, 0] | [0x88, 0xa8]);
    assert!(tagged || types.iter().any(|kind| data[12..14] == *kind), "{what}");
    assert!(start >= 14 && offset == if tcp { 16 } else { 6 }, "{what}");
    let least = start + if tcp { 4 * usize::from(data[start + 12] >> 4) } else { 8 };
    assert!(hdr_len == least && hdr_len <= data.len(), "{what}");
    assert!(hdr_len >= start + if tcp { 20 } else { 8 }, "{what}");
    true
}

/// Forwards frames with invalid headers to a port with the features `able`. Returns how many
/// arrived, and how many of them are to be segmented.
fn metadata<D: Format>(able: Features, apart: bool, seed: u64) -> (u64, u64, u64) {
    let (from, to) = (pool(), pool());
    let kind = Kind { event_idx: false, in_order: false, merge: false };
    let receive = Features::GUEST_CSUM;
    let Rig { port: bad, rx: mut bad_rx, tx: mut bad_tx, .. } =
        Rig::<D>::with(&from, kind, receive);
    let to = if apart { to } else { from.clone() };
    let Rig { port: good, tx: mut good_tx, rx: _good_rx, .. } = Rig::<D>::with(&to, kind, able);
    let (stop, came) = (AtomicBool::new(false), AtomicU64::new(0));
    let (report, segmented) = std::thread::scope(|scope| {
        let _end = Over(&stop);
        let judged = scope.spawn(|| {
            let mut segmented = 0u64;
            while !stop.load(Ordering::Relaxed) {
                while let Some(chain) = good_tx.take() {
                    segmented += u64::from(judge(good_tx.view(), &chain));
                    good_tx.put(&chain, 0);
                    came.fetch_add(1, Ordering::Relaxed);
                }
                good_tx.flush();
            }
            segmented
        });
        scope.spawn(|| {
            let mut random = Random(seed | 1);
            while !stop.load(Ordering::Relaxed) {
                while let Some(chain) = bad_rx.take() {
                    let bytes = frame(&mut random);
                    bad_rx.view().write(chain.parts[0].iova, &bytes);
                    bad_rx.put(&chain, bytes.len() as u32);
                    bad_rx.flush();
                    if apart {
                        // Replace the header before, during or after it is read.
                        bad_rx.view().write(chain.parts[0].iova, &frame(&mut random)[..HEADER]);
                    }
                }
                bad_tx.echo(64);
            }
        });
        let mut tick = |_: &engine::Report| Ok(true);
        let control = engine::Control::new(Some(TIMEOUT), Some(FRAMES), &mut tick);
        let report = engine::forward(&bad, &good, Forwarding::dropping(Mode::Io), control).unwrap();
        let began = Instant::now();
        while came.load(Ordering::Relaxed) < report.sent && began.elapsed() < TIMEOUT {
            std::thread::yield_now();
        }
        stop.store(true, Ordering::Relaxed);
        (report, judged.join().unwrap())
    });
    for port in [bad, good] {
        port.stop();
    }
    accounted(&from);
    accounted(&to);
    let came = came.into_inner();
    assert!(came == report.sent && came >= FRAMES / 2, "{came} came, {report:?}");
    assert!(report.no_offload > 0, "{report:?}");
    (came, segmented, report.no_offload)
}

#[test]
fn only_valid_offload_metadata_is_forwarded() {
    let all = Features::CSUM | Features::HOST_TSO4 | Features::HOST_TSO6 | Features::HOST_USO;
    for seed in 0..wanted() {
        for (able, apart) in
            [(all, false), (all, true), (Features::CSUM, false), (Features::NONE, true)]
        {
            let (came, segmented, refused) = if seed % 2 == 0 {
                metadata::<SplitDevice>(able, apart, seed * 31 + 5)
            } else {
                metadata::<PackedDevice>(able, apart, seed * 31 + 5)
            };
            assert_eq!(segmented > 0, able == all, "{segmented} of {came}");
            println!("{able}, apart {apart}: {came} passed on, {refused} refused");
        }
    }
}
