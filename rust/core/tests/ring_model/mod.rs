//! A model of a virtqueue that runs in step with a real ring and a real device.
//!
//! The model tracks the state of each token (added, available, held by the device, used), which
//! kicks and interrupts are due, and how many descriptors are free. Every step is compared with it.

#![allow(dead_code, reason = "each test binary uses its part")]

use proptest::prelude::*;
use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};
use virtnic::memory::{Iova, PageRequest, PageSize, Placement, Region, RegionOptions};
use virtnic::virtio::ring::testing::{Chain, Device, Part};
use virtnic::virtio::ring::{Ring, RingOptions};

/// A region that tests use one at a time; rings free their part of it.
pub fn region() -> Arc<Region> {
    static REGION: OnceLock<Arc<Region>> = OnceLock::new();
    let make = || {
        Region::new(&RegionOptions {
            size: 1 << 26,
            pages: PageRequest::Exactly(PageSize::Base),
            placement: Placement::At(Iova(1 << 36)),
            node: None,
            directory: None,
            buffer_size: 2048,
            jumbo_buffers: None,
            jumbo_size: None,
        })
        .unwrap()
    };
    Arc::clone(REGION.get_or_init(make))
}

/// One step. Counts are reduced modulo what is possible at that point.
#[derive(Clone, Debug)]
pub enum Step {
    /// Adds buffers of one descriptor.
    Add { count: usize, writable: bool, len: u32 },
    /// Adds one chain, with the lengths of its parts.
    Chain { readable: Vec<u32>, writable: Vec<u32> },
    /// Publishes. `quiet` leaves the kick to the next publish without `quiet`.
    Publish { quiet: bool },
    /// The device takes up to this many chains.
    Take(usize),
    /// The device uses up to this many of the chains it took, in the order given by `pick`.
    Use { count: usize, pick: Vec<usize>, fill: u32, batch: bool, flush: bool },
    /// The driver pops up to this many chains.
    Pop(usize),
    /// The driver enables interrupts.
    Interrupts(Preference),
    /// The device enables kicks.
    Kicks(bool),
    /// The queue is reset.
    Reset,
}

/// The interrupts that the driver enables.
#[derive(Clone, Copy, Debug)]
pub enum Preference {
    /// None.
    Off,
    /// The next.
    Next,
    /// After this many more chains.
    After(u16),
}

/// Random steps, weighted so that rings become full and empty.
pub fn steps(max: usize) -> impl Strategy<Value = Vec<Step>> {
    let len = 1u32..4096;
    let lens = |max| prop::collection::vec(1u32..4096, 0..max);
    let step = prop_oneof![
        6 => (0usize..40, any::<bool>(), len)
            .prop_map(|(count, writable, len)| Step::Add { count, writable, len }),
        4 => (lens(5), lens(5)).prop_map(|(readable, writable)| Step::Chain { readable, writable }),
        1 => (lens(40), lens(40))
            .prop_map(|(readable, writable)| Step::Chain { readable, writable }),
        6 => prop::bool::weighted(0.2).prop_map(|quiet| Step::Publish { quiet }),
        6 => (0usize..60).prop_map(Step::Take),
        6 => (
            0usize..60,
            prop::collection::vec(0usize..64, 1..8),
            any::<u32>(),
            any::<bool>(),
            prop::bool::weighted(0.8),
        )
            .prop_map(|(count, pick, fill, batch, flush)| Step::Use {
                count, pick, fill, batch, flush
            }),
        6 => (0usize..60).prop_map(Step::Pop),
        3 => prop_oneof![
            Just(Preference::Off),
            Just(Preference::Next),
            (1u16..40).prop_map(Preference::After)
        ]
        .prop_map(Step::Interrupts),
        2 => any::<bool>().prop_map(Step::Kicks),
        1 => prop::bool::weighted(0.1).prop_map(|reset| if reset { Step::Reset } else { Step::Pop(1) }),
    ];
    prop::collection::vec(step, 1..max)
}

/// The behaviour of the device.
#[derive(Clone, Copy, Debug)]
pub struct Behaviour {
    /// Uses chains in the order it took them.
    pub in_order: bool,
    /// Whether the model can predict interrupts exactly. A packed ring counts descriptors instead of
    /// chains, so it cannot there.
    pub exact: bool,
    /// Chains to process before the steps begin, to get close to a wrap.
    pub start: usize,
}

#[derive(Clone, Debug)]
struct Sent {
    token: u32,
    parts: Vec<Part>,
    descriptors: usize,
}

#[derive(Clone, Copy, Debug)]
enum Asked {
    Never,
    Always,
    /// When the chain with this number is used, or possibly from `from` on.
    At {
        from: usize,
        chain: usize,
    },
}

/// A ring, its device, and the model of their state.
struct Model<R, D> {
    options: RingOptions,
    behaviour: Behaviour,
    region: Arc<Region>,
    ring: R,
    device: D,
    next_token: u32,
    added: VecDeque<Sent>,
    available: VecDeque<Sent>,
    held: VecDeque<(Sent, Chain)>,
    unflushed: VecDeque<(u32, u32, usize)>,
    used: VecDeque<(u32, u32, usize)>,
    free: usize,
    /// Chains since the reset: published, checked for a kick, taken, visibly used, popped.
    published: usize,
    asked: usize,
    taken: usize,
    flushed: usize,
    popped: usize,
    kicks: Asked,
    interrupts: Asked,
    /// Descriptors published since the device enabled kicks and since the driver checked for one, and
    /// used since the driver enabled interrupts.
    since_kicks: usize,
    since_asked: usize,
    since_interrupts: usize,
}

impl<R: Ring, D: Device> Model<R, D> {
    fn new(options: RingOptions, behaviour: Behaviour) -> Self {
        let region = region();
        let mut ring = R::new(&region, &options).unwrap();
        let mut device = D::new(&region, ring.addresses(), &options);
        let mut gone = 0;
        while gone < behaviour.start {
            let wanted = usize::from(options.size).min(behaviour.start - gone);
            assert_eq!(ring.add(true, wanted, |i| (i as u32, Iova(1 << 36), 100)), wanted);
            ring.publish();
            assert_eq!(device.echo(wanted), wanted);
            assert_eq!(ring.pop(wanted, |_, len| assert_eq!(len, 100)), Ok(wanted));
            gone += wanted;
        }
        let mut model = Self {
            options,
            behaviour,
            region,
            free: ring.free(),
            ring,
            device,
            next_token: 0x8000_0000,
            added: VecDeque::new(),
            available: VecDeque::new(),
            held: VecDeque::new(),
            unflushed: VecDeque::new(),
            used: VecDeque::new(),
            published: 0,
            asked: 0,
            taken: 0,
            flushed: 0,
            popped: 0,
            kicks: Asked::Never,
            interrupts: Asked::Never,
            since_kicks: 0,
            since_asked: 0,
            since_interrupts: 0,
        };
        model.kicks(true);
        model.check();
        model
    }

    fn token(&mut self) -> u32 {
        self.next_token = self.next_token.wrapping_mul(3).wrapping_add(1);
        self.next_token
    }

    fn part(&self, salt: u32, len: u32, writable: bool) -> Part {
        let iova = self.region.iova().plus(u64::from(salt.wrapping_mul(0x9e37_79b9) >> 8));
        Part { iova, len, writable }
    }

    fn add(&mut self, count: usize, writable: bool, len: u32) {
        let wanted: Vec<Sent> = (0..count)
            .map(|i| {
                let token = self.token();
                let len = len + i as u32;
                let parts = vec![self.part(token, len, writable)];
                Sent { token, parts, descriptors: 1 }
            })
            .collect();
        let buffer = |i: usize| (wanted[i].token, wanted[i].parts[0].iova, wanted[i].parts[0].len);
        let added = self.ring.add(writable, count, buffer);
        assert_eq!(added, count.min(self.free));
        self.free -= added;
        self.added.extend(wanted.into_iter().take(added));
    }

    fn chain(&mut self, readable: &[u32], writable: &[u32]) {
        let token = self.token();
        let parts: Vec<Part> = readable
            .iter()
            .map(|&len| (len, false))
            .chain(writable.iter().map(|&len| (len, true)))
            .enumerate()
            .map(|(i, (len, writable))| self.part(token ^ i as u32, len, writable))
            .collect();
        let (front, back) = parts.split_at(readable.len());
        let pairs = |parts: &[Part]| parts.iter().map(|p| (p.iova, p.len)).collect::<Vec<_>>();
        let longest = usize::from(self.options.size).min(64);
        let indirect = self.options.indirect && (2..=longest).contains(&parts.len());
        let descriptors = if indirect { 1 } else { parts.len() };
        let fits = !parts.is_empty() && descriptors <= self.free;
        assert_eq!(self.ring.add_chain(token, &pairs(front), &pairs(back)), fits);
        if fits {
            self.free -= descriptors;
            self.added.push_back(Sent { token, parts, descriptors });
        }
    }

    fn publish(&mut self, quiet: bool) {
        self.published += self.added.len();
        let descriptors = self.added.iter().map(|sent| sent.descriptors).sum::<usize>();
        self.since_kicks += descriptors;
        self.since_asked += descriptors;
        self.available.append(&mut self.added);
        if quiet {
            self.ring.publish_quiet();
            return;
        }
        let due = match self.kicks {
            Asked::Never => false,
            Asked::Always => self.published > self.asked,
            Asked::At { chain, .. } => (self.asked..self.published).contains(&chain),
        };
        let kick = self.ring.publish();
        assert!(kick || !due, "a kick is lost");
        // A position in a packed ring repeats every second lap.
        let unclear = !self.behaviour.exact
            && self.since_kicks.max(self.since_asked) > usize::from(self.options.size);
        self.since_asked = 0;
        assert!(due || !kick || unclear, "nobody asked for a kick");
        assert!(!self.ring.wants_kick(), "asked twice");
        self.asked = self.published;
    }

    fn take(&mut self, count: usize) {
        for _ in 0..count {
            let Some(sent) = self.available.pop_front() else {
                assert_eq!(self.device.take(), None, "nothing was published");
                return;
            };
            let chain = self.device.take().unwrap();
            assert_eq!(chain.parts, sent.parts);
            self.taken += 1;
            self.held.push_back((sent, chain));
        }
    }

    fn use_some(&mut self, count: usize, pick: &[usize], fill: u32, batch: bool, flush: bool) {
        let count = count.min(self.held.len());
        let written = |chain: &Chain| match chain.capacity() {
            0 => 0,
            capacity => fill % (capacity + 1),
        };
        if self.behaviour.in_order && batch && self.options.in_order && count > 0 {
            let (sent, chains): (Vec<_>, Vec<_>) = self.held.drain(..count).unzip();
            let last = written(chains.last().unwrap());
            self.device.put_batch(&chains, last);
            for (i, (sent, chain)) in sent.iter().zip(&chains).enumerate() {
                let len = if i + 1 == count { last } else { chain.capacity() };
                self.unflushed.push_back((sent.token, len, sent.descriptors));
            }
        } else {
            for i in 0..count {
                let at = if self.behaviour.in_order { 0 } else { pick[i % pick.len()] };
                let (sent, chain) = self.held.remove(at % self.held.len()).unwrap();
                let len = written(&chain);
                self.device.put(&chain, len);
                self.unflushed.push_back((sent.token, len, sent.descriptors));
            }
        }
        if flush {
            self.flush();
        }
    }

    fn flush(&mut self) {
        let old = self.flushed;
        self.flushed += self.unflushed.len();
        self.since_interrupts += self.unflushed.iter().map(|used| used.2).sum::<usize>();
        self.used.append(&mut self.unflushed);
        let interrupted = self.device.flush();
        let new = self.flushed;
        match self.interrupts {
            Asked::Never => assert!(!interrupted, "nobody asked"),
            Asked::Always => assert_eq!(interrupted, new > old),
            Asked::At { from, chain } => {
                let must = (old..new).contains(&chain);
                let again =
                    !self.behaviour.exact && self.since_interrupts > usize::from(self.options.size);
                let may = old < new && (old <= chain && new > from || again);
                assert!(interrupted || !must, "lost: {chain} of {old}..{new}");
                assert!(!interrupted || may, "too early: {from}..{chain} of {old}..{new}");
                if interrupted && !self.behaviour.exact {
                    // The interrupt was sent, possibly early because of longer chains.
                    self.interrupts = Asked::At { from, chain: usize::MAX };
                }
            }
        }
    }

    fn pop(&mut self, max: usize) {
        assert_eq!(self.ring.has_used(), !self.used.is_empty());
        let mut got = Vec::new();
        let count = self.ring.pop(max, |token, len| got.push((token, len))).unwrap();
        assert_eq!(count, max.min(self.used.len()));
        assert_eq!(count, got.len());
        for pair in got {
            let (token, len, descriptors) = self.used.pop_front().unwrap();
            assert_eq!(pair, (token, len));
            self.free += descriptors;
        }
        self.popped += count;
    }

    fn interrupts(&mut self, preference: Preference) {
        let waiting = self.flushed - self.popped;
        let n = match preference {
            Preference::Off => {
                self.ring.disable_interrupts();
                self.interrupts = Asked::Never;
                return;
            }
            Preference::Next => 1,
            Preference::After(n) if self.options.event_idx => {
                usize::from(n).clamp(1, (self.published - self.popped).max(1))
            }
            Preference::After(_) => 1,
        };
        let already = match preference {
            Preference::After(n) => self.ring.enable_interrupts_after(n),
            _ => self.ring.enable_interrupts(),
        };
        assert!(already || waiting < n, "{waiting} used, {n} wanted, and it says to wait");
        assert!(!already || waiting > 0, "nothing is used, and it says not to wait");
        self.since_interrupts = 0;
        // With chains of several descriptors, a packed ring may have passed the event already.
        let past = already && !self.behaviour.exact && n > 1;
        let chain = if past { usize::MAX } else { self.popped + n - 1 };
        let from = if self.behaviour.exact { chain } else { self.popped };
        self.interrupts =
            if self.options.event_idx { Asked::At { from, chain } } else { Asked::Always };
    }

    fn kicks(&mut self, wanted: bool) {
        self.kicks = if !wanted {
            self.device.disable_kicks();
            Asked::Never
        } else {
            assert_eq!(self.device.enable_kicks(), !self.available.is_empty());
            self.since_kicks = 0;
            let chain = self.taken;
            if self.options.event_idx { Asked::At { from: chain, chain } } else { Asked::Always }
        };
    }

    fn reset(&mut self) {
        let mut expected: Vec<u32> = self.used.drain(..).map(|used| used.0).collect();
        expected.extend(self.unflushed.drain(..).map(|used| used.0));
        expected.extend(self.held.drain(..).map(|(sent, _)| sent.token));
        expected.extend(self.available.drain(..).map(|sent| sent.token));
        expected.extend(self.added.drain(..).map(|sent| sent.token));
        let mut returned = Vec::new();
        self.ring.reset(|token| returned.push(token));
        expected.sort_unstable();
        returned.sort_unstable();
        assert_eq!(returned, expected);
        (self.published, self.asked, self.taken, self.flushed, self.popped) = (0, 0, 0, 0, 0);
        self.since_asked = 0;
        self.free = self.options.size.into();
        self.interrupts = Asked::Never;
        self.device = D::new(&self.region, self.ring.addresses(), &self.options);
        self.kicks(true);
    }

    fn check(&self) {
        assert_eq!(self.ring.free(), self.free);
        assert_eq!(self.ring.in_flight(), self.published - self.popped);
        assert_eq!(self.ring.poisoned(), None);
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Add { count, writable, len } => self.add(*count, *writable, *len),
            Step::Chain { readable, writable } => self.chain(readable, writable),
            Step::Publish { quiet } => self.publish(*quiet),
            Step::Take(count) => self.take(*count),
            Step::Use { count, pick, fill, batch, flush } => {
                self.use_some(*count, pick, *fill, *batch, *flush);
            }
            Step::Pop(max) => self.pop(*max),
            Step::Interrupts(preference) => self.interrupts(*preference),
            Step::Kicks(wanted) => self.kicks(*wanted),
            Step::Reset => self.reset(),
        }
        self.check();
    }

    /// Checks that all tokens are returned and the ring is as empty as at the start.
    fn drain(&mut self) {
        self.publish(false);
        self.take(usize::MAX);
        self.use_some(usize::MAX, &[3, 0, 5], 77, true, true);
        self.pop(usize::MAX);
        self.check();
        assert_eq!(self.free, usize::from(self.options.size));
        assert_eq!(self.ring.in_flight(), 0);
    }
}

/// Runs the steps and empties the ring at the end.
pub fn run<R: Ring, D: Device>(options: RingOptions, behaviour: Behaviour, steps: &[Step]) {
    let mut model = Model::<R, D>::new(options, behaviour);
    for step in steps {
        model.step(step);
    }
    model.drain();
}
