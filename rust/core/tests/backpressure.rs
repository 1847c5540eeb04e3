//! Forwarding to a peer whose ring is full: frames stay in the receive ring, and are dropped only
//! if the peer takes no frames for a long time.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[allow(dead_code)]
#[path = "port_hostile/device.rs"]
mod device;

use device::{Format, HEADER, Kind, Rig, SIZE, pool};
use std::time::Duration;
use virtnic::engine::{self, Control, Forwarding, Mode, Report};
use virtnic::virtio::ring::testing::{Device, PackedDevice, SplitDevice};

const KIND: Kind = Kind { event_idx: false, in_order: false, merge: false };
const RING: u64 = SIZE as u64;
/// Waits for the peer without limit.
const ENDLESS: Forwarding = Forwarding { mode: Mode::Io, backpressure: Some(Duration::MAX) };
/// Drops frames as soon as the peer's ring is full.
const NONE: Forwarding = Forwarding { mode: Mode::Io, backpressure: Some(Duration::ZERO) };

/// Two ports with shared or separate memory, and the frames that were forwarded.
struct Wire<D> {
    a: Rig<D>,
    b: Rig<D>,
    next: u32,
    came: Vec<u32>,
}

impl<D: Format> Wire<D> {
    fn new(apart: bool) -> Self {
        let (one, other) = (pool(), pool());
        let a = Rig::new(&one, KIND);
        let b = Rig::new(if apart { &other } else { &one }, KIND);
        Self { a, b, next: 0, came: Vec::new() }
    }

    /// The device of `a` delivers numbered frames, up to the number of available buffers.
    fn arrive(&mut self, most: usize) -> u64 {
        fill(&mut self.a.rx, most, &mut self.next)
    }

    /// The device of `b` takes frames.
    fn take(&mut self, most: usize) {
        for _ in 0..most {
            let Some(chain) = self.b.tx.take() else { break };
            let bytes = self.b.tx.view().read(chain.parts[0].iova, HEADER + 60);
            self.came.push(u32::from_le_bytes(bytes[HEADER..HEADER + 4].try_into().unwrap()));
            self.b.tx.put(&chain, 0);
        }
        self.b.tx.flush();
    }

    /// Forwards until `packets` frames were sent, or frames are held back.
    fn forward(&self, forwarding: Forwarding, packets: Option<u64>) -> Report {
        let mut tick = |report: &Report| Ok(report.held == 0);
        let control = Control::new(Some(Duration::from_secs(30)), packets, &mut tick);
        engine::forward(&self.a.port, &self.b.port, forwarding, control).unwrap()
    }

    fn finish(self) {
        let Self { a, b, .. } = self;
        b.port.stop();
        a.finish();
    }
}

fn fill<D: Format>(rx: &mut D, most: usize, next: &mut u32) -> u64 {
    let mut count = 0;
    while count < most
        && let Some(chain) = rx.take()
    {
        let mut bytes = [0; HEADER + 60];
        bytes[10] = 1;
        bytes[HEADER..HEADER + 4].copy_from_slice(&next.to_le_bytes());
        rx.view().write(chain.parts[0].iova, &bytes);
        rx.put(&chain, bytes.len() as u32);
        *next += 1;
        count += 1;
    }
    rx.flush();
    count as u64
}

/// Runs a test with split and packed rings, with shared and separate memory.
fn each(test: fn(Wire<SplitDevice>), packed: fn(Wire<PackedDevice>)) {
    for apart in [false, true] {
        test(Wire::new(apart));
        packed(Wire::new(apart));
    }
}

fn stay<D: Format>(mut wire: Wire<D>) {
    assert_eq!(wire.arrive(usize::MAX), RING);
    assert_eq!(wire.forward(ENDLESS, Some(RING)).sent, RING);
    // The ring of b is full, and all buffers of a are filled again.
    assert_eq!(wire.arrive(usize::MAX), RING);
    let stuck = wire.forward(ENDLESS, None);
    assert_eq!((stuck.received, stuck.sent, stuck.ring_full), (0, 0, 0), "{stuck:?}");
    assert!(stuck.held > 0);
    // Exactly ten frames are forwarded when there is room for ten.
    wire.take(10);
    let some = wire.forward(ENDLESS, None);
    assert_eq!((some.received, some.sent, some.ring_full), (10, 10, 0), "{some:?}");
    wire.take(usize::MAX);
    let rest = wire.forward(ENDLESS, Some(RING - 10));
    assert_eq!((rest.sent, rest.ring_full, rest.held), (RING - 10, 0, 0), "{rest:?}");
    wire.take(usize::MAX);
    assert!(wire.came.iter().copied().eq(0..2 * SIZE as u32), "{:?}", wire.came);
    assert!(wire.b.port.stats().tx.fields().contains(&("ring_full", 0)));
    wire.finish();
}

#[test]
fn frames_stay_in_the_receive_ring_until_the_peer_has_room() {
    each(stay, stay);
}

fn pass<D: Format>(mut wire: Wire<D>) {
    wire.arrive(usize::MAX);
    wire.forward(ENDLESS, Some(RING));
    wire.arrive(usize::MAX);
    // No frame for b is taken, but all frames from b are forwarded.
    for _ in 0..3 {
        assert_eq!(fill(&mut wire.b.rx, usize::MAX, &mut wire.next), RING);
        let back = wire.forward(ENDLESS, Some(RING));
        assert_eq!((back.received, back.sent, back.ring_full), (RING, RING, 0), "{back:?}");
        assert!(back.held > 0);
        assert_eq!(wire.a.tx.echo(usize::MAX) as u64, RING);
    }
    wire.finish();
}

#[test]
fn a_stalled_peer_does_not_stop_the_other_direction() {
    each(pass, pass);
}

fn drop_late<D: Format>(mut wire: Wire<D>) {
    wire.arrive(usize::MAX);
    wire.forward(NONE, Some(RING));
    // After the time limit, frames are dropped and counted.
    wire.arrive(usize::MAX);
    let mut tick = |report: &Report| Ok(report.received == 0);
    let control = Control::new(Some(Duration::from_secs(30)), None, &mut tick);
    let late = engine::forward(&wire.a.port, &wire.b.port, NONE, control).unwrap();
    assert_eq!((late.received, late.sent, late.ring_full), (RING, 0, RING), "{late:?}");
    // When there is room again, no more frames are dropped.
    wire.take(usize::MAX);
    assert_eq!(wire.arrive(usize::MAX), RING);
    let again = wire.forward(NONE, Some(RING));
    assert_eq!((again.sent, again.ring_full), (RING, 0), "{again:?}");
    wire.finish();
}

#[test]
fn frames_for_a_closed_peer_are_dropped_and_counted() {
    each(drop_late, drop_late);
}

fn drop_at_once<D: Format>(mut wire: Wire<D>) {
    wire.arrive(usize::MAX);
    wire.forward(Forwarding::dropping(Mode::Io), Some(RING));
    wire.arrive(usize::MAX);
    let mut tick = |report: &Report| Ok(report.received == 0);
    let control = Control::new(Some(Duration::from_secs(30)), None, &mut tick);
    let forwarding = Forwarding::dropping(Mode::Io);
    let report = engine::forward(&wire.a.port, &wire.b.port, forwarding, control).unwrap();
    assert_eq!((report.received, report.ring_full, report.held), (RING, RING, 0), "{report:?}");
    wire.finish();
}

#[test]
fn without_backpressure_frames_that_do_not_fit_are_dropped_at_once() {
    each(drop_at_once, drop_at_once);
}

#[test]
fn a_reflected_frame_waits_for_room_too() {
    let pool = pool();
    let mut rig = Rig::<SplitDevice>::new(&pool, KIND);
    let mut next = 0;
    let reflect = |rig: &Rig<SplitDevice>, packets| {
        let mut tick = |report: &Report| Ok(report.held == 0);
        let control = Control::new(Some(Duration::from_secs(30)), packets, &mut tick);
        engine::reflect(&rig.port, ENDLESS, control).unwrap()
    };
    for _ in 0..2 {
        assert_eq!(fill(&mut rig.rx, usize::MAX, &mut next), RING);
        if next == SIZE as u32 {
            assert_eq!(reflect(&rig, Some(RING)).sent, RING);
        }
    }
    assert_eq!(reflect(&rig, None).received, 0);
    assert_eq!(rig.tx.echo(usize::MAX) as u64, RING);
    assert_eq!(reflect(&rig, Some(RING)).sent, RING);
    rig.finish();
}
