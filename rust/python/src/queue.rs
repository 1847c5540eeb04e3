//! `NetQueue`.

use crate::burst::Burst;
use crate::errors::to_py;
use crate::frames::{self, raise};
use crate::port::{NetPort, ask, receives};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use virtnic::net::{Coalescing, QueuePair};

/// One queue pair of a port, usable from its own thread.
#[pyclass(frozen, subclass, module = "virtnic._native")]
pub(crate) struct NetQueue {
    port: Py<NetPort>,
    index: usize,
}

impl NetQueue {
    /// The port that it is a part of.
    pub(crate) fn owner(&self) -> &Py<NetPort> {
        &self.port
    }
    /// Its number, from 0.
    pub(crate) fn number(&self) -> usize {
        self.index
    }
    fn pair(&self) -> &QueuePair {
        // Checked on creation; a port never loses pairs.
        &self.port.get().core().pairs()[self.index]
    }
}

#[pymethods]
impl NetQueue {
    #[new]
    fn new(port: &Bound<'_, NetPort>, index: i64) -> PyResult<Self> {
        // A negative number is not a queue either.
        let wanted = usize::try_from(index).map_err(|_| {
            to_py(virtnic::Error::Invalid(format!(
                "there is no queue {index}: they are numbered from 0"
            )))
        })?;
        port.get().core().pair(wanted).map_err(to_py)?;
        Ok(Self { port: port.clone().unbind(), index: wanted })
    }

    /// The port it belongs to.
    #[getter]
    fn port(&self, py: Python<'_>) -> Py<NetPort> {
        self.port.clone_ref(py)
    }
    /// Its number, from 0.
    #[getter]
    fn index(&self) -> usize {
        self.index
    }
    /// Whether it carries frames: it is neither stopped nor beyond the pairs in use.
    #[getter]
    fn active(&self) -> bool {
        self.pair().is_active()
    }

    /// Queue frames, as :meth:`NetPort.send`. Raises PortClosed if the pair is not active.
    #[pyo3(signature = (frames, offload = None))]
    fn send(
        &self,
        frames: &Bound<'_, PyAny>,
        offload: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<usize> {
        frames::send(self.port.bind(frames.py()), self.pair(), frames, offload)
    }

    /// Return received frames, as :meth:`NetPort.recv`.
    ///
    /// Raises PortClosed if the pair is stopped, or not in use and empty.
    #[pyo3(signature = (maximum = 256, timeout = Some(0.0)),
           text_signature = "($self, maximum=256, timeout=0.0)")]
    fn recv(&self, py: Python<'_>, maximum: i64, timeout: Option<f64>) -> PyResult<Burst> {
        frames::recv(self.port.bind(py), self.pair(), maximum, timeout)
    }

    /// Return its receive eventfd, as :meth:`NetPort.fileno`.
    fn fileno(&self) -> PyResult<i32> {
        self.pair().arm().and_then(|event| event.lend()).map_err(to_py)
    }

    /// Return its transmit eventfd, as :meth:`NetPort.tx_fileno`.
    fn tx_fileno(&self) -> PyResult<i32> {
        self.pair().arm_tx().and_then(|event| event.lend()).map_err(to_py)
    }

    /// Wait until half of its transmit queue is free, as :meth:`NetPort.wait_writable`.
    #[pyo3(signature = (timeout = None))]
    fn wait_writable(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        frames::wait_writable(self.port.bind(py), self.pair(), timeout)
    }

    /// Return its counters, as :meth:`NetPort.stats`.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        frames::stats(py, self.pair().stats())
    }

    /// Take back the buffers of transmitted frames, as :meth:`NetPort.reclaim`.
    fn reclaim(&self, py: Python<'_>) -> PyResult<()> {
        self.pair().reclaim().map_err(|error| raise(self.port.bind(py), error))
    }

    /// Reset both queues of the pair and take their buffers back; other pairs are not affected.
    ///
    /// Raises CommandRefused if the device does not offer RING_RESET, PortBusy, and as ``recv``.
    fn stop(&self, py: Python<'_>) -> PyResult<()> {
        ask(self.port.bind(py), |port| port.stop_pair(self.index))
    }

    /// Set the pair up again after ``stop``. Raises as ``stop``.
    fn start(&self, py: Python<'_>) -> PyResult<()> {
        ask(self.port.bind(py), |port| port.start_pair(self.index))
    }

    /// Delay ``rx`` or ``tx`` interrupts, as :meth:`NetPort.set_coalescing`.
    fn set_coalescing(
        &self,
        py: Python<'_>,
        direction: &str,
        packets: u32,
        microseconds: u32,
    ) -> PyResult<()> {
        let receive = receives(direction)?;
        let coalescing = Coalescing { packets, microseconds };
        ask(self.port.bind(py), |port| port.set_queue_coalescing(self.index, receive, coalescing))
    }

    // A port that holds its own queues forms a cycle with them.
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.port)
    }

    fn __repr__(&self) -> String {
        let state = if self.pair().is_active() { "active" } else { "off" };
        format!("<virtnic.NetQueue {}: {state}>", self.index)
    }
}
