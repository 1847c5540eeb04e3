//! The thread of all interposers of this process.
//!
//! It runs while there is an interposer and needs one eventfd in total. A step for one interposer never
//! waits, as it would delay the others.

use super::relay::{Interest, PAUSE, Relay, State};
use crate::notify::{EventFd, timespec};
use crate::process::{Home, background};
use crate::{Error, Result};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

/// The current thread; none without an interposer.
static NOW: Mutex<Option<Arc<Thread>>> = Mutex::new(None);

/// The state shared with the thread.
#[derive(Debug)]
pub(super) struct Thread {
    home: Home,
    wake: EventFd,
    /// New tasks.
    coming: Mutex<Vec<Task>>,
    over: AtomicBool,
    handle: Mutex<Option<JoinHandle<()>>>,
}

/// The task of one interposer. Its connections are dropped before `_end` signals the end.
#[derive(Debug)]
struct Task {
    state: State,
    relay: Relay,
    _end: Ending,
}

/// Signals on drop that an interposer has ended.
#[derive(Debug)]
struct Ending(Arc<End>);

impl Drop for Ending {
    fn drop(&mut self) {
        *lock(&self.0.ended) = true;
        self.0.changed.notify_all();
    }
}

/// The end of one interposer.
#[derive(Debug, Default)]
struct End {
    stop: AtomicBool,
    ended: Mutex<bool>,
    changed: Condvar,
}

/// A handle of an interposer's task.
#[derive(Debug)]
pub(super) struct Attended {
    thread: Arc<Thread>,
    end: Arc<End>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Adds an interposer to the thread, which it starts if necessary.
///
/// # Errors
/// [`Error::Os`] if the thread cannot be started.
pub(super) fn attend(relay: Relay, state: State) -> Result<Attended> {
    let end = Arc::<End>::default();
    let task = Task { state, relay, _end: Ending(Arc::clone(&end)) };
    let mut now = lock(&NOW);
    if let Some(thread) = now.as_ref().filter(|thread| thread.home.is_here()) {
        let thread = Arc::clone(thread);
        lock(&thread.coming).push(task);
        thread.wake.signal();
        return Ok(Attended { thread, end });
    }
    let thread = Arc::new(Thread {
        home: Home::here(),
        wake: EventFd::new()?,
        coming: Mutex::new(vec![task]),
        over: AtomicBool::new(false),
        handle: Mutex::default(),
    });
    let runs = Arc::clone(&thread);
    let handle = background("virtnic-vhost", move || runs.run())
        .map_err(|e| Error::os("starting the vhost-user interposers' thread", e))?;
    *lock(&thread.handle) = Some(handle);
    if let Some(parents) = now.replace(Arc::clone(&thread)) {
        // The parent's thread does not exist in a forked child.
        std::mem::forget(parents);
    }
    Ok(Attended { thread, end })
}

impl Attended {
    /// Ends the task and waits until its connections are closed. Idempotent.
    pub(super) fn stop(&self) {
        self.end.stop.store(true, Ordering::Release);
        self.thread.wake.signal();
        let mut ended = lock(&self.end.ended);
        while !*ended {
            ended = self.end.changed.wait(ended).unwrap_or_else(PoisonError::into_inner);
        }
        drop(ended);
        if self.thread.over.load(Ordering::Acquire) {
            // It was the last one. A thread that panicked has printed why.
            if let Some(handle) = lock(&self.thread.handle).take() {
                let _ = handle.join();
            }
            self.thread.wake.close();
        }
    }

    /// Wakes the thread.
    pub(super) fn wake(&self) {
        self.thread.wake.signal();
    }
}

impl Thread {
    fn run(&self) {
        let mut tasks = Vec::new();
        loop {
            self.wake.drain();
            let ended = self.take_up(&mut tasks);
            let over = tasks.is_empty() && self.is_over();
            drop(ended);
            if over {
                return;
            }
            tasks = self.attend(tasks);
        }
    }

    /// Adds new tasks; removes and returns those that end.
    fn take_up(&self, tasks: &mut Vec<Task>) -> Vec<Task> {
        tasks.append(&mut lock(&self.coming));
        let goes =
            |task: &mut Task| task._end.0.stop.load(Ordering::Acquire) && task.state.may_end();
        tasks.extract_if(.., goes).collect()
    }

    /// Whether the thread ends: there are no new tasks, and none can be added any more.
    fn is_over(&self) -> bool {
        let mut now = lock(&NOW);
        if !lock(&self.coming).is_empty() {
            return false;
        }
        if now.as_ref().is_some_and(|thread| std::ptr::eq(&**thread, self)) {
            *now = None;
        }
        self.over.store(true, Ordering::Release);
        true
    }

    /// Waits for an event of any task and makes its step.
    fn attend(&self, tasks: Vec<Task>) -> Vec<Task> {
        let begun = Instant::now();
        let interests: Vec<Interest<'_>> =
            tasks.iter().map(|task| task.relay.interest(&task.state)).collect();
        let Some(wake) = self.wake.hold() else { return tasks };
        let mut fds = vec![PollFd::new(&wake, PollFlags::IN)];
        let places: Vec<[Option<usize>; 2]> = interests
            .iter()
            .map(|interest| {
                interest.sockets.map(|socket| {
                    // Do not poll a socket without events: it would report a hang-up again and again.
                    let (fd, flags) = socket.filter(|(_, flags)| !flags.is_empty())?;
                    fds.push(PollFd::from_borrowed_fd(fd, flags));
                    Some(fds.len() - 1)
                })
            })
            .collect();
        let until = interests.iter().filter_map(|interest| interest.until).min();
        let left = until.map(|t| t.saturating_duration_since(begun));
        match poll(&mut fds, timespec(left).as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return tasks,
            Err(e) => {
                log::warn!("the vhost-user interposers cannot wait: {e}");
                std::thread::sleep(PAUSE);
                return tasks;
            }
        }
        if fds[0].revents().contains(PollFlags::NVAL) {
            // Foreign code has closed our descriptor, so that `poll` does not wait any more.
            std::thread::sleep(PAUSE);
        }
        let now = Instant::now();
        let events: Vec<Option<[PollFlags; 2]>> = places
            .iter()
            .zip(&interests)
            .map(|(places, interest)| {
                let events =
                    places.map(|place| place.map_or(PollFlags::empty(), |at| fds[at].revents()));
                let due = interest.until.is_some_and(|until| until <= now);
                (due || events.iter().any(|event| !event.is_empty())).then_some(events)
            })
            .collect();
        drop((fds, interests));
        tasks.into_iter().zip(events).filter_map(|(task, events)| task.step(events)).collect()
    }
}

impl Task {
    /// Makes one step if there are events. `None` if it panicked.
    fn step(self, events: Option<[PollFlags; 2]>) -> Option<Self> {
        let Some(events) = events else { return Some(self) };
        let Self { state, mut relay, _end } = self;
        let stepped = catch_unwind(AssertUnwindSafe(|| relay.step(state, events)));
        match stepped {
            Ok(state) => Some(Self { state, relay, _end }),
            Err(_) => {
                relay.broke(); // it printed why
                drop(relay);
                None
            }
        }
    }
}
