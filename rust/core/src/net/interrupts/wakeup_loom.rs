//! Models of every interleaving: `RUSTFLAGS="--cfg loom" cargo test -p virtnic --release --lib loom`.
//!
//! The queue and the eventfd are abstract, the protocol is the real one. A lost wake-up
//! leaves a thread asleep, which loom reports as a deadlock.

#![allow(clippy::unwrap_used)]

use super::{Bell, Interrupts, Wakeup};
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use loom::sync::{Condvar, Mutex};
use loom::thread;
use std::sync::Arc;

/// An eventfd as the kernel does it: a count under a lock, and sleepers.
#[derive(Default)]
struct AbstractEventFd {
    count: Mutex<u64>,
    readers: Condvar,
}

impl AbstractEventFd {
    fn wait(&self) {
        let mut count = self.count.lock().unwrap();
        while *count == 0 {
            count = self.readers.wait(count).unwrap();
        }
    }
}

impl Bell for AbstractEventFd {
    fn quiet(&self) -> bool {
        std::mem::take(&mut *self.count.lock().unwrap()) > 0
    }
    fn ring(&self) {
        *self.count.lock().unwrap() += 1;
        self.readers.notify_all();
    }
}

/// `used_event` of a driver that wants no interrupts.
const NEVER: usize = 1000;

/// What driver and device share, with `VIRTIO_F_EVENT_IDX`: an interrupt is asked for once
/// for each time it is wanted, so a preference that is lost stays lost.
#[derive(Default)]
struct Shared {
    used: AtomicUsize,
    used_event: AtomicUsize,
    bell: AbstractEventFd,
    over: AtomicBool,
}

impl Shared {
    /// The device uses one buffer.
    fn use_one(&self) {
        let old = self.used.load(Ordering::Relaxed);
        self.used.store(old + 1, Ordering::Release);
        fence(Ordering::SeqCst);
        if self.used_event.load(Ordering::Relaxed) == old {
            self.bell.ring();
        }
    }
    /// The port is stopped.
    fn end(&self) {
        self.over.store(true, Ordering::Release);
        self.bell.ring();
    }
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }
}

/// The driver's side of the queue.
struct Queue {
    shared: Arc<Shared>,
    popped: usize,
}

impl Interrupts for Queue {
    fn ready(&mut self) -> bool {
        self.shared.used.load(Ordering::Acquire) != self.popped
    }
    fn enable(&mut self) -> bool {
        self.shared.used_event.store(self.popped, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.ready()
    }
    fn disable(&mut self) {
        self.shared.used_event.store(NEVER, Ordering::Relaxed);
    }
}

struct Port {
    shared: Arc<Shared>,
    queue: Mutex<Queue>,
    wakeup: Wakeup,
}

impl Port {
    fn new() -> Arc<Self> {
        let shared = Arc::new(Shared::default());
        shared.used_event.store(NEVER, Ordering::Relaxed);
        let queue = Mutex::new(Queue { shared: Arc::clone(&shared), popped: 0 });
        Arc::new(Self { shared, queue, wakeup: Wakeup::default() })
    }

    /// As `Port::recv` of up to one buffer.
    fn recv(&self) -> usize {
        let mut queue = self.queue.lock().unwrap();
        let got = usize::from(queue.ready());
        queue.popped += got;
        if got == 0 {
            self.wakeup.exhausted(&mut *queue, &self.shared.bell, || self.shared.is_over());
        }
        got
    }

    /// As `Waiting::sleep`.
    fn sleep(&self) {
        if self.wakeup.enter(&mut *self.queue.lock().unwrap(), self.shared.is_over()) {
            return;
        }
        self.shared.bell.wait();
        self.wakeup.leave();
        let mut queue = self.queue.lock().unwrap();
        self.wakeup.awake(&mut *queue, &self.shared.bell, || self.shared.is_over());
    }

    fn arm(&self) {
        let mut queue = self.queue.lock().unwrap();
        self.wakeup.arm(&mut *queue, &self.shared.bell, || self.shared.is_over());
    }

    /// Receives so many by sleeping calls.
    fn take_asleep(&self, wanted: usize) {
        let mut got = 0;
        while got < wanted {
            got += self.recv();
            if got < wanted {
                self.sleep();
            }
        }
    }

    /// Receives so many by reading the descriptor, as `select` does.
    fn take_by_descriptor(&self, wanted: usize) {
        let mut got = 0;
        while got < wanted {
            self.shared.bell.wait();
            got += self.recv();
        }
    }
}

fn model(body: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.max_branches = 10_000;
    builder.check(body);
}

fn device(port: &Arc<Port>, buffers: usize) -> thread::JoinHandle<()> {
    let shared = Arc::clone(&port.shared);
    thread::spawn(move || {
        for _ in 0..buffers {
            shared.use_one();
        }
    })
}

#[test]
fn loom_a_sleeper_misses_no_buffer() {
    model(|| {
        let port = Port::new();
        let device = device(&port, 3);
        port.take_asleep(3);
        device.join().unwrap();
    });
}

#[test]
fn loom_a_reader_of_the_descriptor_misses_no_buffer() {
    model(|| {
        let port = Port::new();
        let device = device(&port, 3);
        port.arm();
        port.take_by_descriptor(3);
        device.join().unwrap();
    });
}

/// One sleeper that wakes takes neither the signal nor the interrupt from the other.
#[test]
fn loom_two_sleepers_both_wake() {
    model(|| {
        let port = Port::new();
        let device = device(&port, 2);
        let other = {
            let port = Arc::clone(&port);
            thread::spawn(move || port.take_asleep(1))
        };
        port.take_asleep(1);
        other.join().unwrap();
        device.join().unwrap();
    });
}

#[test]
fn loom_a_sleeper_and_a_reader_of_the_descriptor_both_wake() {
    model(|| {
        let port = Port::new();
        let device = device(&port, 2);
        let other = {
            let port = Arc::clone(&port);
            thread::spawn(move || port.take_asleep(1))
        };
        port.arm();
        port.take_by_descriptor(1);
        other.join().unwrap();
        device.join().unwrap();
    });
}

/// The end wakes all, also where one of them forgets the signal before the other saw it.
#[test]
fn loom_the_end_wakes_every_sleeper() {
    model(|| {
        let port = Port::new();
        let sleeper = |port: Arc<Port>| {
            move || {
                while !port.shared.is_over() {
                    port.recv();
                    port.sleep();
                }
            }
        };
        let other = thread::spawn(sleeper(Arc::clone(&port)));
        let ending = {
            let shared = Arc::clone(&port.shared);
            thread::spawn(move || shared.end())
        };
        sleeper(Arc::clone(&port))();
        other.join().unwrap();
        ending.join().unwrap();
    });
}
