//! Models of every interleaving: `RUSTFLAGS="--cfg loom" cargo test -p virtnic --release --lib loom`.
//!
//! The free list and the eventfd are abstract; threshold, demand and registry are the real ones.
//! A queue that is not told sleeps for ever, which loom reports as a deadlock.

#![allow(clippy::unwrap_used)]

use super::{Demand, Registry, Threshold};
use loom::sync::{Condvar, Mutex};
use loom::thread;
use std::sync::Arc;

/// Every interleaving with so many threads being interrupted; without a bound it takes hours.
fn model(body: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(body);
}

/// An eventfd as the kernel does it: a count under a lock, and sleepers.
#[derive(Default)]
struct AbstractEventFd {
    count: Mutex<u64>,
    readers: Condvar,
}

impl AbstractEventFd {
    fn signal(&self) {
        *self.count.lock().unwrap() += 1;
        self.readers.notify_all();
    }
    fn drain(&self) {
        *self.count.lock().unwrap() = 0;
    }
    fn wait(&self) {
        let mut count = self.count.lock().unwrap();
        while *count == 0 {
            count = self.readers.wait(count).unwrap();
        }
    }
}

struct Pool {
    list: Mutex<(usize, Threshold)>,
    registry: Arc<Registry>,
}

impl Pool {
    fn new() -> Arc<Self> {
        let list = Mutex::new((0, Threshold::new()));
        Arc::new(Self { list, registry: Arc::default() })
    }
    /// As `Pool::give` of one buffer.
    fn give(&self) {
        let tell = {
            let mut list = self.list.lock().unwrap();
            list.0 += 1;
            let free = list.0;
            list.1.reached(free)
        };
        if tell {
            self.registry.tell();
        }
    }
    /// As `take_to_receive` of all that are missing, of which one at least is needed.
    fn take(&self, wanted: usize, demand: &Demand) -> usize {
        let mut list = self.list.lock().unwrap();
        let got = wanted.min(list.0);
        list.0 -= got;
        if got == 0 {
            list.1.want(demand, 1);
        } else {
            demand.withdraw();
        }
        got
    }
}

/// A queue, and whoever waits for it.
fn starving(pool: &Pool) -> impl FnOnce(&Pool, usize) + use<> {
    let bell = Arc::new(AbstractEventFd::default());
    let demand = pool.registry.add_demand(0);
    let struck = Arc::clone(&bell);
    demand.ring(move || struck.signal());
    move |pool, mut wanted| loop {
        wanted -= pool.take(wanted, &demand);
        if wanted == 0 {
            return;
        }
        // As `Wakeup::exhausted`: forget the signals, then look once more.
        bell.drain();
        if demand.is_unmet() {
            bell.wait();
        }
    }
}

#[test]
fn loom_a_starved_queue_is_told_of_every_buffer() {
    model(|| {
        let pool = Pool::new();
        let queue = starving(&pool);
        let givers: Vec<_> = (0..2)
            .map(|_| {
                let pool = Arc::clone(&pool);
                thread::spawn(move || pool.give())
            })
            .collect();
        queue(&pool, 2);
        givers.into_iter().for_each(|giver| giver.join().unwrap());
        assert!(!pool.registry.starved());
    });
}

#[test]
fn loom_two_starved_queues_of_one_memory_are_both_told() {
    model(|| {
        let pool = Pool::new();
        let (one, other) = (starving(&pool), starving(&pool));
        let second = {
            let pool = Arc::clone(&pool);
            thread::spawn(move || other(&pool, 1))
        };
        let giver = {
            let pool = Arc::clone(&pool);
            thread::spawn(move || {
                pool.give();
                pool.give();
            })
        };
        one(&pool, 1);
        second.join().unwrap();
        giver.join().unwrap();
        assert!(!pool.registry.starved());
    });
}
