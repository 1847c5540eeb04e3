//! Memory that changes while it is read: a second thread overwrites random parts of the rings and
//! headers while bursts are received and sent, and while the engine's loops run.

use super::device::{Format, HEADER, Kind, Random, Rig, accounted, areas, pool};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use virtnic::engine::{self, Control, Forwarding, Load, Mode, Report};
use virtnic::memory::{Iova, Pool};
use virtnic::net::{Burst, Port};
use virtnic::virtio::ring::testing::{PackedDevice, SplitDevice, View};
use virtnic::{Error, Result};

/// How long one port is tested at most; most break sooner.
pub(super) const ROUND: Duration = Duration::from_millis(30);

/// The parts of memory that are overwritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Aim {
    /// All areas of both queues.
    Everything,
    /// The areas that the device writes: the used ring, or the descriptors.
    Reports,
    /// Areas whose contents may have no effect: event suppression, and areas of the driver.
    Hints,
}

/// Parts of memory that a scribbler writes to.
pub(super) fn targets<D: Format>(rig: &Rig<D>, aim: Aim) -> Vec<(Iova, usize)> {
    let queues = rig.queues.iter().map(|at| areas(D::PACKED, at));
    match aim {
        Aim::Everything => queues.flatten().collect(),
        Aim::Reports if D::PACKED => queues.map(|[descriptors, ..]| descriptors).collect(),
        Aim::Reports => queues.map(|[.., device]| device).collect(),
        Aim::Hints if D::PACKED => {
            queues.flat_map(|[_, driver, device]| [driver, device]).collect()
        }
        // avail.flags; used_event after the ring; used.flags; avail_event after the ring.
        Aim::Hints => rig
            .queues
            .iter()
            .flat_map(|at| {
                let size = u64::from(at.size);
                [
                    (at.driver, 2),
                    (at.driver.plus(4 + 2 * size), 2),
                    (at.device, 2),
                    (at.device.plus(4 + 8 * size), 2),
                ]
            })
            .collect(),
    }
}

/// Writes random values, and small changes of the current ones, until it is stopped.
pub(super) fn scribble(
    view: &View,
    targets: &[(Iova, usize)],
    seed: u64,
    pause: u64,
    stop: &AtomicBool,
) {
    let mut random = Random(seed | 1);
    while !stop.load(Ordering::Relaxed) {
        let (at, len) = targets[random.below(targets.len())];
        let count = (1 << random.below(4)).min(len);
        let at = at.plus((random.below(len / count) * count) as u64);
        let bytes = match random.below(4) {
            0 => random.next().to_le_bytes()[..count].to_vec(),
            1 => vec![[0, 1, 0x7f, 0x80, 0xff][random.below(5)]; count],
            _ => {
                let mut bytes = view.read(at, count);
                let which = random.below(count);
                bytes[which] = match random.below(3) {
                    0 => bytes[which].wrapping_add(1),
                    1 => bytes[which].wrapping_sub(1),
                    _ => bytes[which] ^ 1 << random.below(8),
                };
                bytes
            }
        };
        view.write(at, &bytes);
        for _ in 0..pause {
            std::hint::spin_loop();
        }
    }
}

/// The device side, which continues whatever it reads. Headers have num_buffers = 1, but about one
/// in `honest` has a random value.
pub(super) fn serve<D: Format>(
    rx: &mut D,
    tx: &mut D,
    pool: &Pool,
    honest: usize,
    stop: &AtomicBool,
) {
    let mut random = Random(77);
    let view = rx.view().clone();
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..8 {
            let says = if random.below(honest) == 1 { random.next() as u16 } else { 1 };
            let buffer = random.below(pool.count()) as u32;
            let header = pool.data_iova(buffer).0 - HEADER as u64;
            view.write(Iova(header + 10), &says.to_le_bytes());
        }
        rx.echo(1 + random.below(16));
        tx.echo(64);
    }
}

/// The device side for a correct device, with rings in which only hints change.
pub(super) fn serve_honestly<D: Format>(rx: &mut D, tx: &mut D, stop: &AtomicBool) {
    let header = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    while !stop.load(Ordering::Relaxed) {
        if let Some(chain) = rx.take() {
            rx.view().write(chain.parts[0].iova, &header);
            rx.put(&chain, HEADER as u32 + 60);
            rx.flush();
        }
        if let Some(chain) = tx.take() {
            tx.put(&chain, 0);
            tx.flush();
        }
    }
}

/// What the program does with the port.
type Work = fn(&Port, Instant) -> Result<u64>;

pub(super) fn by_bursts(port: &Port, until: Instant) -> Result<u64> {
    let mut done = 0;
    let mut burst = Burst::new(port.pool().clone());
    while Instant::now() < until {
        done += port.recv(32, &mut burst)? as u64;
        for index in 0..burst.len() {
            let frame = burst.copy_out(index).unwrap();
            assert!(!frame.is_empty() && frame.len() <= port.pool().largest_frame());
        }
        port.send_burst(&mut burst)?;
        burst.clear();
        done += port.send(&mut &[[1u8; 60], [2u8; 60]][..])?.0 as u64;
        port.wait(Some(Duration::ZERO))?;
    }
    Ok(done)
}

pub(super) fn by_loop(
    until: Instant,
    run: impl FnOnce(Control<'_>) -> Result<Report>,
) -> Result<u64> {
    let mut tick = |_: &Report| Ok(true);
    let left = until.saturating_duration_since(Instant::now());
    run(Control::new(Some(left), None, &mut tick)).map(|report| report.packets())
}

fn load() -> Load {
    Load { frames: vec![vec![7; 60], vec![8; 1500]], rate: None }
}

const WORKS: [(&str, Work); 5] = [
    ("bursts", by_bursts),
    ("reflect", |port, until| {
        by_loop(until, |c| engine::reflect(port, Forwarding::with_backpressure(Mode::MacSwap), c))
    }),
    ("drop", |port, until| by_loop(until, |c| engine::drop_all(port, c))),
    ("generate", |port, until| by_loop(until, |c| engine::generate(port, &load(), c))),
    ("exchange", |port, until| by_loop(until, |c| engine::exchange(port, &load(), c))),
];

/// Stops the other threads when dropped, also if a check fails.
pub(super) struct Over<'a>(pub &'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Tests one port. Returns the number of packets, and whether the port broke.
fn torment<D: Format>(
    pool: &Arc<Pool>,
    kind: Kind,
    aim: Aim,
    work: Work,
    seed: u64,
) -> (u64, bool) {
    let rig = Rig::<D>::new(pool, kind);
    let targets = targets(&rig, aim);
    let Rig { port, mut rx, mut tx, .. } = rig;
    let stop = AtomicBool::new(false);
    let view = rx.view().clone();
    let pause = [0, 1000, 50_000][seed as usize % 3];
    let result = std::thread::scope(|scope| {
        let device = scope.spawn(|| match aim {
            Aim::Hints => serve_honestly(&mut rx, &mut tx, &stop),
            _ => serve(&mut rx, &mut tx, pool, 64, &stop),
        });
        scope.spawn(|| scribble(&view, &targets, seed, pause, &stop));
        let over = Over(&stop);
        let began = Instant::now();
        let result = work(&port, began + ROUND);
        // A hostile peer does not stop when we do; a correct device does.
        let over = if aim == Aim::Hints {
            drop(over);
            device.join().unwrap();
            None
        } else {
            Some(over)
        };
        port.stop();
        let elapsed = began.elapsed();
        drop(over);
        assert!(elapsed < Duration::from_secs(5), "{elapsed:?}");
        result
    });
    drop(port);
    accounted(pool);
    match result {
        Ok(packets) => (packets, false),
        Err(Error::Device(why)) => {
            assert!(!why.is_empty());
            (0, true)
        }
        Err(other) => panic!("{other}"),
    }
}

fn rounds<D: Format>(aim: Aim, rounds: u64) {
    let pool = pool();
    let (broken, packets) = (AtomicU64::new(0), AtomicU64::new(0));
    for seed in 0..rounds {
        for (number, (name, work)) in WORKS.into_iter().enumerate() {
            let kind = Kind::ALL[(seed as usize + number) % Kind::ALL.len()];
            let (done, broke) = torment::<D>(&pool, kind, aim, work, seed * 97 + number as u64);
            assert!(aim != Aim::Hints || !broke, "{name} {kind:?} broke over a hint");
            packets.fetch_add(done, Ordering::Relaxed);
            broken.fetch_add(broke.into(), Ordering::Relaxed);
        }
    }
    println!("{aim:?}: {packets:?} packets, {broken:?} of {} ports broken", rounds * 5);
    if aim == Aim::Hints {
        assert!(packets.into_inner() > 0, "no progress");
    } else {
        assert!(broken.into_inner() > 0, "nobody noticed");
    }
}

/// The number of rounds; for a longer test: `VIRTNIC_ROUNDS=1000 cargo test …`.
pub(super) fn wanted() -> u64 {
    std::env::var("VIRTNIC_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(8)
}

#[test]
fn everything_changes_under_a_split_ring() {
    rounds::<SplitDevice>(Aim::Everything, wanted());
}

#[test]
fn everything_changes_under_a_packed_ring() {
    rounds::<PackedDevice>(Aim::Everything, wanted());
}

#[test]
fn reports_change_under_a_split_ring() {
    rounds::<SplitDevice>(Aim::Reports, wanted());
}

#[test]
fn reports_change_under_a_packed_ring() {
    rounds::<PackedDevice>(Aim::Reports, wanted());
}

#[test]
fn changing_hints_have_no_effect() {
    rounds::<SplitDevice>(Aim::Hints, wanted());
    rounds::<PackedDevice>(Aim::Hints, wanted());
}
