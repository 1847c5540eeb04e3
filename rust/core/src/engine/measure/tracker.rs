//! Tracks exactly which frames of a stream have arrived, out of those that one queue sent.

use std::collections::VecDeque;

/// Frames per page.
const PAGE: u64 = 4096;
const WORDS: usize = (PAGE / 64) as usize;
/// The most pages that are kept. Their bitmaps take up to 128 MiB.
const MOST_PAGES: usize = 1 << 18;

/// The classification of a frame that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// The first frame with its number.
    New,
    /// A frame with this number had arrived before.
    Duplicate,
    /// It arrived so late that it may be a duplicate.
    Stale,
    /// It was sent before counting began.
    Early,
}

/// The counts of a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowCounts {
    /// Frames sent.
    pub sent: u64,
    /// Frames that arrived, each counted once.
    pub received: u64,
    /// Further copies of frames that had already arrived.
    pub duplicates: u64,
    /// Frames that arrived after one that was sent later.
    pub reordered: u64,
    /// The sum of all latencies, in nanoseconds.
    pub latency_sum: u64,
    /// The longest latency, in nanoseconds.
    pub latency_max: u64,
}

impl FlowCounts {
    /// Adds the counts of another queue.
    pub(super) fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.received += other.received;
        self.duplicates += other.duplicates;
        self.reordered += other.reordered;
        self.latency_sum += other.latency_sum;
        self.latency_max = self.latency_max.max(other.latency_max);
    }
}

/// The frames of a page that have arrived. A bitmap exists only if some have arrived, but not all.
#[derive(Debug, Default)]
struct Page {
    seen: Option<Box<[u64; WORDS]>>,
    count: u16,
}

impl Page {
    /// Marks a frame as arrived; false if it was marked before.
    #[inline]
    fn note(&mut self, at: u64) -> bool {
        if u64::from(self.count) == PAGE {
            return false;
        }
        let seen = self.seen.get_or_insert_with(|| Box::new([0; WORDS]));
        let (word, bit) = (&mut seen[(at / 64) as usize % WORDS], 1 << (at % 64));
        if *word & bit != 0 {
            return false;
        }
        *word |= bit;
        self.count += 1;
        if u64::from(self.count) == PAGE {
            self.seen = None;
        }
        true
    }
}

/// Tracks the frames of a stream that one queue sends.
#[derive(Debug)]
pub(super) struct Tracker {
    /// The number of the queue, and how many queues share the stream.
    lane: u64,
    lanes: u64,
    /// The first frame that counts; `None` before counting begins.
    first: Option<u64>,
    /// The first frame of the first page.
    base: u64,
    pages: VecDeque<Page>,
    /// The most pages to keep.
    most: usize,
    /// For each flow, the number after the latest frame that has arrived.
    latest: Vec<u64>,
    pub flows: Vec<FlowCounts>,
    /// The sum of all flows, except `sent`.
    pub total: FlowCounts,
    /// See [`Arrival::Stale`].
    pub stale: u64,
    pub early: u64,
}

impl Tracker {
    pub(super) fn new(lane: usize, lanes: usize, flows: u64) -> Self {
        let flows = flows.max(1) as usize;
        Self {
            lane: lane as u64,
            lanes: lanes as u64,
            first: None,
            base: 0,
            pages: VecDeque::new(),
            most: MOST_PAGES,
            latest: vec![0; flows],
            flows: vec![FlowCounts::default(); flows],
            total: FlowCounts::default(),
            stale: 0,
            early: 0,
        }
    }

    /// Begins counting with this frame.
    pub(super) fn begin(&mut self, first: u64) {
        (self.first, self.base) = (Some(first), first);
    }

    /// The frame's number in the stream, across all queues.
    #[inline]
    pub(super) fn whole(&self, number: u64) -> u64 {
        self.lane + self.lanes * number
    }

    /// Records the arrival of a frame, `latency` nanoseconds after it was due.
    #[inline]
    pub(super) fn arrived(&mut self, number: u64, latency: u64) -> Arrival {
        if self.first.is_none_or(|first| number < first) {
            self.early += 1;
            return Arrival::Early;
        }
        if number < self.base {
            self.stale += 1;
            return Arrival::Stale;
        }
        let (page, at) = ((number - self.base) / PAGE, (number - self.base) % PAGE);
        let page = page as usize;
        while page >= self.pages.len() {
            self.pages.push_back(Page::default());
        }
        let fresh = self.pages[page].note(at);
        if self.pages.len() > 1 {
            self.forget();
        }
        let count = self.flows.len() as u64;
        let index = if count == 1 { 0 } else { (self.whole(number) % count) as usize };
        let flow = &mut self.flows[index];
        if !fresh {
            flow.duplicates += 1;
            self.total.duplicates += 1;
            return Arrival::Duplicate;
        }
        flow.received += 1;
        self.total.received += 1;
        flow.latency_sum = flow.latency_sum.saturating_add(latency);
        flow.latency_max = flow.latency_max.max(latency);
        if number < self.latest[index] {
            flow.reordered += 1;
            self.total.reordered += 1;
        } else {
            self.latest[index] = number + 1;
        }
        Arrival::New
    }

    /// Removes complete pages, and the oldest pages if there are too many.
    #[inline]
    fn forget(&mut self) {
        let is_whole = |page: &Page| u64::from(page.count) == PAGE;
        // Frames before the first page cannot be told from duplicates, so some complete pages are
        // kept to recognise duplicates.
        while self.pages.len() > self.most
            || self.pages.len() > KEPT && self.pages.front().is_some_and(is_whole)
        {
            self.pages.pop_front();
            self.base += PAGE;
        }
    }

    /// The counts of each flow, given that the frames below `end` were sent.
    pub(super) fn account(&self, end: u64) -> Vec<FlowCounts> {
        let mut flows = self.flows.clone();
        let first = self.first.unwrap_or(end).min(end);
        let count = flows.len() as u64;
        let period = count / super::divisor(count, self.lanes);
        let (rounds, more) = ((end - first) / period, (end - first) % period);
        for step in 0..period {
            let flow = self.whole(first + step) % count;
            flows[flow as usize].sent += rounds + u64::from(step < more);
        }
        flows
    }
}

/// Complete pages that are kept to recognise duplicates.
const KEPT: usize = 1 << 14;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use std::collections::{HashMap, HashSet};

    /// Computes the expected counts in a simple, slow way.
    fn model(arrivals: &[u64], lane: u64, lanes: u64, count: u64) -> Vec<FlowCounts> {
        let mut flows = vec![FlowCounts::default(); count as usize];
        let (mut seen, mut last) = (HashSet::new(), HashMap::new());
        for &number in arrivals {
            let index = ((lane + lanes * number) % count) as usize;
            if !seen.insert(number) {
                flows[index].duplicates += 1;
                continue;
            }
            flows[index].received += 1;
            let latest = last.entry(index).or_insert(number);
            flows[index].reordered += u64::from(number < *latest);
            *latest = number.max(*latest);
        }
        flows
    }

    proptest! {
        #[test]
        fn counts_equal_those_of_a_simple_model(
            arrivals in prop::collection::vec(0u64..30_000, 0..600),
            lanes in 1u64..4, count in 1u64..20,
        ) {
            let mut tracker = Tracker::new(lanes as usize - 1, lanes as usize, count);
            tracker.begin(0);
            for &number in &arrivals {
                tracker.arrived(number, 0);
            }
            prop_assert_eq!(&tracker.flows, &model(&arrivals, lanes - 1, lanes, count));
            let sent: u64 = tracker.account(30_000).iter().map(|flow| flow.sent).sum();
            prop_assert_eq!(sent, 30_000);
        }
    }

    #[test]
    fn a_complete_page_takes_no_memory_and_recognises_duplicates() {
        let mut tracker = Tracker::new(0, 1, 1);
        tracker.begin(10);
        assert_eq!(tracker.arrived(9, 0), Arrival::Early);
        for number in 10..10 + PAGE {
            assert_eq!(tracker.arrived(number, 0), Arrival::New);
        }
        assert!(tracker.pages[0].seen.is_none());
        assert_eq!(tracker.arrived(10, 0), Arrival::Duplicate);
    }

    #[test]
    fn beyond_the_most_pages_the_oldest_are_removed_and_their_frames_are_stale() {
        let mut tracker = Tracker::new(0, 1, 1);
        tracker.most = 2;
        tracker.begin(0);
        for page in 0..4 {
            assert_eq!(tracker.arrived(page * PAGE, 0), Arrival::New);
        }
        assert_eq!(tracker.arrived(1, 0), Arrival::Stale);
        assert_eq!(tracker.arrived(2 * PAGE + 1, 0), Arrival::New);
        assert_eq!((tracker.stale, tracker.flows[0].received), (1, 5));
    }

    #[test]
    fn frames_sent_per_flow_follow_from_the_numbers() {
        for (lanes, count) in [(1u64, 7u64), (2, 6), (3, 7), (4, 2)] {
            for lane in 0..lanes {
                let mut tracker = Tracker::new(lane as usize, lanes as usize, count);
                tracker.begin(5);
                let mut sent = vec![0; count as usize];
                (5..1000).for_each(|number| sent[((lane + lanes * number) % count) as usize] += 1);
                let told = tracker.account(1000);
                assert_eq!(told.iter().map(|flow| flow.sent).collect::<Vec<_>>(), sent);
            }
        }
    }
}
