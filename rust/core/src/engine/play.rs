//! Sends frames at the times at which each is due.

use super::BURST;
use super::control::{Control, Report};
use crate::net::{FrameBuffer, FrameSource, Port, SendStop};
use crate::{Error, Result};
use std::time::{Duration, Instant};

/// A frame that is due later than this is waited for asleep, until this is left: a sleep ends
/// late, by 50 µs and more (prctl(2), PR_SET_TIMERSLACK).
const AWAKE: Duration = Duration::from_micros(500);
/// The longest sleep between two looks at whether to go on.
const NAP: Duration = Duration::from_millis(20);
/// A frame that is sent later than this after it was due is counted.
const LATE: Duration = Duration::from_micros(10);

/// Frames in a row.
#[derive(Debug, Default)]
pub struct Passage {
    /// All their bytes.
    pub bytes: Vec<u8>,
    /// Each of them.
    pub frames: Vec<TimedFrame>,
}

/// When a frame is due, and where it is.
#[derive(Clone, Copy, Debug)]
pub struct TimedFrame {
    /// Nanoseconds after the first frame of all; never before the frame in front of it.
    pub due: u64,
    /// Its bytes in the passage.
    pub start: usize,
    /// How many.
    pub length: usize,
}

/// When frames are sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// As they are due, so many times as fast.
    Times(f64),
    /// So many a second, evenly.
    Rate(f64),
    /// As fast as they are taken.
    Most,
}

/// How well the times were kept.
#[derive(Clone, Copy, Debug, Default)]
pub struct Punctuality {
    /// Frames that were sent more than 10 µs after they were due.
    pub late: u64,
    /// The longest such delay.
    pub latest: Duration,
}

/// Sends passages in turn, each frame at its time. A frame that is late puts off no other.
///
/// # Errors
/// Those of `passages`; what ended the port; [`Error::Invalid`] for a pace that is none, and for a
/// frame that cannot be sent.
pub fn play(
    port: &Port,
    passages: impl Iterator<Item = Result<Passage>>,
    pace: Pace,
    mut control: Control<'_>,
) -> Result<(Report, Punctuality)> {
    if let Pace::Times(pace) | Pace::Rate(pace) = pace
        && !(pace > 0.0 && pace.is_finite())
    {
        return Err(Error::Invalid(format!("a speed is a number above 0, not {pace}")));
    }
    let (mut report, mut kept) = (Report::default(), Punctuality::default());
    let start = Instant::now();
    'all: for passage in passages {
        let passage = passage?;
        let mut next = 0;
        while next < passage.frames.len() {
            let sent = report.sent;
            let due = |at: usize| {
                passage.frames.get(at).map(|frame| match pace {
                    Pace::Times(times) => frame.due as f64 / times,
                    Pace::Rate(rate) => (sent as usize + at - next) as f64 / rate * 1e9,
                    Pace::Most => 0.0,
                })
            };
            let first = Duration::from_nanos(due(next).unwrap_or(0.0) as u64);
            if pace != Pace::Most && !wait(start, first, port, &mut report, &mut control)? {
                break 'all;
            }
            let now = start.elapsed();
            let reached = now.as_nanos() as f64;
            let most = BURST.min(control.left(report.sent));
            let count = (0..most).take_while(|i| due(next + i).is_some_and(|due| due <= reached));
            let count = count.count();
            let mut frames = Frames { passage: &passage, next, end: next + count };
            let (queued, stop) = port.send(&mut frames)?;
            let frames = &passage.frames[next..next + queued];
            report.sent += queued as u64;
            report.bytes += frames.iter().map(|frame| frame.length as u64).sum::<u64>();
            report.bursts += u64::from(queued > 0);
            report.held += u64::from(queued < count);
            next += queued;
            if let Some(SendStop::BadFrame(why)) = stop {
                return Err(Error::Invalid(format!("frame {} cannot be sent: {why}", report.sent)));
            }
            let delay = now.saturating_sub(first);
            if pace != Pace::Most && queued > 0 && delay > LATE {
                kept.late += queued as u64;
                kept.latest = kept.latest.max(delay);
            }
            if control.left(report.sent) == 0 || !control.go_on(&mut report, || port.running())? {
                break 'all;
            }
        }
    }
    report.elapsed = control.elapsed();
    Ok((report, kept))
}

/// Waits until so long after the start; false where the loop ends meanwhile.
fn wait(
    start: Instant,
    due: Duration,
    port: &Port,
    report: &mut Report,
    control: &mut Control<'_>,
) -> Result<bool> {
    loop {
        let left = due.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Ok(true);
        }
        if left > AWAKE {
            if !control.look(report, || port.running())? {
                return Ok(false);
            }
            std::thread::sleep((left - AWAKE).min(NAP));
        } else {
            std::hint::spin_loop();
        }
    }
}

/// Some frames of a passage.
struct Frames<'a> {
    passage: &'a Passage,
    next: usize,
    end: usize,
}

impl FrameSource for Frames<'_> {
    fn more(&mut self) -> bool {
        self.next < self.end
    }
    fn next(&mut self, buffer: &mut FrameBuffer<'_>) -> Result<usize, String> {
        let Some(&TimedFrame { start, length, .. }) = self.passage.frames.get(self.next) else {
            return Err("no frame is left".to_owned());
        };
        self.next += 1;
        buffer.fill(self.passage.bytes.get(start..start + length).unwrap_or_default())
    }
}
