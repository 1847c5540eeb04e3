//! Measures loss, duplicates, reordering and latency of streams sent by one port and received by
//! another, or by the same port.
//!
//! The frames carry their numbers and times (`streams`), so the counts do not depend on the peer.
//! Sender and receiver share a clock. Each queue pair has a thread that sends and receives in turn.

mod recorder;
#[cfg(any(test, feature = "testing"))]
mod seeing;
mod tracker;

#[cfg(any(test, feature = "testing"))]
pub(super) use seeing::{Counted, Seeing};
pub use tracker::FlowCounts;

use super::control::{Control, Report};
use super::lanes::{lanes, pairs_of};
use super::streams::{Key, Program, Source, Stream, divisor};
use super::{BURST, of_port, running, swap};
use crate::net::{Burst, Port};
use crate::{Error, Result};
use hdrhistogram::Histogram;
use recorder::{Expected, Recorder, histogram};
use std::sync::atomic::{
    AtomicBool, AtomicU64, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release},
};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tracker::Tracker;

/// The most combinations of stream and queue that signatures can distinguish.
const MOST_SOURCES: usize = 1 << 16;
/// While waiting for the last frames: the time between checks whether all have arrived.
const GLANCE: Duration = Duration::from_millis(1);

/// The parameters of a measurement.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The streams to send.
    pub streams: Vec<Stream>,
    /// How long frames are sent before counting begins.
    pub warmup: Duration,
    /// How long to wait for outstanding frames after the last one was sent.
    pub drain: Duration,
    /// Whether the payload before each signature is compared with what was sent.
    pub verify: bool,
}

/// The counts of a run so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Glance {
    /// Time since counting began.
    pub elapsed: Duration,
    /// Frames sent in all streams.
    pub sent: u64,
    /// Frames sent in streams with signatures.
    pub signed: u64,
    /// Frames with signatures that arrived, each counted once.
    pub received: u64,
    /// Further copies of frames that had already arrived.
    pub duplicates: u64,
    /// Frames that arrived after a later frame of their flow.
    pub reordered: u64,
    /// Frames with bit errors.
    pub corrupt: u64,
    /// Frames that are not of this run.
    pub foreign: u64,
    /// The mean and the longest latency since the previous glance, in nanoseconds.
    pub latency: (u64, u64),
}

/// The counts of one stream.
#[derive(Clone, Debug)]
pub struct StreamOutcome {
    /// Its flows. Without signatures, there is one flow, and only [`FlowCounts::sent`] is valid.
    pub flows: Vec<FlowCounts>,
    /// Bytes sent.
    pub bytes: u64,
    /// Frames that were due but had not been sent when the run ended.
    pub unsent: u64,
    /// Frames that were sent more than 10 µs after they were due.
    pub late: u64,
    /// The longest delay of a late frame, in nanoseconds.
    pub latest: u64,
    /// Frames that arrived so late that they may be duplicates.
    pub stale: u64,
    /// Times from when each frame was due until it was received, in nanoseconds.
    pub latencies: Histogram<u64>,
}

/// The counts of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// How long frames were sent after the warm-up.
    pub sending: Duration,
    /// The counts of each stream.
    pub streams: Vec<StreamOutcome>,
    /// As in [`Glance`].
    pub corrupt: u64,
    /// As in [`Glance`].
    pub foreign: u64,
    /// Frames of the warm-up that arrived.
    pub early: u64,
    /// Frames that the device had not taken at the end.
    pub untaken: u64,
}

/// The final counts of a stream in one sending queue.
#[derive(Debug, Default)]
struct Ended {
    bytes: u64,
    unsent: u64,
    late: u64,
    latest: u64,
}

/// A measurement that can be run once.
#[derive(Debug)]
pub struct Measurement {
    plan: Plan,
    key: Key,
    programs: Vec<Program>,
    lanes: usize,
    /// One tracker for each queue of each stream.
    trackers: Vec<Mutex<Tracker>>,
    /// For each tracker: the number of the first frame that counts, and of the first not sent.
    begins: Vec<AtomicU64>,
    ends: Vec<AtomicU64>,
    ended: Vec<Mutex<Ended>>,
    recorders: Vec<Mutex<Recorder>>,
    epoch: Instant,
    /// When counting began, and when sending ended, in nanoseconds after `epoch`.
    from: AtomicU64,
    to: AtomicU64,
    /// The number of queues that are still sending.
    sending: AtomicUsize,
    stop: AtomicBool,
    untaken: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Measurement {
    /// Prepares a measurement of streams sent by one port and received by `rx`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for streams that cannot be sent.
    pub fn new(tx: &Port, rx: Option<&Port>, plan: Plan) -> Result<Self> {
        let lanes = pairs_of(&[tx, rx.unwrap_or(tx)])?.max(1);
        let longest = tx.pool().largest_frame();
        let programs = plan.streams.iter().enumerate().map(|(number, stream)| {
            Program::new(stream, longest).map_err(|error| match error {
                Error::Invalid(why) => Error::Invalid(format!("stream {number}: {why}")),
                other => other,
            })
        });
        let programs = programs.collect::<Result<Vec<_>>>()?;
        let sources = programs.len() * lanes;
        if sources == 0 || sources >= MOST_SOURCES {
            return Err(Error::Invalid(format!(
                "{} streams by {lanes} queues: there must be one, and together fewer than \
                 {MOST_SOURCES}",
                programs.len()
            )));
        }
        let numbers = || (0..sources).map(|_| AtomicU64::new(0)).collect();
        let tracker = |source: usize| {
            let program = &programs[source / lanes];
            let flows = if program.is_signed() { program.flows } else { 1 };
            Mutex::new(Tracker::new(source % lanes, lanes, flows))
        };
        let recorders = (0..lanes).map(|_| Recorder::new(programs.len()).map(Mutex::new));
        Ok(Self {
            key: Key::new(),
            lanes,
            trackers: (0..sources).map(tracker).collect(),
            begins: numbers(),
            ends: numbers(),
            ended: (0..sources).map(|_| Mutex::default()).collect(),
            recorders: recorders.collect::<Result<_>>()?,
            epoch: Instant::now(),
            from: AtomicU64::new(u64::MAX),
            to: AtomicU64::new(u64::MAX),
            sending: AtomicUsize::new(lanes),
            stop: AtomicBool::new(false),
            untaken: AtomicU64::new(0),
            programs,
            plan,
        })
    }

    /// Nanoseconds since `epoch`.
    #[inline]
    fn now(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }

    /// Sends and receives until `control` ends the run, then waits for outstanding frames. Call it
    /// once, with the ports given to [`Self::new`].
    ///
    /// # Errors
    /// [`Error::MemoryUnavailable`] if no buffers are free; [`Error::Busy`]; the error of a port
    /// that failed.
    pub fn run(&self, tx: &Port, rx: Option<&Port>, control: Control<'_>) -> Result<Report> {
        let ports = [tx, rx.unwrap_or(tx)];
        if pairs_of(&ports)? != self.lanes {
            return Err(Error::Invalid("the ports have other queues now".to_owned()));
        }
        let start = self.now();
        lanes(self.lanes, control, |lane, control| self.run_lane(tx, rx, lane, start, control))
    }

    fn run_lane(
        &self,
        tx: &Port,
        rx: Option<&Port>,
        lane: usize,
        start: u64,
        mut control: Control<'_>,
    ) -> Result<Report> {
        let mut receiver = match rx {
            Some(rx) => Some((rx.pair(lane)?.claim_rx()?, Burst::new(rx.pool().clone()))),
            None => None,
        };
        let mut source = Source::new(tx, lane, self.lanes, &self.programs, self.key, start)?;
        let mut report = Report::default();
        let mut receive = |report: &mut Report| -> Result<bool> {
            let (Some((queue, burst)), Some(port)) = (&mut receiver, rx) else { return Ok(false) };
            queue.lend();
            let count = queue.recv(BURST, burst).map_err(|error| of_port(port, error))?;
            if count == 0 {
                return Ok(false);
            }
            let now = self.now();
            swap::prefetch(burst);
            let ours = lock(&self.recorders[lane]).see(&self.expected(), burst, now);
            queue.recycle(burst);
            report.received += count as u64;
            Ok(ours)
        };
        let alive = || running(tx).and_then(|()| rx.map_or(Ok(()), running));
        let warm = start + self.plan.warmup.as_nanos() as u64;
        let mut counts = false;
        loop {
            let heard = receive(&mut report)?;
            let now = self.now();
            if !counts && now >= warm {
                counts = true;
                self.begin(&mut source, lane, now);
            }
            // Frames of the warm-up do not count towards the requested number.
            let most = if counts { control.left(report.sent) } else { usize::MAX };
            let sent = source.turn(now, most, |stream, end| {
                self.ends[stream * self.lanes + lane].store(end, Release);
            })?;
            self.tell_ends(&source, lane);
            report.sent += if counts { sent as u64 } else { 0 };
            let busy = sent > 0 || heard;
            report.bursts += u64::from(busy);
            report.idle += u64::from(!busy);
            if control.is_over(report.sent)
                || self.stop.load(Relaxed)
                || !control.go_on(&mut report, alive)?
            {
                break;
            }
        }
        if !counts {
            self.begin(&mut source, lane, self.now());
        }
        self.end(&source, lane);
        control.go_on_without_end();
        let mut last = Instant::now();
        let mut looked = last;
        while rx.is_some() {
            if receive(&mut report)? {
                last = Instant::now();
            } else if looked.elapsed() > GLANCE {
                looked = Instant::now();
                let over = looked - last >= self.plan.drain;
                if self.sending.load(Acquire) == 0 && (over || self.has_all()) {
                    break;
                }
            }
            source.lend();
            if !control.go_on(&mut report, alive)? {
                break;
            }
        }
        self.untaken.fetch_add(source.waiting()? as u64, Relaxed);
        report.elapsed = control.elapsed();
        Ok(report)
    }

    fn expected(&self) -> Expected<'_> {
        Expected {
            key: self.key,
            programs: &self.programs,
            trackers: &self.trackers,
            below: &self.ends,
            lanes: self.lanes,
            verify: self.plan.verify,
        }
    }

    fn tell_ends(&self, source: &Source<'_>, lane: usize) {
        for (stream, sender) in source.senders.iter().enumerate() {
            self.ends[stream * self.lanes + lane].store(sender.next, Release);
        }
    }

    /// Begins counting for one queue.
    fn begin(&self, source: &mut Source<'_>, lane: usize, now: u64) {
        for (stream, sender) in source.senders.iter_mut().enumerate() {
            let number = stream * self.lanes + lane;
            lock(&self.trackers[number]).begin(sender.next);
            self.begins[number].store(sender.next, Release);
            (sender.late, sender.latest, sender.bytes) = (0, 0, 0);
        }
        self.from.fetch_min(now, Relaxed);
    }

    /// Ends sending for one queue, and stores its counts.
    fn end(&self, source: &Source<'_>, lane: usize) {
        let now = self.now();
        self.stop.store(true, Relaxed);
        self.tell_ends(source, lane);
        for (stream, sender) in source.senders.iter().enumerate() {
            let due = sender.pacer.due(now).unwrap_or(0);
            // Up to a burst may have become due since the last turn; that is not a backlog.
            let unsent = due.saturating_sub(sender.next);
            *lock(&self.ended[stream * self.lanes + lane]) = Ended {
                bytes: sender.bytes,
                unsent: if unsent > BURST as u64 { unsent } else { 0 },
                late: sender.late,
                latest: sender.latest,
            };
        }
        self.to.store(now, Relaxed);
        self.sending.fetch_sub(1, Release);
    }

    /// The number of frames that a queue has sent of a stream since counting began.
    fn sent_by(&self, source: usize) -> u64 {
        let begin = self.begins[source].load(Acquire);
        self.ends[source].load(Acquire).saturating_sub(begin)
    }

    /// Whether all frames with signatures have arrived.
    fn has_all(&self) -> bool {
        (0..self.trackers.len()).all(|source| {
            let received = lock(&self.trackers[source]).total.received;
            !self.programs[source / self.lanes].is_signed() || received >= self.sent_by(source)
        })
    }

    /// The counts so far.
    pub fn glance(&self) -> Glance {
        let mut glance = Glance::default();
        let from = self.from.load(Relaxed);
        if from == u64::MAX {
            return glance;
        }
        let to = self.to.load(Relaxed).min(self.now());
        glance.elapsed = Duration::from_nanos(to.saturating_sub(from));
        for (source, tracker) in self.trackers.iter().enumerate() {
            let sent = self.sent_by(source);
            glance.sent += sent;
            if self.programs[source / self.lanes].is_signed() {
                glance.signed += sent;
                let total = lock(tracker).total;
                glance.received += total.received;
                glance.duplicates += total.duplicates;
                glance.reordered += total.reordered;
            }
        }
        let (mut count, mut sum) = (0, 0);
        for recorder in &self.recorders {
            let mut recorder = lock(recorder);
            glance.corrupt += recorder.corrupt;
            glance.foreign += recorder.foreign;
            let (frames, latencies, most) = std::mem::take(&mut recorder.lately);
            (count, sum) = (count + frames, sum + latencies);
            glance.latency.1 = glance.latency.1.max(most);
        }
        glance.latency.0 = sum / count.max(1);
        glance
    }

    /// The final counts.
    ///
    /// # Errors
    /// Not expected to fail.
    pub fn outcome(&self) -> Result<Outcome> {
        let span = self.to.load(Relaxed).saturating_sub(self.from.load(Relaxed));
        let mut outcome = Outcome {
            sending: Duration::from_nanos(span),
            streams: Vec::with_capacity(self.programs.len()),
            corrupt: 0,
            foreign: 0,
            early: 0,
            untaken: self.untaken.load(Relaxed),
        };
        for stream in 0..self.programs.len() {
            let mut found = StreamOutcome {
                flows: Vec::new(),
                bytes: 0,
                unsent: 0,
                late: 0,
                latest: 0,
                stale: 0,
                latencies: histogram()?,
            };
            for lane in 0..self.lanes {
                let source = stream * self.lanes + lane;
                let tracker = lock(&self.trackers[source]);
                let flows = tracker.account(self.ends[source].load(Acquire));
                if found.flows.is_empty() {
                    found.flows = flows;
                } else {
                    found.flows.iter_mut().zip(&flows).for_each(|(sum, flow)| sum.add(flow));
                }
                found.stale += tracker.stale;
                outcome.early += tracker.early;
                let ended = lock(&self.ended[source]);
                found.bytes += ended.bytes;
                found.unsent += ended.unsent;
                found.late += ended.late;
                found.latest = found.latest.max(ended.latest);
                let recorder = lock(&self.recorders[lane]);
                found.latencies += &recorder.latencies[stream];
            }
            outcome.streams.push(found);
        }
        for recorder in &self.recorders {
            let recorder = lock(recorder);
            outcome.corrupt += recorder.corrupt;
            outcome.foreign += recorder.foreign;
        }
        Ok(outcome)
    }
}
