//! `Child` and `spawn`: child processes that die with us.

use crate::errors::to_py;
use crate::eventfd::wait_interruptibly;
use crate::time::span;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use std::collections::HashMap;
use std::ffi::OsString;
use std::os::fd::{BorrowedFd, RawFd};
use virtnic::Error;

/// A child process that dies with this one, even on SIGKILL.
#[pyclass(frozen, module = "virtnic._native")]
pub(crate) struct Child(virtnic::process::Child);

#[pymethods]
impl Child {
    /// Its process id.
    #[getter]
    fn pid(&self) -> u32 {
        self.0.pid()
    }

    /// Wait for its end: exit code, or minus the signal; None after the timeout.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<i32>> {
        wait_interruptibly(py, span(timeout)?, |slice| self.0.wait(Some(slice)))
    }

    /// Send SIGTERM; False when it runs as another user than we do by now, so we may not.
    fn terminate(&self) -> bool {
        self.0.terminate()
    }

    /// Send SIGKILL, to its process group too; False as :meth:`terminate` says.
    fn kill(&self) -> bool {
        self.0.kill()
    }
}

/// Tell the core that this is a forked child.
///
/// Objects made before the fork belong to the parent: their calls raise PortClosed from
/// now on, and their end does nothing outside this process.
#[pyfunction]
pub(crate) fn after_fork_in_child() {
    virtnic::process::after_fork_in_child();
}

/// Say that this thread may have to bring a device back: calls in it wait for none that is away.
///
/// They raise PortBusy then.
#[pyfunction]
pub(crate) fn brings_devices_back() {
    virtnic::locks::brings_devices_back();
}

/// Start a program whose stderr goes to a duplicate of the descriptor given.
///
/// It blocks and ignores no signal, and is killed when this process ends, whoever both run as then.
///
/// Raises FileNotFoundError, OSError.
#[pyfunction]
pub(crate) fn spawn(
    py: Python<'_>,
    argv: Vec<OsString>,
    environment: HashMap<OsString, OsString>,
    stderr: RawFd,
) -> PyResult<Child> {
    if stderr < 0 {
        return Err(PyValueError::new_err(format!("{stderr} is no file descriptor")));
    }
    // SAFETY: not negative; it is used for one system call only, which says so if nothing
    // is open there.
    let borrowed = unsafe { BorrowedFd::borrow_raw(stderr) };
    let stderr = rustix::io::fcntl_dupfd_cloexec(borrowed, 3)
        .map_err(|e| to_py(Error::os(format!("duplicating descriptor {stderr}"), e)))?;
    let environment = environment.into_iter().collect();
    py.detach(|| virtnic::process::spawn(argv, environment, stderr)).map(Child).map_err(to_py)
}
