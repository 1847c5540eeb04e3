//! Who looks at the frames of a port, beside whoever moves them: time stamps, and taps.

use crate::net::port::Port;
use crate::net::stats::LiveQueueStats;
use crate::net::stats::tap::{TapReader, tap};
use std::sync::Arc;

/// The smallest ring of a tap, bytes: a few of the longest frames.
const LEAST: usize = 256 << 10;

/// Copies of what one queue of a port moves, until dropped.
#[derive(Debug)]
pub struct QueueTap {
    /// Whether it is a receive queue.
    pub receives: bool,
    /// Where its frames come out.
    pub reader: TapReader,
    queue: Arc<LiveQueueStats>,
}

impl QueueTap {
    /// Ends copying; what was copied can still be read. Twice is fine.
    pub fn stop(&self) {
        self.queue.watch.remove_tap(self.reader.number());
    }
}

impl Drop for QueueTap {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Port {
    /// Has each received burst say when it was taken from its ring
    /// ([`Burst::timestamp`](crate::net::Burst::timestamp)), from now on, or no longer. One reading of
    /// the clock for each burst; none, and no other work, where it is off.
    pub fn set_timestamps(&self, on: bool) {
        for pair in self.pairs() {
            pair.stats.rx.watch.set_stamps(on);
        }
    }
    /// Whether they do.
    pub fn timestamps(&self) -> bool {
        self.pairs().iter().any(|pair| pair.stats.rx.watch.stamps())
    }

    /// Copies what all its queues move, from the next burst on and in running loops too: the first
    /// `snap` bytes of each frame, into rings of `bytes` together (each of 256 KiB at least). Never
    /// waits for who reads: what finds no room is counted and left out.
    #[must_use]
    pub fn tap(&self, bytes: usize, snap: u32) -> Vec<QueueTap> {
        let each = (bytes / (2 * self.pairs().len())).max(LEAST);
        let mut taps = Vec::with_capacity(2 * self.pairs().len());
        for pair in self.pairs() {
            for (receives, queue) in [(true, &pair.stats.rx), (false, &pair.stats.tx)] {
                let (end, reader) = tap(each, snap);
                queue.watch.add_tap(end);
                taps.push(QueueTap { receives, reader, queue: queue.clone() });
            }
        }
        taps
    }
}
