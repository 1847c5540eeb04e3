//! A loop over several queue pairs: one thread per pair, one report for all.

use super::budget::{Budget, Share};
use super::control::{Control, Report, Tick};
use crate::net::Port;
use crate::process::background_scoped;
use crate::{Error, Result};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

/// How many queue pairs all the ports use.
///
/// # Errors
/// [`Error::Invalid`] if they differ: frames of a pair without a thread would stay in its ring.
pub(super) fn pairs_of(ports: &[&Port]) -> Result<usize> {
    let mut counts = ports.iter().map(|port| usize::from(port.active_pairs()));
    let first = counts.next().unwrap_or(0);
    match counts.find(|&count| count != first) {
        None => Ok(first),
        Some(other) => Err(Error::Invalid(format!(
            "the ports of a loop must use the same number of queue pairs, not {first} and {other}; \
             call set_queues({}) first",
            first.min(other)
        ))),
    }
}

/// Pins the current thread to one processor until dropped.
struct Pinned(CpuSet);

impl Pinned {
    fn to(cpu: usize) -> Result<Self> {
        let failed = |error: rustix::io::Errno| Error::Os {
            what: format!("pinning a thread of a loop to processor {cpu}"),
            message: std::io::Error::from(error).to_string(),
            errno: error.raw_os_error(),
        };
        if cpu >= CpuSet::MAX_CPU {
            return Err(Error::Invalid(format!("there is no processor {cpu}")));
        }
        let before = sched_getaffinity(None).map_err(failed)?;
        let mut only = CpuSet::new();
        only.set(cpu);
        sched_setaffinity(None, &only).map_err(failed)?;
        Ok(Self(before))
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Err(error) = sched_setaffinity(None, &self.0) {
            log::warn!("cannot restore the processor affinity of a thread: {error}");
        }
    }
}

/// What the threads of a loop share.
struct Shared {
    deadline: Option<Instant>,
    stop: AtomicBool,
    reports: Mutex<Vec<Report>>,
    budget: Option<Budget>,
}

impl Shared {
    fn control<'a>(&'a self, tick: Tick<'a>) -> Control<'a> {
        let share = self.budget.as_ref().map(Share::new);
        Control::of_thread(tick, self.deadline, share, &self.stop)
    }
    /// Stores the report of one thread; returns the sum of all.
    fn update(&self, lane: usize, report: &Report) -> Report {
        let mut reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        reports[lane] = *report;
        reports.iter().sum()
    }
    /// Stops the other threads if one ended with an error.
    fn ended(&self, result: Result<Report>) -> Result<Report> {
        if result.is_err() {
            self.stop.store(true, Relaxed);
        }
        result
    }
}

/// Runs `body` for each of `count` queue pairs, the first on this thread, the others on their own
/// threads, and returns the sum of their reports. An error of one ends all and is returned.
pub(super) fn lanes(
    count: usize,
    control: Control<'_>,
    body: impl Fn(usize, Control<'_>) -> Result<Report> + Sync,
) -> Result<Report> {
    let cpus = control.cpus;
    let pin =
        |lane: usize| cpus.get(lane % cpus.len().max(1)).map(|&cpu| Pinned::to(cpu)).transpose();
    let _here = pin(0)?;
    if count <= 1 {
        return body(0, control);
    }
    let shared = Shared {
        deadline: control.deadline,
        stop: AtomicBool::new(false),
        reports: Mutex::new(vec![Report::default(); count]),
        budget: control.packets.map(Budget::new),
    };
    let tick = control.tick;
    thread::scope(|scope| {
        let mut threads = Vec::with_capacity(count - 1);
        let mut failed = None;
        for lane in 1..count {
            let (shared, body, pin) = (&shared, &body, &pin);
            let name = format!("virtnic-queue-{lane}");
            let spawned = background_scoped(scope, name, move || {
                let mut tick = |report: &Report| {
                    shared.update(lane, report);
                    Ok(true)
                };
                shared.ended(pin(lane).and_then(|_here| body(lane, shared.control(&mut tick))))
            });
            match spawned {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    shared.stop.store(true, Relaxed);
                    failed = Some(Error::Os {
                        what: format!("starting the thread of queue pair {lane}"),
                        message: error.to_string(),
                        errno: error.raw_os_error().unwrap_or(0),
                    });
                    break;
                }
            }
        }
        let mut tick = |report: &Report| tick(&shared.update(0, report));
        let first = if failed.is_none() {
            shared.ended(body(0, shared.control(&mut tick)))
        } else {
            Ok(Report::default())
        };
        shared.stop.store(true, Relaxed);
        let mut results = vec![first];
        for thread in threads {
            results.push(thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
        }
        if let Some(error) = failed {
            return Err(error);
        }
        let reports = results.into_iter().collect::<Result<Vec<_>>>()?;
        Ok(reports.iter().sum())
    })
}
