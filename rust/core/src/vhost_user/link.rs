//! `Link`: a connected QEMU and backend.

use super::answers::Known;
use super::channel::{End, Reader, Writer};
use super::line::Line;
use super::message::{Message, request};
use super::rewrite::Vrings;
use super::service::{Setup, first_pair};
use super::stand_in::StandIn;
use super::stopping::Stopping;
use rustix::event::PollFlags;
use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Default time for a side to read a message or answer a request. A backend's slowest task, mapping a
/// large memory, takes a second or two.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);
/// The most consecutive messages without a request that are forwarded. QEMU does not read them before
/// its next request, so more would soon fill its socket.
const MOST_STRAYS: u32 = 64;
/// If QEMU has sent nothing for this time, it has started all rings.
const QUIET: Duration = Duration::from_secs(1);

/// One side of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Qemu,
    Backend,
}

/// Why a link ended, and which side caused it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Cut {
    pub side: Side,
    pub end: End,
}

/// One direction. It holds at most one message: the next is read after it was written, so that the
/// sender blocks if the receiver does not read.
#[derive(Debug)]
struct Lane {
    reader: Reader,
    writer: Writer,
    /// Since when the message could not be written.
    waiting: Option<Instant>,
    passed: u64,
}

impl Lane {
    fn new(reader: Reader) -> Self {
        Self { reader, writer: Writer::default(), waiting: None, passed: 0 }
    }
}

/// A connected QEMU and backend, and the messages between them.
#[derive(Debug)]
pub(super) struct Link {
    qemu: Line,
    backend: Line,
    /// From QEMU to the backend.
    down: Lane,
    /// From the backend to QEMU.
    up: Lane,
    /// QEMU's open request, and since when.
    owed: Option<(Message, Instant)>,
    /// The time limit.
    timeout: Duration,
    setup: Setup,
    known: Known,
    /// The rings that must be started before the backend is used.
    expected: BTreeSet<u32>,
    service: Service,
    /// When QEMU last sent something.
    heard: Instant,
    /// Messages of the backend without a request since then.
    strays: u32,
}

/// Whether the backend processes the rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Service {
    /// The rings are not started yet.
    Awaited,
    /// They are; a question of ours, which holds up QEMU, is not answered yet.
    Asked(Instant),
    /// It was answered at this time; nothing else may follow.
    Answered(Instant),
    /// The backend processes the rings.
    Found,
}

impl Link {
    /// Connects the two sides, given non-blocking sockets.
    pub(super) fn new(qemu: Line, backend: Line) -> Self {
        let (down, up) = (Lane::new(Reader::new()), Lane::new(Reader::new()));
        Self {
            qemu,
            backend,
            down,
            up,
            owed: None,
            timeout: TIMEOUT,
            setup: Setup::default(),
            known: Known::default(),
            expected: first_pair(),
            service: Service::Awaited,
            heard: Instant::now(),
            strays: 0,
        }
    }

    /// Sets whether QEMU is creating a netdev, so that only acceptable answers are forwarded.
    pub(super) fn set_strict(&mut self, strict: bool) {
        self.known.strict = strict;
    }

    /// Sets the required queue pairs, the rings that must be started, and the time limit.
    pub(super) fn expecting(mut self, pairs: u16, rings: BTreeSet<u32>, timeout: Duration) -> Self {
        (self.known.pairs, self.expected, self.timeout) = (pairs, rings, timeout);
        self
    }

    /// Replaces the backend before QEMU notices that it failed.
    pub(super) fn into_stand_in(self) -> Option<StandIn> {
        let Self { qemu, down, up, owed, .. } = self;
        StandIn::taking_over(qemu, down.reader, up.writer, owed.map(|(message, _)| message))
    }

    /// Whether the backend has started its rings and answered since.
    pub(super) fn serves(&self) -> bool {
        self.service == Service::Found
    }

    /// How QEMU has set up the backend.
    pub(super) fn setup(&self) -> &Setup {
        &self.setup
    }

    pub(super) fn qemu(&self) -> BorrowedFd<'_> {
        self.qemu.as_fd()
    }
    pub(super) fn backend(&self) -> BorrowedFd<'_> {
        self.backend.as_fd()
    }

    /// The events to wait for at QEMU's and at the backend's socket. A socket without events must not be
    /// polled, as it would report a hang-up again and again.
    pub(super) fn interest(&self) -> (PollFlags, PollFlags) {
        let of = |from: &Lane, to: &Lane, held: bool| {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, !from.writer.busy() && !held);
            flags.set(PollFlags::OUT, to.writer.busy());
            flags
        };
        (of(&self.down, &self.up, self.holds_qemu()), of(&self.up, &self.down, false))
    }

    /// Stops the backend's rings after QEMU is gone, so that it does not write to our memory any more.
    /// Returns whether the backend has confirmed that; `None` if it is not complete.
    pub(super) fn stop_rings(&mut self, stopping: &mut Stopping) -> Option<bool> {
        loop {
            // QEMU's last message may be partly written.
            if self.down.writer.write(self.backend.as_fd()).is_err() {
                return Some(false);
            }
            if self.down.writer.busy() {
                return stopping.left();
            }
            if stopping.asked {
                match self.up.reader.read(self.backend.as_fd()) {
                    Ok(Some(message))
                        if message.is_reply() && message.request == request::GET_VRING_BASE =>
                    {
                        stopping.asked = false;
                    }
                    // Another message may come first. The time limit still applies.
                    Ok(_) => return stopping.left(),
                    Err(_) => return Some(false),
                }
            }
            let Some(ring) = stopping.rings.pop_front() else { return Some(true) };
            let mut message = Message::ask(request::GET_VRING_BASE);
            message.payload.extend(ring.to_ne_bytes());
            message.payload.extend([0; 4]);
            self.down.writer.put(message);
            stopping.asked = true;
        }
    }

    /// The events to wait for at the backend while it stops.
    pub(super) fn stopping_interest(&self) -> PollFlags {
        if self.down.writer.busy() { PollFlags::OUT } else { PollFlags::IN }
    }

    /// When [`Self::serve`] must be called at the latest.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let asked = self.asked();
        let owed = self.owed.as_ref().map(|(_, since)| *since);
        let late = [owed, self.down.waiting, self.up.waiting, asked].into_iter().flatten();
        let quiet = match self.service {
            Service::Awaited if self.setup.has(&first_pair()) => Some(self.heard + QUIET),
            // At once: then it is known whether another message follows.
            Service::Answered(_) => Some(self.heard),
            _ => None,
        };
        late.min().map(|since| since + self.timeout).into_iter().chain(quiet).min()
    }

    /// Since when our own question is open.
    fn asked(&self) -> Option<Instant> {
        match self.service {
            Service::Asked(since) | Service::Answered(since) => Some(since),
            _ => None,
        }
    }

    /// Whether QEMU's requests are held up, as their answers would be confused with ours.
    fn holds_qemu(&self) -> bool {
        self.asked().is_some()
    }

    /// Sends a question of our own to a backend whose rings are started. It answers GET_FEATURES at any
    /// time, after everything before.
    fn ask(&mut self, now: Instant) -> Result<(), Cut> {
        let quiet = now >= self.heard + QUIET && self.setup.has(&first_pair());
        let due = self.service == Service::Awaited && (quiet || self.setup.has(&self.expected));
        if !due || self.owed.is_some() || self.down.writer.busy() {
            return Ok(());
        }
        self.service = Service::Asked(now);
        self.down.writer.put(Message::ask(request::GET_FEATURES));
        let written = self.down.writer.write(self.backend.as_fd());
        written.map_err(|end| Cut { side: Side::Backend, end })
    }

    /// Forwards at most one message in each direction.
    pub(super) fn serve(
        &mut self,
        vrings: &Vrings,
        at_qemu: PollFlags,
        at_backend: PollFlags,
        now: Instant,
    ) -> Result<(), Cut> {
        if matches!(self.service, Service::Answered(_)) && !at_backend.contains(PollFlags::IN) {
            self.service = Service::Found;
        }
        // The backend first, so that a reply sent before it disconnected is delivered.
        let asked = matches!(self.service, Service::Asked(_));
        let mut wrong = None;
        let (owed, known, strays) = (&self.owed, &mut self.known, &mut self.strays);
        let reply = pass(
            &mut self.up,
            (self.backend.as_fd(), at_backend, Side::Backend),
            (self.qemu.as_fd(), at_qemu, Side::Qemu),
            |message| {
                if asked && message.is_reply() && message.request == request::GET_FEATURES {
                    return false;
                }
                let question = owed.as_ref().map(|(question, _)| question);
                wrong = known.objection(question, message);
                let stray = question.is_none() || !message.is_reply();
                if stray && !std::mem::take(&mut known.unsure) {
                    *strays += 1;
                    if *strays > MOST_STRAYS && wrong.is_none() {
                        wrong = Some(format!(
                            "it sent {strays} messages without a request, the last of them {}",
                            request::name(message.request)
                        ));
                    }
                }
                if wrong.is_none() {
                    vrings.reply(message);
                }
                wrong.is_none()
            },
            now,
        )?;
        if let Some(why) = wrong {
            return Err(Cut { side: Side::Backend, end: End::Broken(why) });
        }
        match reply {
            Some(Passed { kept: true, .. }) => self.service = Service::Answered(now),
            Some(Passed { is_reply: true, .. }) => self.owed = None,
            _ => {}
        }
        // QEMU is held up while our own question is open.
        let at_qemu = if self.holds_qemu() { PollFlags::empty() } else { at_qemu };
        let (setup, known, mut owed) = (&mut self.setup, &mut self.known, None);
        let request = pass(
            &mut self.down,
            (self.qemu.as_fd(), at_qemu, Side::Qemu),
            (self.backend.as_fd(), at_backend, Side::Backend),
            |message| {
                vrings.request(message);
                setup.request(message);
                known.request(message);
                if message.wants_reply() {
                    owed = Some((message.words(), now));
                }
                true
            },
            now,
        );
        // Even if forwarding failed, as QEMU waits for the answer.
        if owed.is_some() {
            self.owed = owed;
        }
        if request?.is_some() {
            (self.heard, self.strays) = (now, 0);
        }
        self.ask(now)?;
        self.check(now)
    }

    /// Adds the numbers of forwarded messages to the counters.
    pub(super) fn count(&mut self, to_backend: &AtomicU64, to_qemu: &AtomicU64) {
        for (lane, counter) in [(&mut self.down, to_backend), (&mut self.up, to_qemu)] {
            counter.fetch_add(std::mem::take(&mut lane.passed), Ordering::Relaxed);
        }
    }

    fn check(&self, now: Instant) -> Result<(), Cut> {
        let late = |since: Option<Instant>| since.is_some_and(|s| now >= s + self.timeout);
        let seconds = self.timeout.as_secs_f32();
        if let Some((question, since)) = &self.owed
            && late(Some(*since))
        {
            let name = request::name(question.request);
            let end = End::Broken(format!("it did not answer {name} for {seconds} s"));
            return Err(Cut { side: Side::Backend, end });
        }
        let (side, what) = if late(self.asked()) {
            (Side::Backend, "answer")
        } else if late(self.down.waiting) {
            (Side::Backend, "read")
        } else if late(self.up.waiting) {
            (Side::Qemu, "read")
        } else {
            return Ok(());
        };
        Err(Cut { side, end: End::Broken(format!("it did not {what} for {seconds} s")) })
    }
}

/// A message that was read.
struct Passed {
    is_reply: bool,
    /// It was for us and not forwarded.
    kept: bool,
}

type Socket<'a> = (BorrowedFd<'a>, PollFlags, Side);

/// Handles one direction: continues to write, or reads the next message. `edit` returns whether to
/// forward it.
fn pass(
    lane: &mut Lane,
    (from, at_from, source): Socket<'_>,
    (to, at_to, sink): Socket<'_>,
    mut edit: impl FnMut(&mut Message) -> bool,
    now: Instant,
) -> Result<Option<Passed>, Cut> {
    let broken = |end| Cut { side: sink, end };
    let mut passed = None;
    if lane.writer.busy() {
        if !at_to.is_empty() {
            lane.writer.write(to).map_err(broken)?;
        }
    } else if !at_from.is_empty() {
        let read = lane.reader.read(from).map_err(|end| Cut { side: source, end })?;
        if let Some(mut message) = read {
            let kept = !edit(&mut message);
            passed = Some(Passed { is_reply: message.is_reply(), kept });
            if !kept {
                lane.writer.put(message);
                lane.writer.write(to).map_err(broken)?;
                lane.passed += 1;
            }
        }
    }
    // The time limit is per message, as messages are short.
    match lane.writer.busy() {
        true if lane.waiting.is_none() => lane.waiting = Some(now),
        true => {}
        false => lane.waiting = None,
    }
    Ok(passed)
}

#[cfg(all(test, not(loom)))]
#[path = "link_tests.rs"]
mod tests;
