//! Sends streams through a transmit queue, each frame when it is due.

use super::pattern::Variation;
use super::signature::{Key, Mark};
use super::template::Program;
use crate::engine::BURST;
use crate::engine::generate::emptied;
use crate::memory::Pool;
use crate::net::{Claim, Port, Replay, TxQueue};
use crate::{Error, Result};

/// Nanoseconds after the time at which it was due from which on a frame counts as late.
const LATE: u64 = 10_000;

/// Computes when the frames of one queue are due.
#[derive(Clone, Copy, Debug)]
pub(in crate::engine) struct Pacer {
    /// Nanoseconds from one frame to the next; `None`: all are due at once.
    gap: Option<f64>,
    burst: u64,
    start: f64,
}

impl Pacer {
    /// For queue `lane` out of `lanes` queues, beginning at `start` (nanoseconds).
    pub(in crate::engine) fn new(program: &Program, lane: u64, lanes: u64, start: u64) -> Self {
        let gap = program.gap.map(|gap| gap * lanes as f64);
        let offset = program.gap.unwrap_or(0.0) * (lane * program.burst) as f64;
        Self { gap, burst: program.burst, start: start as f64 + offset }
    }

    /// When the frame `number` is due.
    #[inline(always)]
    pub(in crate::engine) fn time(&self, number: u64) -> Option<u64> {
        let gap = self.gap?;
        let first = if self.burst > 1 { number - number % self.burst } else { number };
        Some((self.start + gap * first as f64) as u64)
    }

    /// The total number of frames due by `now`.
    #[inline]
    pub(in crate::engine) fn due(&self, now: u64) -> Option<u64> {
        let gap = self.gap?;
        let since = now as f64 - self.start;
        if since < 0.0 {
            return Some(0);
        }
        let bursts = (since / (gap * self.burst as f64)) as u64 + 1;
        Some(bursts.saturating_mul(self.burst))
    }
}

/// The part of a stream that one queue sends.
#[derive(Debug)]
pub(in crate::engine) struct Sender<'a> {
    program: &'a Program,
    variations: Vec<Variation>,
    pub pacer: Pacer,
    /// The next frame's number.
    pub next: u64,
    /// The index of the next template, and the step to the one after it.
    turn: usize,
    stride: usize,
    /// The number of the next head, and the step to the one after it.
    head: usize,
    leap: usize,
    /// The number of its first template among those of all streams.
    from: u32,
    /// Stream and queue, for the signatures.
    source: u16,
    /// Frames that were sent late, and the longest delay.
    pub late: u64,
    pub latest: u64,
    /// Bytes sent.
    pub bytes: u64,
}

/// Claims a transmit queue and sends streams through it, until dropped.
pub(in crate::engine) struct Source<'a> {
    port: &'a Port,
    tx: Claim<'a, TxQueue>,
    key: Key,
    pub senders: Vec<Sender<'a>>,
    /// The number of the template in each buffer.
    held: Vec<u32>,
    /// The stream that is first in the next turn.
    first: usize,
}

impl<'a> Source<'a> {
    /// Claims queue `lane` out of `lanes` queues, with its own buffers.
    pub(in crate::engine) fn new(
        port: &'a Port,
        lane: usize,
        lanes: usize,
        programs: &'a [Program],
        key: Key,
        start: u64,
    ) -> Result<Self> {
        let mut tx = emptied(port, lane)?;
        let longest = programs.iter().map(Program::longest).max().unwrap_or(0);
        let ids = take(port.pool(), tx.size() + 2 * BURST, longest > port.pool().capacity())?;
        let count = ids.len();
        if let Some(template) = programs.first().and_then(|program| program.templates.first()) {
            for &id in &ids {
                // SAFETY: the buffer is ours, and holds the longest template.
                unsafe { template.copy(port.pool().data_ptr(id)) };
            }
        }
        tx.load(Replay::new(port.pool(), ids, vec![0; count]));
        let (lane, lanes) = (lane as u64, lanes as u64);
        let mut from = 0;
        let mut senders = Vec::with_capacity(programs.len());
        for (number, program) in programs.iter().enumerate() {
            let templates = program.templates.len();
            senders.push(Sender {
                program,
                variations: program
                    .variations
                    .iter()
                    .map(|each| each.of_lane(lane, lanes))
                    .collect(),
                pacer: Pacer::new(program, lane, lanes, start),
                next: 0,
                turn: lane as usize % templates,
                stride: lanes as usize % templates,
                head: lane as usize % program.heads,
                leap: lanes as usize % program.heads,
                from,
                source: (number as u64 * lanes + lane) as u16,
                late: 0,
                latest: 0,
                bytes: 0,
            });
            from += templates as u32;
        }
        Ok(Self { port, tx, key, senders, held: vec![0; count], first: 0 })
    }

    /// Sends the frames that are due, at most `most`, and returns how many. Before frames of a
    /// stream are sent, `about_to` is called with the stream and the number after the last of them.
    #[inline]
    pub(in crate::engine) fn turn(
        &mut self,
        now: u64,
        most: usize,
        about_to: impl Fn(usize, u64),
    ) -> Result<usize> {
        self.tx.lend();
        let Self { port, tx, key, senders, held, first } = self;
        let count = senders.len();
        let each = BURST.div_ceil(count);
        let mut total = 0;
        for number in (*first..count).chain(0..*first) {
            let sender = &mut senders[number];
            let due = sender.pacer.due(now).map_or(u64::MAX, |due| due.saturating_sub(sender.next));
            let most = usize::try_from(due).unwrap_or(usize::MAX).min(each).min(most - total);
            if most == 0 {
                continue;
            }
            about_to(number, sender.next + most as u64);
            let sent = sender.send(tx, *key, held, now, most);
            total += sent.map_err(|error| port.fault(error))?;
        }
        *first = if *first + 1 < count { *first + 1 } else { 0 };
        Ok(total)
    }

    /// The number of frames that the device has not taken.
    pub(in crate::engine) fn waiting(&mut self) -> Result<usize> {
        self.tx.reclaim().map_err(|error| self.port.fault(error))?;
        Ok(self.tx.in_flight())
    }

    /// Takes back what the device has sent.
    pub(in crate::engine) fn lend(&mut self) {
        self.tx.lend();
    }
}

impl Sender<'_> {
    #[inline]
    fn send(
        &mut self,
        tx: &mut TxQueue,
        key: Key,
        held: &mut [u32],
        now: u64,
        most: usize,
    ) -> Result<usize> {
        // Locals, so that the loop keeps them in registers.
        let Self { program, stride, from, leap, .. } = *self;
        let (mut next, mut turn, mut head) = (self.next, self.turn, self.head);
        let templates = program.templates.as_slice();
        let (sent, bytes) = tx.send_written(most, |buffer, to| {
            let Some(template) = templates.get(turn) else { return 0 };
            let wanted = from + turn as u32;
            if let Some(has) = held.get_mut(buffer)
                && *has != wanted
            {
                // SAFETY: the buffer is not with the device, and holds the longest template.
                unsafe { template.copy(to) };
                *has = wanted;
            }
            let seal = program.signed.then(|| {
                let time = self.pacer.time(next).unwrap_or(now);
                (key, Mark { source: self.source, number: next, time })
            });
            // SAFETY: the buffer has the template.
            unsafe { template.write(head, &mut self.variations, seal, to) };
            next += 1;
            turn = after(turn, stride, templates.len());
            head = after(head, leap, program.heads);
            template.bytes.len() as u32
        })?;
        let before = std::mem::replace(&mut self.next, next);
        (self.turn, self.head) = (turn, head);
        self.bytes += bytes;
        if sent > 0
            && let Some(due) = self.pacer.time(before)
            && now.saturating_sub(due) > LATE
        {
            self.late += sent as u64;
            self.latest = self.latest.max(now - due);
        }
        Ok(sent)
    }
}

/// The next of `count` numbers, `step` further on.
#[inline(always)]
fn after(number: usize, step: usize, count: usize) -> usize {
    let next = number + step;
    if next >= count { next - count } else { next }
}

impl Drop for Source<'_> {
    fn drop(&mut self) {
        self.tx.unload();
    }
}

/// Takes `wanted` buffers, or fewer if only those reserved for receiving are left. Of jumbo
/// buffers, takes at most half of the free ones.
fn take(pool: &Pool, wanted: usize, long: bool) -> Result<Vec<u32>> {
    let mut ids = Vec::with_capacity(wanted);
    let (spare, jumbos) = pool.spare();
    if long {
        let most = jumbos.min(pool.jumbo_free().div_ceil(2)).min(wanted);
        ids.extend((0..most).map_while(|_| pool.take_spare_jumbo()));
    } else {
        pool.take_spare(&mut ids, wanted.min(spare));
    }
    if ids.is_empty() {
        let kind = if long { "jumbo " } else { "" };
        return Err(Error::MemoryUnavailable(format!(
            "no {kind}buffer is free for frames to send, beside those that are kept for receiving; \
             make the memory larger, or release bursts"
        )));
    }
    Ok(ids)
}
