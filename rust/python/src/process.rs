//! `Child` and `spawn`: child processes that end with this one.

use crate::errors::to_py;
use crate::eventfd::wait_interruptibly;
use crate::time::span;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use std::collections::HashMap;
use std::ffi::OsString;
use std::os::fd::{BorrowedFd, RawFd};
use virtnic::Error;

/// A child process that is killed when this process ends, even by SIGKILL.
#[pyclass(frozen, module = "virtnic._native")]
pub(crate) struct Child(virtnic::process::Child);

#[pymethods]
impl Child {
    /// Its process id.
    #[getter]
    fn pid(&self) -> u32 {
        self.0.pid()
    }

    /// Wait for its end. Return the exit code, or minus the signal; None after the timeout.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<i32>> {
        wait_interruptibly(py, span(timeout)?, |slice| self.0.wait(Some(slice)))
    }

    /// Send SIGTERM. False if that is not permitted, because it now runs as another user.
    fn terminate(&self) -> bool {
        self.0.terminate()
    }

    /// Send SIGKILL, to its process group too. False as for :meth:`terminate`.
    fn kill(&self) -> bool {
        self.0.kill()
    }
}

/// Tell the core that this is a forked child.
///
/// Objects made before the fork belong to the parent: their methods raise PortClosed from now on,
/// and dropping them has no effect outside this process.
#[pyfunction]
pub(crate) fn after_fork_in_child() {
    virtnic::process::after_fork_in_child();
}

/// Declare that this thread restores devices: its calls raise PortBusy instead of waiting.
#[pyfunction]
pub(crate) fn brings_devices_back() {
    virtnic::locks::brings_devices_back();
}

/// Start a program whose stderr is a duplicate of the given descriptor.
///
/// No signal is blocked or ignored in it. It is killed when this process ends, even if one of them
/// has changed its user by then. Raises FileNotFoundError, OSError.
#[pyfunction]
pub(crate) fn spawn(
    py: Python<'_>,
    argv: Vec<OsString>,
    environment: HashMap<OsString, OsString>,
    stderr: RawFd,
) -> PyResult<Child> {
    if stderr < 0 {
        return Err(PyValueError::new_err(format!("{stderr} is not a file descriptor")));
    }
    //  SAFETY: not negative; it is used for one system call only, which fails if the descriptor is
    // not open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(stderr) };
    let stderr = rustix::io::fcntl_dupfd_cloexec(borrowed, 3)
        .map_err(|e| to_py(Error::os(format!("duplicating descriptor {stderr}"), e)))?;
    let environment = environment.into_iter().collect();
    py.detach(|| virtnic::process::spawn(argv, environment, stderr)).map(Child).map_err(to_py)
}
