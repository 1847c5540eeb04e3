//! `PluggingLock`: held while devices are plugged, unplugged or restored.

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyTuple;
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

    /// Take it; False if that takes longer than ``timeout`` seconds (-1: for ever).
    #[pyo3(signature = (timeout = -1.0))]
    fn acquire(&self, py: Python<'_>, timeout: f64) -> PyResult<bool> {
        let taken = self.0.bind(py).call_method1("acquire", (true, timeout))?.is_truthy()?;
        if taken {
            brings_devices_back();
        }
        Ok(taken)
    }

    /// Give it back.
    fn release(&self, py: Python<'_>) -> PyResult<()> {
        self.0.bind(py).call_method0("release")?;
        no_longer_brings_devices_back();
        Ok(())
    }

    fn __enter__(&self, py: Python<'_>) -> PyResult<()> {
        if self.acquire(py, -1.0)? {
            return Ok(());
        }
        Err(PyRuntimeError::new_err("the lock was not taken"))
    }

    #[pyo3(signature = (*_error))]
    fn __exit__(&self, py: Python<'_>, _error: &Bound<'_, PyTuple>) -> PyResult<()> {
        self.release(py)
    }
}
