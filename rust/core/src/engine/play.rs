//! The play loop: sends each frame at its due time.

use super::BURST;
use super::control::{Control, Report};
use crate::net::{FrameBuffer, FrameSource, Port, SendStop};
use crate::{Error, Result};
use std::time::{Duration, Instant};

/// The last part of a wait, which is spent polling: a sleep ends 50 µs or more late (prctl(2),
/// PR_SET_TIMERSLACK).
const AWAKE: Duration = Duration::from_micros(500);
/// The longest sleep before the control is checked again.
const NAP: Duration = Duration::from_millis(20);
/// A frame sent later than this after its due time counts as late.
const LATE: Duration = Duration::from_micros(10);

/// Consecutive frames of a recording.
#[derive(Debug, Default)]
pub struct TimedFrames {
    /// The bytes of all frames.
    pub bytes: Vec<u8>,
    /// Their times and places.
    pub frames: Vec<TimedFrame>,
}

/// When a frame is due, and where its bytes are.
#[derive(Clone, Copy, Debug)]
pub struct TimedFrame {
    /// Nanoseconds after the first frame of the recording; never decreases.
    pub due: u64,
    /// Offset of its bytes in [`TimedFrames::bytes`].
    pub start: usize,
    /// Its length in bytes.
    pub length: usize,
}

/// When frames are sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// At their due times, sped up by this factor.
    Times(f64),
    /// At this constant rate, in frames per second.
    Rate(f64),
    /// As fast as the device takes them.
    Most,
}

/// How late frames were sent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lateness {
    /// Frames that were sent more than 10 µs after their due time.
    pub late: u64,
    /// The longest such delay.
    pub latest: Duration,
}

/// Sends the chunks of a recording in turn, each frame at its time. A late frame does not delay the
/// due times of later ones.
///
/// # Errors
/// Those of `chunks`; what ended the port; [`Error::Invalid`] for an invalid pace or a frame that
/// cannot be sent.
pub fn play(
    port: &Port,
    chunks: impl Iterator<Item = Result<TimedFrames>>,
    pace: Pace,
    mut control: Control<'_>,
) -> Result<(Report, Lateness)> {
    if let Pace::Times(pace) | Pace::Rate(pace) = pace
        && !(pace > 0.0 && pace.is_finite())
    {
        return Err(Error::Invalid(format!("the speed must be a number above 0, not {pace}")));
    }
    let (mut report, mut lateness) = (Report::default(), Lateness::default());
    let start = Instant::now();
    'all: for chunk in chunks {
        let chunk = chunk?;
        let mut next = 0;
        while next < chunk.frames.len() {
            let sent = report.sent;
            let due = |at: usize| {
                chunk.frames.get(at).map(|frame| match pace {
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
            let mut frames = Frames { chunk: &chunk, next, end: next + count };
            let (queued, stop) = port.send(&mut frames)?;
            let frames = &chunk.frames[next..next + queued];
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
                lateness.late += queued as u64;
                lateness.latest = lateness.latest.max(delay);
            }
            if control.left(report.sent) == 0 || !control.go_on(&mut report, || port.running())? {
                break 'all;
            }
        }
    }
    report.elapsed = control.elapsed();
    Ok((report, lateness))
}

/// Waits until `due` after `start`. Returns false if the loop ends meanwhile.
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
            if !control.check(report, || port.running())? {
                return Ok(false);
            }
            std::thread::sleep((left - AWAKE).min(NAP));
        } else {
            std::hint::spin_loop();
        }
    }
}

/// Some frames of a chunk.
struct Frames<'a> {
    chunk: &'a TimedFrames,
    next: usize,
    end: usize,
}

impl FrameSource for Frames<'_> {
    fn more(&mut self) -> bool {
        self.next < self.end
    }
    fn next(&mut self, buffer: &mut FrameBuffer<'_>) -> Result<usize, String> {
        let Some(&TimedFrame { start, length, .. }) = self.chunk.frames.get(self.next) else {
            return Err("no frame is left".to_owned());
        };
        self.next += 1;
        buffer.fill(self.chunk.bytes.get(start..start + length).unwrap_or_default())
    }
}
