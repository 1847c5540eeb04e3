//! `StackWire`: a wire whose frames Python moves.

use crate::given::Given;
use crate::time::span;
use crate::views::Bytes;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use std::sync::Arc;
use std::time::Duration;
use virtnic::net::Mac;
use virtnic::stack::{Abilities, Fed, Packets, Wire};

/// A wire whose frames Python moves.
#[pyclass(frozen, module = "virtnic._native")]
pub(crate) struct StackWire(Arc<Fed>);

impl StackWire {
    /// The end that a stack uses.
    pub(super) fn end(&self) -> Box<dyn Wire> {
        Box::new(Shared(self.0.clone()))
    }
}

/// The host's reference to the wire.
struct Shared(Arc<Fed>);

impl Wire for Shared {
    fn mac(&self) -> Mac {
        self.0.mac()
    }
    fn mtu(&self) -> u16 {
        self.0.mtu()
    }
    fn abilities(&self) -> Abilities {
        self.0.abilities()
    }
    fn recv(&self, max: usize, packets: &mut Packets) -> virtnic::Result<usize> {
        self.0.recv(max, packets)
    }
    fn wait(&self, timeout: Option<Duration>) -> virtnic::Result<virtnic::net::Wake> {
        self.0.wait(timeout)
    }
    fn wake(&self) {
        self.0.wake();
    }
    fn send(&self, packets: &Packets) -> virtnic::Result<usize> {
        self.0.send(packets)
    }
    fn end(&self) {
        self.0.end();
    }
}

#[pymethods]
impl StackWire {
    #[new]
    fn new(mac: [u8; 6], mtu: u16) -> Self {
        Self(Arc::new(Fed::new(Mac(mac), mtu)))
    }
    /// Pass received frames to the stack; return how many it took.
    fn feed(&self, frames: &Bound<'_, PyAny>) -> PyResult<usize> {
        let given = Given::of(frames)?;
        let mut taken = 0;
        for index in 0..given.len() {
            let bytes = Bytes::of(&given.item(index)?)?.to_vec();
            taken += usize::from(self.0.feed(&bytes));
        }
        Ok(taken)
    }
    /// Return the sent frames, waiting for the first; None after the stack has ended.
    fn take<'py>(
        &self,
        py: Python<'py>,
        timeout: f64,
    ) -> PyResult<Option<Vec<Bound<'py, PyBytes>>>> {
        let timeout = span(Some(timeout))?.unwrap_or(Duration::from_secs(3600));
        let frames = py.detach(|| self.0.take(timeout));
        Ok(frames.map(|all| all.iter().map(|frame| PyBytes::new(py, frame)).collect()))
    }
    /// Fail the wire: no more frames are moved.
    fn fail(&self, why: String) {
        self.0.fail(virtnic::Error::Closed(why));
    }
    /// Whether the stack was closed.
    #[getter]
    fn ended(&self) -> bool {
        self.0.is_over()
    }
}
