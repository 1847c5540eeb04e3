//! `NetPort`.

use crate::burst::Burst;
use crate::errors::{QemuDied, to_py};
use crate::eventfd::EventFd;
use crate::memory::Memory;
use crate::qtest::QTest;
use crate::time::span;
use crate::vhost_user::Interposer;
use crate::views::Bytes;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyDict, PyList, PyMemoryView, PyString, PyTuple};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::Instant;
use virtnic::net::{
    Events, FrameBuffer, FrameSource, Mac, PortOptions, RingFormat, SendStop, Wake,
};
use virtnic::notify::Doorbell;
use virtnic::virtio::features::{Wishes, by_name};
use virtnic::virtio::transport::modern::{ModernPci, Registers};

/// More frames than this at once are a mistake.
const MAX_BURST: i64 = 65_536;

/// A started virtio-net device: the data path.
#[pyclass(frozen, subclass, module = "virtnic._native")]
pub(crate) struct NetPort {
    port: virtnic::net::Port,
}

/// The exception of an error of the core. That QEMU died is explained by the subclass, which
/// knows the process: how it ended, and its last words.
fn raise(port: &Bound<'_, NetPort>, error: virtnic::Error) -> PyErr {
    if let virtnic::Error::QemuDied(_) = error
        && let Ok(words) = port.call_method0("_obituary").and_then(|words| words.extract())
    {
        return QemuDied::new_err::<(String,)>((words,));
    }
    to_py(error)
}

impl NetPort {
    pub(crate) fn core(&self) -> &virtnic::net::Port {
        &self.port
    }
}

/// The doorbells of the queues that the interposer's backend serves.
fn doorbells(kicks: &Py<Interposer>) -> PyResult<[Doorbell; 2]> {
    let kick = |queue| kicks.get().core().kick(queue).map(Doorbell::Kick).map_err(to_py);
    Ok([kick(0)?, kick(1)?])
}

/// Feature wishes by name: True insists, False refuses, None prefers.
fn wishes(features: Option<&Bound<'_, PyDict>>) -> PyResult<Wishes> {
    let mut wishes = Wishes::default();
    for (name, wanted) in features.into_iter().flatten() {
        let name: String = name.extract()?;
        let Some(feature) = by_name(&name) else {
            return Err(PyValueError::new_err(format!(
                "there is no virtio-net feature {name:?}; names are those of VIRTIO 1.3, such as MRG_RXBUF"
            )));
        };
        match wanted.extract::<Option<bool>>()? {
            Some(true) => wishes.insist |= feature.set(),
            Some(false) => wishes.refuse |= feature.set(),
            None => wishes.prefer |= feature.set(),
        }
    }
    Ok(wishes)
}

#[pymethods]
impl NetPort {
    #[new]
    #[pyo3(signature = (*, memory, qtest, registers, queue_size = 0, vectors = None, events = None,
                        intx = None, kicks = None, features = None, **_kwargs))]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments of a constructor")]
    fn new(
        py: Python<'_>,
        memory: &Bound<'_, Memory>,
        qtest: &Bound<'_, QTest>,
        registers: (u64, u64, u64, u64, u32, u32),
        queue_size: i64,
        vectors: Option<(u16, u16, u16)>,
        events: Option<(Py<EventFd>, Py<EventFd>, Py<EventFd>)>,
        intx: Option<Py<EventFd>>,
        kicks: Option<Py<Interposer>>,
        features: Option<&Bound<'_, PyDict>>,
        _kwargs: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Self> {
        let Ok(queue_size) = u16::try_from(queue_size) else {
            return Err(PyValueError::new_err(format!(
                "a queue size is a power of two up to 32768, or 0 for the device's own, not {queue_size}"
            )));
        };
        let (common, isr, device, notify, device_length, notify_multiplier) = registers;
        let registers = Registers { common, isr, device, notify, device_length, notify_multiplier };
        let events = events.map(|(rx, tx, config)| Events {
            rx: rx.get().inner().clone(),
            tx: tx.get().inner().clone(),
            config: config.get().inner().clone(),
        });
        let options = PortOptions {
            queue_size,
            wishes: wishes(features)?,
            events: events.clone(),
            vectors,
            intx: intx.map(|line| line.get().inner().clone()),
            doorbells: kicks.as_ref().map(doorbells).transpose()?,
            mac: Mac::default(),
        };
        let qtest = qtest.get().inner().clone();
        let pool = memory.get().region().pool();
        let port = py
            .detach(|| {
                let transport = Arc::new(ModernPci::new(qtest.clone(), registers));
                virtnic::net::Port::start(transport, pool, options)
            })
            .map_err(to_py)?;
        // A backend that comes back goes on where the last one ended.
        for (queue, follower) in (0..).zip(port.followers()) {
            if let (Some(kicks), Some(follower)) = (&kicks, follower.clone()) {
                let position = Arc::new(move || Some(follower.position()));
                kicks.get().core().resume_at(queue, Some(position));
            }
        }
        // A dead QEMU wakes whoever waits for its interrupts.
        for event in events.iter().flat_map(|e| [&e.rx, &e.tx, &e.config]) {
            qtest.watch(event);
        }
        Ok(Self { port })
    }

    #[getter]
    fn mac(&self) -> String {
        self.port.config().mac.to_string()
    }
    #[getter]
    fn mtu(&self) -> u16 {
        self.port.config().mtu
    }
    #[getter]
    fn link(&self) -> bool {
        self.port.link()
    }
    fn refresh_link(slf: &Bound<'_, Self>) -> PyResult<bool> {
        let port = &slf.get().port;
        slf.py().detach(|| port.refresh_link()).map_err(|error| raise(slf, error))
    }
    #[getter]
    fn features(&self) -> Vec<(String, u8, bool, bool, String)> {
        let outcomes = self.port.outcomes().iter();
        outcomes.map(|o| (o.name.clone(), o.bit, o.offered, o.accepted, o.why.clone())).collect()
    }
    #[getter]
    fn queue_size(&self) -> u16 {
        self.port.queues()[0].size
    }
    #[getter]
    fn queue_addresses(&self) -> [(&'static str, u64, u64, u64); 2] {
        let [rx, tx] = self.port.queues();
        [("rx", rx), ("tx", tx)].map(|(n, q)| (n, q.descriptors.0, q.driver.0, q.device.0))
    }
    #[getter]
    fn ring(&self) -> &'static str {
        match self.port.ring_format() {
            RingFormat::Split => "split",
            RingFormat::Packed => "packed",
        }
    }

    fn send(slf: &Bound<'_, Self>, frames: &Bound<'_, PyAny>) -> PyResult<usize> {
        let port = &slf.get().port;
        if let Ok(burst) = frames.cast::<Burst>() {
            let sent = port.send_burst(&mut burst.get().lock());
            return sent.map_err(|error| raise(slf, error));
        }
        let mut source = PythonFrames::new(frames)?;
        let (queued, stop) = port.send(&mut source).map_err(|error| raise(slf, error))?;
        let failure = source.failure.take();
        match (failure, stop) {
            (Some(error), _) => Err(with_progress(frames.py(), error, queued)?),
            (None, Some(SendStop::BadFrame(why))) => {
                let error = PyValueError::new_err(format!(
                    "frame {queued}: {why}; the {queued} frames before it were queued"
                ));
                Err(with_progress(frames.py(), error, queued)?)
            }
            _ => Ok(queued),
        }
    }

    #[pyo3(signature = (maximum = 256, timeout = Some(0.0)),
           text_signature = "($self, maximum=256, timeout=0.0)")]
    fn recv(slf: &Bound<'_, Self>, maximum: i64, timeout: Option<f64>) -> PyResult<Burst> {
        if !(1..=MAX_BURST).contains(&maximum) {
            return Err(PyValueError::new_err(format!(
                "a burst has 1 to {MAX_BURST} frames, not {maximum}"
            )));
        }
        let maximum = maximum as usize;
        let port = &slf.get().port;
        let mut burst = virtnic::net::Burst::new(port.pool().clone());
        let received = port.recv(maximum, &mut burst).map_err(|error| raise(slf, error))?;
        if received == 0 && timeout != Some(0.0) {
            recv_waiting(slf, maximum, timeout, &mut burst)?;
        }
        Ok(Burst::new(burst))
    }

    fn fileno(&self) -> PyResult<i32> {
        Ok(self.port.arm().map_err(to_py)?.as_fd().as_raw_fd())
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = self.port.stats();
        let dict = PyDict::new(py);
        for (queue, counters) in [("rx", stats.rx), ("tx", stats.tx)] {
            for (name, value) in counters.fields() {
                dict.set_item(format!("{queue}_{name}"), value)?;
            }
        }
        Ok(dict)
    }

    fn reclaim(slf: &Bound<'_, Self>) -> PyResult<()> {
        slf.get().port.reclaim().map_err(|error| raise(slf, error))
    }

    #[getter]
    fn closed(&self) -> bool {
        self.port.is_closed()
    }

    fn stop(&self, py: Python<'_>) {
        py.detach(|| self.port.stop());
    }
}

/// Waits for the first frames, looking at Python's signals now and then.
fn recv_waiting(
    slf: &Bound<'_, NetPort>,
    maximum: usize,
    timeout: Option<f64>,
    burst: &mut virtnic::net::Burst,
) -> PyResult<()> {
    let py = slf.py();
    let port = &slf.get().port;
    let timeout = span(timeout)?;
    let start = Instant::now();
    loop {
        let (wake, received) = py
            .detach(|| {
                let left = timeout.map(|timeout| timeout.saturating_sub(start.elapsed()));
                let wake = port.wait(left)?;
                Ok((wake, port.recv(maximum, burst)?))
            })
            .map_err(|error| raise(slf, error))?;
        if received > 0 || wake == Wake::Timeout {
            return Ok(());
        }
        py.check_signals()?;
        if timeout.is_some_and(|timeout| start.elapsed() >= timeout) {
            return Ok(());
        }
    }
}

/// Tells how far a failed `send` came: the attribute `queued`.
fn with_progress(py: Python<'_>, error: PyErr, queued: usize) -> PyResult<PyErr> {
    error.value(py).setattr("queued", queued)?;
    Ok(error)
}

/// The frames of a Python iterable.
struct PythonFrames<'py> {
    frames: Frames<'py>,
    next: usize,
    failure: Option<PyErr>,
}

enum Frames<'py> {
    List(Bound<'py, PyList>),
    Tuple(Bound<'py, PyTuple>),
}

impl<'py> PythonFrames<'py> {
    fn new(frames: &Bound<'py, PyAny>) -> PyResult<Self> {
        let single = frames.is_instance_of::<PyBytes>()
            || frames.is_instance_of::<PyByteArray>()
            || frames.is_instance_of::<PyMemoryView>()
            || frames.is_instance_of::<PyString>();
        if single {
            return Err(PyTypeError::new_err(format!(
                "send takes a burst or an iterable of frames, not {}; for one frame write send([frame])",
                frames.get_type().name()?
            )));
        }
        let frames = if let Ok(list) = frames.cast::<PyList>() {
            Frames::List(list.clone())
        } else if let Ok(tuple) = frames.cast::<PyTuple>() {
            Frames::Tuple(tuple.clone())
        } else {
            let list = PyList::empty(frames.py());
            for frame in frames.try_iter()? {
                list.append(frame?)?;
            }
            Frames::List(list)
        };
        Ok(Self { frames, next: 0, failure: None })
    }

    fn item(&self, index: usize) -> PyResult<Bound<'py, PyAny>> {
        match &self.frames {
            Frames::List(list) => list.get_item(index),
            Frames::Tuple(tuple) => tuple.get_item(index),
        }
    }

    fn copy(&mut self, buffer: &mut FrameBuffer) -> PyResult<Result<usize, String>> {
        let item = self.item(self.next)?;
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
        // SAFETY: `bytes` holds the object's buffer of this length for reading. Others may
        // write to it meanwhile, as to any buffer; then the frame has a mixture.
        Ok(unsafe { buffer.fill_raw(bytes.as_ptr(), bytes.len()) })
    }
}

impl FrameSource for PythonFrames<'_> {
    fn more(&mut self) -> bool {
        let length = match &self.frames {
            Frames::List(list) => list.len(),
            Frames::Tuple(tuple) => tuple.len(),
        };
        self.next < length
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
