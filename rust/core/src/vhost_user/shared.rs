//! What the thread of an interposer and its users have in common.

use super::rewrite::Vrings;
use crate::notify::EventFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Whether QEMU is making its netdev.
#[derive(Debug)]
pub(super) enum Trial {
    /// It is: a backend that fails now is not looked for again, and QEMU is let out.
    Open,
    /// It was, and the backend failed: why.
    Failed(String),
    /// It has its netdev: a backend that goes is looked for.
    Over,
}

/// A backend that lacks something which the port can do without.
#[derive(Debug, Default)]
pub(super) enum Held {
    /// There is none.
    #[default]
    None,
    /// It waits; what it lacks.
    Waiting(String),
    /// QEMU may meet it.
    Accepted,
}

/// What the thread and the users have in common.
#[derive(Debug)]
pub(super) struct Shared {
    pub vrings: Vrings,
    pub connected: AtomicBool,
    pub served: AtomicBool,
    pub trial: Mutex<Trial>,
    /// Features that the next backend may lack, once QEMU has been prepared for that.
    pub may_lack: AtomicU64,
    pub held: Mutex<Held>,
    /// Why the last backend that came does not serve.
    pub refusal: Mutex<Option<String>>,
    pub refusals: AtomicU64,
    pub features: AtomicU64,
    pub changed: Arc<EventFd>,
    /// It is not ours alone.
    pub changed_is_shared: bool,
    /// Why no backend is looked for any more.
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

    /// Features that a backend may lack now; none while QEMU waits for it.
    pub(super) fn spared(&self) -> u64 {
        match *self.trial() {
            Trial::Over => self.may_lack.load(Ordering::Relaxed),
            _ => 0,
        }
    }

    /// A backend waits until it is accepted.
    pub(super) fn hold(&self, lacking: String) {
        *self.held() = Held::Waiting(lacking);
        self.changed.signal();
    }

    /// Whether the backend that waits was accepted.
    pub(super) fn is_accepted(&self) -> bool {
        matches!(*self.held(), Held::Accepted)
    }

    /// It waits no more.
    pub(super) fn hold_no_more(&self) {
        *self.held() = Held::None;
    }

    pub(super) fn refusal(&self) -> MutexGuard<'_, Option<String>> {
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn disconnected(&self) {
        self.vrings.forget();
        self.serves_no_more();
        if self.connected.swap(false, Ordering::AcqRel) {
            self.changed.signal();
        }
    }

    /// The backend has started its rings.
    pub(super) fn serves(&self) {
        if !self.served.swap(true, Ordering::AcqRel) {
            *self.refusal() = None;
            self.changed.signal();
        }
    }

    /// The backend is gone: that is known before it is counted.
    pub(super) fn serves_no_more(&self) {
        self.served.store(false, Ordering::Release);
    }

    /// A backend that came does not serve.
    pub(super) fn refuse(&self, why: &str) {
        *self.refusal() = Some(why.to_owned());
        self.refusals.fetch_add(1, Ordering::Relaxed);
        self.changed.signal();
    }

    /// Whether QEMU makes a netdev with this backend.
    pub(super) fn trial_is_open(&self) -> bool {
        matches!(*self.trial(), Trial::Open)
    }
    /// Whether QEMU is to be let out of making its netdev.
    pub(super) fn trial_failed(&self) -> bool {
        matches!(*self.trial(), Trial::Failed(_))
    }

    /// A backend failed; whether that was while QEMU makes its netdev.
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
