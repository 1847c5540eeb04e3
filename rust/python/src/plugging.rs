//! `PluggingLock`: held while devices are plugged, unplugged or restored.

use crate::eventfd::SLICE;
use crate::time::span;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use std::time::Instant;
use virtnic::locks::{brings_devices_back, no_longer_brings_devices_back};

/// A reentrant lock, held while devices are plugged, unplugged or restored.
///
/// While a thread has it, its calls raise PortBusy instead of waiting for a device that is away:
/// who restores that needs the lock, and a signal handler may have interrupted its holder.
/// In Rust, so that no signal handler runs between taking it and the next step of a ``with``.
#[pyclass(frozen, module = "virtnic._native")]
pub(crate) struct PluggingLock(Py<PyAny>);

#[pymethods]
impl PluggingLock {
    #[new]
    fn new(py: Python<'_>) -> PyResult<Self> {
        Ok(Self(py.import("threading")?.getattr("RLock")?.call0()?.unbind()))
    }

    /// Take it; False if that takes longer than ``timeout`` seconds (None: for ever).
    #[pyo3(signature = (timeout = None))]
    fn acquire(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let deadline = span(timeout)?.and_then(|time| Instant::now().checked_add(time));
        loop {
            let left = deadline.map(|end| end.saturating_duration_since(Instant::now()));
            let slice = left.map_or(SLICE, |left| left.min(SLICE));
            let lock = self.0.bind(py);
            if lock.call_method1("acquire", (true, slice.as_secs_f64()))?.is_truthy()? {
                brings_devices_back();
                return Ok(true);
            }
            py.check_signals()?;
            if left.is_some_and(|left| left <= slice) {
                return Ok(false);
            }
        }
    }

    /// Give it back.
    fn release(&self, py: Python<'_>) -> PyResult<()> {
        self.0.bind(py).call_method0("release")?;
        no_longer_brings_devices_back();
        Ok(())
    }

    fn __enter__(&self, py: Python<'_>) -> PyResult<()> {
        if self.acquire(py, None)? {
            return Ok(());
        }
        Err(PyRuntimeError::new_err("the lock was not taken"))
    }

    #[pyo3(signature = (*_error))]
    fn __exit__(&self, py: Python<'_>, _error: &Bound<'_, PyTuple>) -> PyResult<()> {
        self.release(py)
    }
}
