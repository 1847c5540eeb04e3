//! `EventFd`, and interruptible waits.

use crate::errors::to_py;
use crate::time::span;
use pyo3::ffi;
use pyo3::prelude::*;
use std::cell::RefCell;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use virtnic::{Error, Result};

/// The longest time until Ctrl-C is noticed: the signal may be delivered to another thread, which
/// interrupts no system call here.
pub(crate) const SLICE: Duration = Duration::from_millis(100);
const EINTR: i32 = 4;

/// Waits in slices without the interpreter, and checks for signals between them. `wait` gets the
/// length of a slice and returns `None` if nothing happened.
pub(crate) fn wait_interruptibly<T: Send>(
    py: Python<'_>,
    timeout: Option<Duration>,
    wait: impl FnMut(Duration) -> Result<Option<T>> + Send,
) -> PyResult<Option<T>> {
    wait_in_slices(py, timeout, wait, to_py, || Ok(()))
}

/// The same, with a conversion of the core's errors and a further check between slices.
pub(crate) fn wait_in_slices<T: Send>(
    py: Python<'_>,
    timeout: Option<Duration>,
    mut wait: impl FnMut(Duration) -> Result<Option<T>> + Send,
    raise: impl Fn(Error) -> PyErr,
    look: impl Fn() -> Result<()>,
) -> PyResult<Option<T>> {
    let deadline = timeout.and_then(|t| Instant::now().checked_add(t));
    loop {
        let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
        let slice = left.map_or(SLICE, |l| l.min(SLICE));
        match py.detach(|| wait(slice)) {
            Ok(Some(found)) => return Ok(Some(found)),
            Ok(None) | Err(Error::Os { errno: EINTR, .. }) => {}
            Err(error) => return Err(raise(error)),
        }
        look().map_err(&raise)?;
        py.check_signals()?;
        if left.is_some_and(|l| l <= slice) && deadline.is_some_and(|d| Instant::now() >= d) {
            return Ok(None);
        }
    }
}

thread_local! {
    /// What a signal handler raised while the core was waiting in this thread.
    static RAISED: RefCell<Option<PyErr>> = const { RefCell::new(None) };
}

/// The core's waits call this every 100 ms to ask whether to continue.
///
/// The core's own threads handle no signals and must not take the interpreter: its holder may be
/// waiting for the thread to end. Nor is there anything to check while the interpreter shuts down.
pub(crate) fn check_signals() -> Result<()> {
    //  SAFETY: reads a thread-local variable of Python's, which is always allowed.
    if unsafe { ffi::PyGILState_GetThisThreadState() }.is_null() {
        return Ok(());
    }
    virtnic::locks::may_wait("the interpreter");
    Python::try_attach(|py| py.check_signals()).unwrap_or(Ok(())).map_err(|raised| {
        RAISED.set(Some(raised));
        Error::Os { what: "waiting".into(), message: "interrupted".into(), errno: EINTR }
    })
}

/// Takes the exception that a signal handler raised during a wait in this thread.
pub(crate) fn raised() -> Option<PyErr> {
    RAISED.take()
}

/// Converts an error of a call that used [`check_signals`].
pub(crate) fn raise(error: Error) -> PyErr {
    to_py(error)
}

/// A descriptor that stays open as long as this object lives, for a wait in an event loop.
#[pyclass(frozen, module = "virtnic._native")]
pub(crate) struct Descriptor(Arc<virtnic::Owned>);

impl Descriptor {
    pub(crate) fn of(event: &virtnic::notify::EventFd) -> PyResult<Self> {
        event.borrow().map(Self).map_err(to_py)
    }
}

#[pymethods]
impl Descriptor {
    /// Return the descriptor number.
    fn fileno(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// A Linux eventfd (eventfd(2)), non-blocking.
#[pyclass(frozen, module = "virtnic._native")]
pub(crate) struct EventFd(Arc<virtnic::notify::EventFd>);

impl EventFd {
    pub(crate) fn inner(&self) -> &Arc<virtnic::notify::EventFd> {
        &self.0
    }
}

impl From<Arc<virtnic::notify::EventFd>> for EventFd {
    fn from(event: Arc<virtnic::notify::EventFd>) -> Self {
        Self(event)
    }
}

#[pymethods]
impl EventFd {
    #[new]
    fn new() -> PyResult<Self> {
        virtnic::notify::EventFd::new().map(|event| Self(Arc::new(event))).map_err(to_py)
    }

    /// Return the descriptor, open until :meth:`close`; -1 afterwards.
    ///
    /// ``select``, ``poll`` and asyncio can wait on it.
    fn fileno(&self) -> RawFd {
        self.0.number().unwrap_or(-1)
    }

    /// Return the descriptor and keep it open as long as this object lives.
    ///
    /// After :meth:`close` it stays readable. Raises OSError if no descriptor is left.
    fn lend(&self) -> PyResult<RawFd> {
        self.0.lend().map_err(to_py)
    }

    /// Return an object that keeps the descriptor open during a wait. Raises as :meth:`lend`.
    fn borrow(&self) -> PyResult<Descriptor> {
        Descriptor::of(&self.0)
    }

    /// Signal it permanently, and close the descriptor unless it was lent.
    ///
    /// The descriptor is closed once no :meth:`wait` or borrower uses it. Closing twice is allowed.
    fn close(&self) {
        self.0.close();
    }

    /// Add one to the count.
    fn signal(&self) {
        self.0.signal();
    }

    /// Reset the count to zero and return what it was.
    fn drain(&self) -> u64 {
        self.0.drain()
    }

    /// Wait until it is signalled; False after the timeout. Does not drain.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let event = &self.0;
        wait_interruptibly(py, span(timeout)?, |slice| Ok(event.wait(Some(slice))?.then_some(())))
            .map(|found| found.is_some())
    }
}
