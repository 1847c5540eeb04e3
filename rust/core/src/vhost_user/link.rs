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
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
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
    patience: Duration,
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
            patience: PATIENCE,
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
    pub(super) fn expecting(
        mut self,
        pairs: u16,
        rings: BTreeSet<u32>,
        patience: Duration,
    ) -> Self {
        (self.known.pairs, self.expected, self.patience) = (pairs, rings, patience);
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
        late.min().map(|since| since + self.patience).into_iter().chain(quiet).min()
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
        let late = |since: Option<Instant>| since.is_some_and(|s| now >= s + self.patience);
        let seconds = self.patience.as_secs_f32();
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
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::message::{NEED_REPLY, REPLY};
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    const ALL: PollFlags = PollFlags::IN.union(PollFlags::OUT);

    fn vrings() -> Vrings {
        Vrings::new(Vec::new())
    }

    fn link() -> (UnixStream, Link, UnixStream) {
        let (qemu, ours) = UnixStream::pair().unwrap();
        let (backend, theirs) = UnixStream::pair().unwrap();
        (qemu, Link::new(OwnedFd::from(ours).into(), OwnedFd::from(theirs).into()), backend)
    }

    fn bytes(request: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
        let mut message = Message::ask(request);
        message.flags = flags;
        message.payload = payload.to_vec();
        message.to_bytes()
    }

    #[test]
    fn a_backend_that_does_not_answer_is_disconnected() {
        let start = Instant::now();
        for (request, flags) in [(request::GET_QUEUE_NUM, 1), (999, 1 | NEED_REPLY)] {
            let (mut qemu, mut link, mut backend) = link();
            qemu.write_all(&bytes(request, flags, &[])).unwrap();
            link.serve(&vrings(), ALL, ALL, start).unwrap();
            assert_eq!(link.deadline(), Some(start + PATIENCE));
            link.serve(&vrings(), ALL, ALL, start + PATIENCE / 2).unwrap();
            // Half an answer does not count.
            backend.write_all(&bytes(request, 1 | REPLY, &[0; 8])[..8]).unwrap();
            let cut = link.serve(&vrings(), ALL, ALL, start + PATIENCE).unwrap_err();
            assert_eq!(cut.side, Side::Backend);
            assert!(
                cut.end.to_string().contains("did not answer ")
                    && cut.end.to_string().contains("for 10 s"),
                "{}",
                cut.end
            );
        }
        let (mut qemu, mut link, mut backend) = link();
        qemu.write_all(&bytes(request::GET_QUEUE_NUM, 1, &[])).unwrap();
        link.serve(&vrings(), ALL, ALL, start).unwrap();
        backend.write_all(&bytes(request::GET_QUEUE_NUM, 1 | REPLY, &[0; 8])).unwrap();
        link.serve(&vrings(), ALL, ALL, start + PATIENCE * 2).unwrap();
        assert_eq!(link.deadline(), None);
    }

    #[test]
    fn a_request_that_the_backend_did_not_receive_is_answered() {
        let (mut qemu, mut link, backend) = link();
        qemu.write_all(&bytes(request::GET_QUEUE_NUM, 1, &[])).unwrap();
        drop(backend);
        // QEMU's request is read first.
        let cut = link.serve(&vrings(), ALL, PollFlags::empty(), Instant::now()).unwrap_err();
        assert_eq!(cut.side, Side::Backend);
        link.into_stand_in().unwrap().serve().unwrap();
        let mut reply = [0; 20];
        qemu.set_read_timeout(Some(PATIENCE)).unwrap();
        qemu.read_exact(&mut reply).unwrap();
        assert_eq!(reply[..4], request::GET_QUEUE_NUM.to_ne_bytes());
    }

    #[test]
    fn a_backend_without_qemu_stops_its_rings() {
        let (qemu, mut link, mut backend) = link();
        drop(qemu);
        let served = std::thread::spawn(move || {
            let mut asked = Vec::new();
            for _ in 0..2 {
                let mut message = [0; 20];
                backend.read_exact(&mut message).unwrap();
                assert_eq!(message[..4], request::GET_VRING_BASE.to_ne_bytes());
                asked.push(message[12]);
                // Another message may come first.
                backend.write_all(&bytes(998, 1, &[1])).unwrap();
                let reply = bytes(request::GET_VRING_BASE, 1 | REPLY, &message[12..]);
                backend.write_all(&reply).unwrap();
            }
            (asked, backend)
        });
        assert!(stopped(&mut link, &[0, 3], PATIENCE));
        let (asked, backend) = served.join().unwrap();
        assert_eq!(asked, [0, 3]);
        // The wait for one that does not answer is limited.
        assert!(!stopped(&mut link, &[0], Duration::from_millis(20)));
        drop(backend);
        assert!(!stopped(&mut link, &[0], PATIENCE));
    }

    /// Other messages of the backend do not delay the end.
    #[test]
    fn stopping_ends_whatever_a_backend_sends() {
        let (_qemu, mut link, mut backend) = link();
        let mut stopping = Stopping::of(vec![0], Duration::ZERO);
        for _ in 0..100 {
            backend.write_all(&bytes(998, 1, &[1])).unwrap();
        }
        assert_eq!(link.stop_rings(&mut stopping), Some(false), "no message was the answer");
        let mut asked = [0; 20];
        backend.read_exact(&mut asked).unwrap();
        let mut stopping = Stopping::of(vec![0], PATIENCE);
        assert_eq!(link.stop_rings(&mut stopping), None);
        let answer = bytes(request::GET_VRING_BASE, 1 | REPLY, &[0; 8]);
        backend.write_all(&answer).unwrap();
        let steps = (0..200).take_while(|_| link.stop_rings(&mut stopping).is_none()).count();
        assert!(steps <= 100, "{steps}");
    }

    fn stopped(link: &mut Link, rings: &[u32], patience: Duration) -> bool {
        let mut stopping = Stopping::of(rings.to_vec(), patience);
        loop {
            if let Some(stopped) = link.stop_rings(&mut stopping) {
                return stopped;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_side_that_does_not_read_is_disconnected() {
        let start = Instant::now();
        let (mut qemu, mut link, mut backend) = link();
        qemu.set_nonblocking(true).unwrap();
        let message = bytes(999, 1, &[7; 60_000]);
        let mut sent = 0;
        while let Ok(count) = qemu.write(&message[sent % message.len()..]) {
            sent += count;
            link.serve(&vrings(), ALL, ALL, start).unwrap();
        }
        // The backend's socket, the lane and QEMU's socket are full: no more is read.
        assert_eq!(link.interest().0, PollFlags::empty());
        assert_eq!(link.interest().1, ALL);
        // It may be an answer to the unknown message.
        backend.write_all(&bytes(998, 1, &[1])).unwrap();
        link.serve(&vrings(), ALL, ALL, start + PATIENCE / 2).unwrap();
        let mut reply = [0; 13];
        qemu.read_exact(&mut reply).unwrap();
        assert_eq!(reply[..4], 998u32.to_ne_bytes());
        let cut = link.serve(&vrings(), ALL, ALL, start + PATIENCE).unwrap_err();
        assert_eq!(cut.side, Side::Backend);
        assert!(cut.end.to_string().contains("did not read for 10 s"), "{}", cut.end);
    }

    #[test]
    fn a_backend_that_sends_without_end_is_disconnected() {
        for (what, flags) in [(998, 1), (request::GET_FEATURES, 1 | REPLY)] {
            let (mut qemu, mut link, mut backend) = link();
            for ring in [0u32, 1] {
                let kick =
                    bytes(request::SET_VRING_KICK, 1, &u64::from(ring | 0x100).to_ne_bytes());
                let enable = [ring.to_ne_bytes(), 1u32.to_ne_bytes()].concat();
                qemu.write_all(&kick).unwrap();
                qemu.write_all(&bytes(request::SET_VRING_ENABLE, 1, &enable)).unwrap();
            }
            let flood: Vec<u8> = bytes(what, flags, &[0; 8]).repeat(200);
            let now = Instant::now();
            let mut cut = None;
            for step in 0..400 {
                if step == 3 {
                    backend.write_all(&flood).unwrap();
                }
                if let Err(end) = link.serve(&vrings(), ALL, ALL, now) {
                    cut = Some(end);
                    break;
                }
                assert!(!link.serves(), "{what}");
            }
            let cut = cut.unwrap();
            assert_eq!(cut.side, Side::Backend);
            assert!(cut.end.to_string().contains("65 messages without a request"));
        }
    }
}
