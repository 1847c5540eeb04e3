//! The state shared by the thread of an interposer and its users.

use super::rewrite::Vrings;
use crate::notify::EventFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Whether QEMU is creating its netdev.
#[derive(Debug)]
pub(super) enum Trial {
    /// It is: if the backend fails, QEMU gets a stand-in.
    Open,
    /// The backend failed meanwhile, with the reason.
    Failed(String),
    /// It is not: if the backend is lost, the interposer reconnects.
    Over,
}

/// A backend that lacks features which the port can do without.
#[derive(Debug, Default)]
pub(super) enum Held {
    /// There is none.
    #[default]
    None,
    /// It waits; with what it lacks.
    Waiting(String),
    /// QEMU may connect to it.
    Accepted,
}

/// The state shared by the thread and the users.
#[derive(Debug)]
pub(super) struct Shared {
    pub vrings: Vrings,
    pub connected: AtomicBool,
    pub served: AtomicBool,
    pub trial: Mutex<Trial>,
    /// Features that the next backend may lack, once QEMU is ready for that.
    pub may_lack: AtomicU64,
    pub held: Mutex<Held>,
    /// Why the last backend that connected is not used.
    pub refusal: Mutex<Option<String>>,
    pub refusals: AtomicU64,
    pub features: AtomicU64,
    pub changed: Arc<EventFd>,
    /// Whether `changed` is also used elsewhere.
    pub changed_is_shared: bool,
    /// Why the interposer has stopped to reconnect.
    pub over: OnceLock<String>,
    pub to_backend: AtomicU64,
    pub to_qemu: AtomicU64,
    pub links: AtomicU64,
    pub backend_losses: AtomicU64,
    pub qemu_losses: AtomicU64,
}

impl Shared {
    pub(super) fn trial(&self) -> MutexGuard<'_, Trial> {
        self.trial.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Features that a backend may lack now; none while QEMU creates its netdev.
    pub(super) fn may_lack_now(&self) -> u64 {
        match *self.trial() {
            Trial::Over => self.may_lack.load(Ordering::Relaxed),
            _ => 0,
        }
    }

    /// Holds a backend until it is accepted.
    pub(super) fn hold(&self, lacking: String) {
        *self.held() = Held::Waiting(lacking);
        self.changed.signal();
    }

    /// Whether the held backend was accepted.
    pub(super) fn is_accepted(&self) -> bool {
        matches!(*self.held(), Held::Accepted)
    }

    /// Ends the hold.
    pub(super) fn end_hold(&self) {
        *self.held() = Held::None;
    }

    pub(super) fn refusal(&self) -> MutexGuard<'_, Option<String>> {
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn disconnected(&self) {
        self.vrings.forget();
        self.stops_serving();
        if self.connected.swap(false, Ordering::AcqRel) {
            self.changed.signal();
        }
    }

    /// Records that the backend processes the rings.
    pub(super) fn serves(&self) {
        if !self.served.swap(true, Ordering::AcqRel) {
            *self.refusal() = None;
            self.changed.signal();
        }
    }

    /// Records that the backend is gone, before its loss is counted.
    pub(super) fn stops_serving(&self) {
        self.served.store(false, Ordering::Release);
    }

    /// Records that a backend connected but is not used.
    pub(super) fn refuse(&self, why: &str) {
        *self.refusal() = Some(why.to_owned());
        self.refusals.fetch_add(1, Ordering::Relaxed);
        self.changed.signal();
    }

    /// Whether QEMU is creating its netdev.
    pub(super) fn trial_is_open(&self) -> bool {
        matches!(*self.trial(), Trial::Open)
    }
    /// Whether the backend failed while QEMU creates its netdev.
    pub(super) fn trial_failed(&self) -> bool {
        matches!(*self.trial(), Trial::Failed(_))
    }

    /// Records a failure of the backend. Returns whether QEMU is creating its netdev.
    pub(super) fn fail_trial(&self, why: String) -> bool {
        let mut trial = self.trial();
        match *trial {
            Trial::Over => return false,
            Trial::Open => *trial = Trial::Failed(why),
            Trial::Failed(_) => {}
        }
        true
    }
}
