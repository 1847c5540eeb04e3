//! `NetQueue`.

use crate::burst::Burst;
use crate::errors::to_py;
use crate::frames::{self, raise};
use crate::port::{NetPort, ask, receives};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use virtnic::net::{Coalescing, QueuePair};

/// One queue pair of a port.
#[pyclass(frozen, module = "virtnic._native")]
pub(crate) struct NetQueue {
    port: Py<NetPort>,
    index: usize,
}

impl NetQueue {
    pub(crate) fn new(port: &Bound<'_, NetPort>, index: i64) -> PyResult<Self> {
        // A negative number is no queue either.
        let wanted = usize::try_from(index).map_err(|_| {
            to_py(virtnic::Error::Invalid(format!(
                "there is no queue {index}: they are numbered from 0"
            )))
        })?;
        port.get().core().pair(wanted).map_err(to_py)?;
        Ok(Self { port: port.clone().unbind(), index: wanted })
    }

    fn pair(&self) -> &QueuePair {
        // Checked when it was made; a port never loses pairs.
        &self.port.get().core().pairs()[self.index]
    }
}

#[pymethods]
impl NetQueue {
    #[getter]
    fn port(&self, py: Python<'_>) -> Py<NetPort> {
        self.port.clone_ref(py)
    }
    #[getter]
    fn index(&self) -> usize {
        self.index
    }
    #[getter]
    fn active(&self) -> bool {
        self.pair().is_active()
    }

    #[pyo3(signature = (frames, offload = None))]
    fn send(
        &self,
        frames: &Bound<'_, PyAny>,
        offload: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<usize> {
        frames::send(self.port.bind(frames.py()), self.pair(), frames, offload)
    }

    #[pyo3(signature = (maximum = 256, timeout = Some(0.0)),
           text_signature = "($self, maximum=256, timeout=0.0)")]
    fn recv(&self, py: Python<'_>, maximum: i64, timeout: Option<f64>) -> PyResult<Burst> {
        frames::recv(self.port.bind(py), self.pair(), maximum, timeout)
    }

    fn fileno(&self) -> PyResult<i32> {
        self.pair().arm().and_then(|event| event.lend()).map_err(to_py)
    }

    fn tx_fileno(&self) -> PyResult<i32> {
        self.pair().arm_tx().and_then(|event| event.lend()).map_err(to_py)
    }

    #[pyo3(signature = (timeout = None))]
    fn wait_writable(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        frames::wait_writable(self.port.bind(py), self.pair(), timeout)
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        frames::stats(py, self.pair().stats())
    }

    fn reclaim(&self, py: Python<'_>) -> PyResult<()> {
        self.pair().reclaim().map_err(|error| raise(self.port.bind(py), error))
    }

    fn stop(&self, py: Python<'_>) -> PyResult<()> {
        ask(self.port.bind(py), |port| port.stop_pair(self.index))
    }

    fn start(&self, py: Python<'_>) -> PyResult<()> {
        ask(self.port.bind(py), |port| port.start_pair(self.index))
    }

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

    // A port that keeps its queues is garbage with them, when nobody else has it.
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.port)
    }

    fn __repr__(&self) -> String {
        let state = if self.pair().is_active() { "active" } else { "off" };
        format!("<virtnic.NetQueue {}: {state}>", self.index)
    }
}
