//! What the ring code alone costs per packet, in nanoseconds and cycles.
//!
//! `cargo run --release -p virtnic --features testing --example ring_cost [size] [seconds]`
//!
//! One thread plays both sides on one core: the driver adds, publishes and pops
//! a burst, the in-process device uses it in between, and both are timed apart,
//! in runs of many bursts where the ring's size allows. There is no traffic
//! between cores and no packet data: this is the code's own cost.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};
use virtnic::Result;
use virtnic::memory::{Iova, PageRequest, PageSize, Placement, Region, RegionOptions};
use virtnic::virtio::ring::testing::{Device, PackedDevice, SplitDevice};
use virtnic::virtio::ring::{PackedRing, Ring, RingOptions, SplitRing};

const BURSTS: [usize; 4] = [1, 8, 32, 256];

/// The processor's own clock, where it has one we can read.
fn cycles() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86_64 processor has the instruction; it has no effect on memory.
    return unsafe { std::arch::x86_64::_rdtsc() };
    #[cfg(not(target_arch = "x86_64"))]
    return 0;
}

/// Cycles of many stretches of the same work.
#[derive(Default)]
struct Clock {
    stretches: Vec<u64>,
}

impl Clock {
    fn time<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let start = cycles();
        let result = work();
        self.stretches.push(cycles() - start);
        result
    }

    /// The median: interruptions do not count.
    fn median(&mut self) -> f64 {
        let middle = self.stretches.len() / 2;
        *self.stretches.select_nth_unstable(middle).1 as f64
    }
}

struct Cost {
    /// Add and publish.
    add: f64,
    pop: f64,
    device: f64,
}

/// Cycles per packet of each side. The driver's calls for one burst are timed as
/// two stretches: add + publish, then pop.
fn measure<R: Ring, D: Device>(
    region: &Arc<Region>,
    options: &RingOptions,
    burst: usize,
    polling: bool,
    seconds: f64,
    overhead: f64,
) -> Result<Cost> {
    let mut ring = R::new(region, options)?;
    let mut device = D::new(region, ring.addresses(), options);
    if polling {
        device.disable_kicks();
    }
    let base = region.iova();
    // Whole rings of bursts at a time, so that reading the clock costs little.
    let rounds = (usize::from(options.size) / burst).max(1);
    let (mut sending, mut taking, mut other) =
        (Clock::default(), Clock::default(), Clock::default());
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs_f64(seconds) {
        for _ in 0..64 {
            let sent = sending.time(|| {
                let mut sent = 0;
                for _ in 0..rounds {
                    sent += ring.add(false, burst, |i| {
                        let token = (sent + i) as u32;
                        (token, base.plus(u64::from(token) * 2112), 64)
                    });
                    black_box(ring.publish());
                }
                sent
            });
            assert_eq!(other.time(|| device.echo(usize::MAX)), sent);
            let taken = taking.time(|| {
                let mut sum = 0u64;
                let mut taken = 0;
                for _ in 0..rounds {
                    taken += ring.pop(burst, |token, len| sum += u64::from(token ^ len))?;
                }
                black_box(sum);
                Ok::<_, virtnic::Error>(taken)
            })?;
            assert_eq!(taken, sent);
        }
    }
    let per_packet = |clock: &mut Clock| (clock.median() - overhead) / (rounds * burst) as f64;
    Ok(Cost {
        add: per_packet(&mut sending),
        pop: per_packet(&mut taking),
        device: per_packet(&mut other),
    })
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1).filter_map(|text| text.parse::<f64>().ok());
    let size = arguments.next().unwrap_or(1024.0) as u16;
    let seconds = arguments.next().unwrap_or(0.5);

    let (began, from) = (Instant::now(), cycles());
    std::thread::sleep(Duration::from_millis(200));
    let ghz = (cycles() - from) as f64 / began.elapsed().as_nanos() as f64;
    let mut empty = Clock::default();
    for _ in 0..100_000 {
        empty.time(|| black_box(()));
    }
    let overhead = empty.median();

    let region = Region::new(&RegionOptions {
        size: 1 << 25,
        pages: PageRequest::Exactly(PageSize::Base),
        placement: Placement::At(Iova(1 << 32)),
        node: None,
        directory: None,
        buffer_size: 2048,
        jumbo_buffers: None,
        jumbo_size: None,
    })?;
    println!("ring of {size}, time-stamp counter {ghz:.2} GHz; per packet");
    println!("format  kicks  burst | add+publish     pop | both ns  cycles | device ns");
    for (name, event_idx, polling) in
        [("off", false, true), ("flags", false, false), ("event", true, false)]
    {
        let options = RingOptions { event_idx, ..RingOptions::new(size) };
        for burst in BURSTS {
            let show = |format: &str, cost: &Cost| {
                let both = cost.add + cost.pop;
                println!(
                    "{format}  {name:<5} {burst:>6} | {:>11.2} {:>7.2} | {:>7.2} {both:>7.1} | {:>9.2}",
                    cost.add / ghz,
                    cost.pop / ghz,
                    both / ghz,
                    cost.device / ghz
                );
            };
            let split = measure::<SplitRing, SplitDevice>(
                &region, &options, burst, polling, seconds, overhead,
            )?;
            show("split ", &split);
            let packed = measure::<PackedRing, PackedDevice>(
                &region, &options, burst, polling, seconds, overhead,
            )?;
            show("packed", &packed);
        }
    }
    Ok(())
}
