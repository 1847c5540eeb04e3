//! Next hops whose MAC addresses were asked for, and who waits for them.

use super::entry::Id;
use smoltcp::time::{Duration, Instant};
use std::collections::HashMap;
use std::net::IpAddr;

/// Time before a request is repeated, and before smoltcp polls a waiting socket.
pub(super) const SILENT: Duration = Duration::from_secs(1);
/// Number of hops at which those that did not answer are removed.
const MANY: usize = 64;

#[derive(Debug)]
struct Hop {
    asked: Instant,
    waiting: Vec<Id>,
}

#[derive(Debug, Default)]
pub(super) struct Hops {
    hops: HashMap<IpAddr, Hop>,
    limit: usize,
}

impl Hops {
    /// Adds a socket that waits for a hop. Returns whether to ask for the hop: at most once a second.
    pub(super) fn wait(&mut self, hop: IpAddr, id: Option<Id>, now: Instant) -> bool {
        if self.hops.len() >= self.limit.max(MANY) {
            self.hops.retain(|_, hop| now < hop.asked + SILENT);
            self.limit = 2 * self.hops.len();
        }
        let new = !self.hops.contains_key(&hop);
        let hop = self.hops.entry(hop).or_insert(Hop { asked: now, waiting: Vec::new() });
        hop.waiting.extend(id.filter(|id| !hop.waiting.contains(id)));
        let ask = new || now >= hop.asked + SILENT;
        if ask {
            hop.asked = now;
        }
        ask
    }

    /// Removes a hop that has answered. Returns who waited for it; `None`: it was not asked.
    pub(super) fn answered(&mut self, hop: IpAddr) -> Option<Vec<Id>> {
        self.hops.remove(&hop).map(|hop| hop.waiting)
    }
}
