//! Frames from Python to a queue, and from a queue to Python.

use crate::burst::Burst;
use crate::eventfd::wait_in_slices;
use crate::given::Given;
use crate::offload::Says;
use crate::port::NetPort;
use crate::time::span;
use crate::views::Bytes;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use std::time::Duration;
use virtnic::net::{FrameBuffer, FrameSource, Offload, PortStats, QueuePair, SendStop, Wake};

/// A request for more frames than this is taken for a mistake.
const MAX_BURST: i64 = 65_536;

/// Converts an error of a port: see [`Started::raise`](crate::driver::Started::raise).
pub(crate) fn raise(port: &Bound<'_, NetPort>, error: virtnic::Error) -> PyErr {
    port.get().started().raise(port.py(), error)
}

pub(crate) fn send(
    port: &Bound<'_, NetPort>,
    pair: &QueuePair,
    frames: &Bound<'_, PyAny>,
    offload: Option<&Bound<'_, PyAny>>,
) -> PyResult<usize> {
    if let Ok(burst) = frames.cast::<Burst>() {
        let (py, burst) = (port.py(), burst.get());
        // Reading the iterable runs Python code, which may use the burst; so may an exception's.
        let says = match offload {
            None => None,
            Some(offload) => Some(Says::of(offload, burst.lock(py).len(), false)?),
        };
        let (sent, left) = {
            let mut burst = burst.lock(py);
            let sent = match &says {
                None => pair.send_burst(&mut burst).map(|sent| (sent, None)),
                Some(says) => pair.send_burst_as(&mut burst, &|index| says.at(index)),
            };
            (sent, !burst.is_empty())
        };
        let (queued, stop) = sent.map_err(|error| raise(port, error))?;
        if let Some(SendStop::BadFrame(why)) = stop {
            return Err(bad_frame(frames.py(), &why, queued)?);
        }
        if left {
            port.get().started().look_after(port.py()).map_err(|error| raise(port, error))?;
        }
        return Ok(queued);
    }
    let mut source = PythonFrames::new(frames)?;
    if let Some(offload) = offload {
        let (count, more) = (source.frames.len(), source.frames.ends_early()?);
        source.says = Some(Says::of(offload, count, more)?);
    }
    let (queued, stop) = pair.send(&mut source).map_err(|error| raise(port, error))?;
    let failure = source.failure.take();
    match (failure, stop) {
        (Some(error), _) => Err(with_progress(frames.py(), error, queued)?),
        (None, Some(SendStop::BadFrame(why))) => Err(bad_frame(frames.py(), &why, queued)?),
        (None, Some(_)) => {
            port.get().started().look_after(port.py()).map_err(|error| raise(port, error))?;
            Ok(queued)
        }
        _ => Ok(queued),
    }
}

/// The error for a frame that cannot be sent.
fn bad_frame(py: Python<'_>, why: &str, queued: usize) -> PyResult<PyErr> {
    let error = PyValueError::new_err(format!(
        "frame {queued}: {why}; the {queued} frames before it were queued"
    ));
    with_progress(py, error, queued)
}

pub(crate) fn recv(
    port: &Bound<'_, NetPort>,
    pair: &QueuePair,
    maximum: i64,
    timeout: Option<f64>,
) -> PyResult<Burst> {
    if !(1..=MAX_BURST).contains(&maximum) {
        return Err(PyValueError::new_err(format!(
            "a burst has 1 to {MAX_BURST} frames, not {maximum}"
        )));
    }
    let maximum = maximum as usize;
    // Check the timeout even if there is no need to wait.
    let wait = if timeout == Some(0.0) { Some(Duration::ZERO) } else { span(timeout)? };
    let mut burst = virtnic::net::Burst::new(port.get().core().pool().clone());
    let received = pair.recv(maximum, &mut burst).map_err(|error| raise(port, error))?;
    if received == 0 && wait != Some(Duration::ZERO) {
        recv_waiting(port, pair, maximum, wait, &mut burst)?;
    }
    Ok(Burst::new(burst))
}

/// Waits until half of the transmit queue is free.
pub(crate) fn wait_writable(
    port: &Bound<'_, NetPort>,
    pair: &QueuePair,
    timeout: Option<f64>,
) -> PyResult<bool> {
    let found = wait(port, span(timeout)?, |slice| {
        Ok((pair.wait_writable(Some(slice))? == Wake::Ready).then_some(()))
    })?;
    Ok(found.is_some())
}

pub(crate) fn stats(py: Python<'_>, stats: PortStats) -> PyResult<Bound<'_, PyDict>> {
    let dict = PyDict::new(py);
    for (queue, counters) in [("rx", stats.rx), ("tx", stats.tx)] {
        for (name, value) in counters.fields() {
            dict.set_item(format!("{queue}_{name}"), value)?;
        }
    }
    Ok(dict)
}

/// All counters: sums over all pairs, then those of each queue.
pub(crate) fn xstats<'py>(
    py: Python<'py>,
    port: &virtnic::net::Port,
) -> PyResult<Bound<'py, PyDict>> {
    let dict = stats(py, port.stats())?;
    for pair in port.pairs() {
        for (direction, numbers) in ["rx", "tx"].into_iter().zip(pair.extended_stats()) {
            for (name, value) in numbers.fields() {
                dict.set_item(format!("{direction}_q{}_{name}", pair.index()), value)?;
            }
        }
    }
    Ok(dict)
}

/// Waits for the first frames.
fn recv_waiting(
    port: &Bound<'_, NetPort>,
    pair: &QueuePair,
    maximum: usize,
    timeout: Option<Duration>,
    burst: &mut virtnic::net::Burst,
) -> PyResult<()> {
    wait(port, timeout, |slice| {
        pair.wait(Some(slice))?;
        Ok((pair.recv(maximum, burst)? > 0).then_some(()))
    })?;
    Ok(())
}

/// Waits for a queue in slices: see [`wait_in_slices`].
fn wait(
    port: &Bound<'_, NetPort>,
    timeout: Option<Duration>,
    ready: impl FnMut(Duration) -> virtnic::Result<Option<()>> + Send,
) -> PyResult<Option<()>> {
    let py = port.py();
    let look = || port.get().started().look_after(py);
    wait_in_slices(py, timeout, ready, |error| raise(port, error), look)
}

/// Sets the attribute `queued` of a failed `send`'s exception.
fn with_progress(py: Python<'_>, error: PyErr, queued: usize) -> PyResult<PyErr> {
    error.value(py).setattr("queued", queued)?;
    Ok(error)
}

/// The frames of a Python iterable.
struct PythonFrames<'py> {
    frames: Given<'py>,
    next: usize,
    failure: Option<PyErr>,
    says: Option<Says>,
}

impl<'py> PythonFrames<'py> {
    fn new(frames: &Bound<'py, PyAny>) -> PyResult<Self> {
        Ok(Self { frames: Given::of(frames)?, next: 0, failure: None, says: None })
    }

    fn copy(&mut self, buffer: &mut FrameBuffer) -> PyResult<Result<usize, String>> {
        let item = self.frames.item(self.next)?;
        if let Ok(bytes) = item.cast::<PyBytes>() {
            return Ok(buffer.fill(bytes.as_bytes()));
        }
        let bytes = Bytes::of(&item).map_err(|cause| {
            let error = PyTypeError::new_err(format!(
                "frame {0} is not a contiguous bytes-like object but {1}; the {0} frames before it were queued",
                self.next,
                item.get_type().name().map_or_else(|_| "?".to_owned(), |name| name.to_string())
            ));
            error.set_cause(item.py(), Some(cause));
            error
        })?;
        //  SAFETY: `bytes` holds the object's buffer of this length for reading. Another thread may
        // write to it meanwhile, as to any buffer; the frame then holds a mixture.
        Ok(unsafe { buffer.fill_raw(bytes.as_ptr(), bytes.len()) })
    }
}

impl FrameSource for PythonFrames<'_> {
    fn more(&mut self) -> bool {
        self.next < self.frames.len()
    }

    fn left(&self) -> usize {
        self.frames.len().saturating_sub(self.next)
    }

    fn describes(&self) -> bool {
        self.says.is_some()
    }

    fn offload(&self) -> Offload {
        // `next` has already advanced.
        self.says.as_ref().map_or(Offload::NONE, |says| says.at(self.next.wrapping_sub(1)))
    }

    fn next(&mut self, buffer: &mut FrameBuffer) -> Result<usize, String> {
        match self.copy(buffer) {
            Ok(result) => {
                self.next += 1;
                result
            }
            Err(error) => {
                self.failure = Some(error);
                Err("not bytes-like".to_owned())
            }
        }
    }
}
