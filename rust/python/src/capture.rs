//! `CaptureWriter`, `CaptureReader`, `CapturedFrame`, and the loop `play`.

use crate::engine::{Until, run_loop};
use crate::errors::to_py;
use crate::eventfd::wait_interruptibly;
use crate::port::NetPort;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyIterator, PyTuple};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use virtnic::capture::{self, Direction, Filter, Frame, Interface, Options, Rotation};
use virtnic::engine::{self, Lateness, Pace};

/// The address of libpcap's `bpf_filter`, a compiled program, and its source expression.
type Program = (usize, Vec<u8>, String);

/// A capture that is being written, by a thread of the core.
#[pyclass(frozen, module = "virtnic._native")]
pub(crate) struct CaptureWriter(capture::Writer);

#[pymethods]
impl CaptureWriter {
    #[new]
    #[pyo3(signature = (path, ports, *, snaplen, buffer, rotate = None, comment = None,
                        filter = None))]
    #[allow(clippy::too_many_arguments, reason = "keyword arguments of a constructor")]
    fn new(
        py: Python<'_>,
        path: PathBuf,
        ports: Vec<(Py<NetPort>, String, String)>,
        snaplen: u32,
        buffer: usize,
        rotate: Option<(u64, Option<u64>)>,
        comment: Option<String>,
        filter: Option<Program>,
    ) -> PyResult<Self> {
        let filter = filter.map(|(address, program, text)| {
            // SAFETY: `virtnic.capture` in Python compiled the program with libpcap, and keeps the
            // library loaded.
            unsafe { Filter::at(address, &program, &text) }
        });
        let filter = filter.transpose().map_err(to_py)?;
        let rotation = rotate.map(|(bytes, files)| Rotation { bytes, files });
        let options = Options { path, snap: snaplen, rotation, comment, filter };
        let (snap, each) = (capture::snap(&options), buffer / ports.len().max(1));
        let described: Vec<_> = ports
            .iter()
            .map(|(port, name, description)| (port.get().core(), name, description))
            .collect();
        py.detach(|| {
            let interfaces = described.into_iter().map(|(port, name, description)| Interface {
                name: name.clone(),
                description: description.clone(),
                mac: port.mac().0,
                speed: port.line().speed.map(|megabits| u64::from(megabits) * 1_000_000),
                taps: port.tap(each, snap),
            });
            capture::Writer::start(options, interfaces.collect())
        })
        .map(Self)
        .map_err(to_py)
    }

    /// Return the counters so far, by name.
    fn counts<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let counts = self.0.counts();
        let dict = PyDict::new(py);
        dict.set_item("seen", counts.seen)?;
        dict.set_item("dropped", counts.dropped)?;
        dict.set_item("filtered", counts.filtered)?;
        dict.set_item("written", counts.written)?;
        dict.set_item("bytes", counts.bytes)?;
        dict.set_item("files", counts.files)?;
        Ok(dict)
    }

    /// Whether it ended because the file could not be written.
    #[getter]
    fn failed(&self) -> bool {
        self.0.failed()
    }

    /// Add a comment to the next frame that is written. Raises ValueError.
    fn comment(&self, text: &str) -> PyResult<()> {
        self.0.comment(text).map_err(to_py)
    }

    /// Write the remaining frames and end. Raises OSError, once, if that failed.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        wait_interruptibly(py, None, |slice| Ok(self.0.close(slice)?.then_some(())))?;
        Ok(())
    }
}

impl Drop for CaptureWriter {
    /// Waits for the thread of an unclosed capture, detached from the interpreter.
    fn drop(&mut self) {
        Python::try_attach(|py| {
            py.detach(|| match self.0.close(Duration::from_secs(2)) {
                Ok(_) => {}
                Err(error) => log::warn!("{error}"),
            });
        });
    }
}

/// A frame of a capture file. It unpacks as ``timestamp, frame``.
#[pyclass(frozen, module = "virtnic._native")]
pub(crate) struct CapturedFrame {
    said: Frame,
    bytes: Py<PyBytes>,
}

#[pymethods]
impl CapturedFrame {
    /// When it was captured, nanoseconds since 1970; None where the file does not say.
    #[getter]
    fn timestamp(&self) -> Option<i64> {
        self.said.timestamp
    }
    /// Its bytes, as many as the file has.
    #[getter]
    fn frame(&self, py: Python<'_>) -> Py<PyBytes> {
        self.bytes.clone_ref(py)
    }
    /// Its length on the wire, bytes.
    #[getter]
    fn length(&self) -> u32 {
        self.said.length
    }
    /// Which of the file's interfaces it passed, from 0.
    #[getter]
    fn interface(&self) -> u32 {
        self.said.interface
    }
    /// The kind of its first header; 1 is Ethernet (the registry of link types).
    #[getter]
    fn link_type(&self) -> u32 {
        self.said.link_type
    }
    /// ``received`` or ``sent``, seen from the capturing host; None if the file does not say.
    #[getter]
    fn direction(&self) -> Option<&'static str> {
        self.said.direction.map(|direction| match direction {
            Direction::Received => "received",
            Direction::Sent => "sent",
        })
    }
    /// Its comment, or None.
    #[getter]
    fn comment(&self) -> Option<&str> {
        self.said.comment.as_deref()
    }
    fn __iter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyIterator>> {
        let none = py.None();
        let timestamp = match self.said.timestamp {
            Some(timestamp) => timestamp.into_pyobject(py)?.into_any().unbind(),
            None => none,
        };
        PyTuple::new(py, [timestamp, self.bytes.clone_ref(py).into_any()])?.as_any().try_iter()
    }
    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let held = self.bytes.bind(py).as_bytes().len();
        let time = self.said.timestamp.map_or_else(|| "None".to_owned(), |time| time.to_string());
        Ok(format!("<CapturedFrame at {time}: {held} of {} bytes>", self.said.length))
    }
}

/// A capture file that is being read: an iterator over its frames.
#[pyclass(frozen, module = "virtnic._native")]
pub(crate) struct CaptureReader(Mutex<Option<(capture::Reader, Vec<u8>)>>);

#[pymethods]
impl CaptureReader {
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let reader = py.detach(|| capture::Reader::open(&path)).map_err(to_py)?;
        Ok(Self(Mutex::new(Some((reader, Vec::new())))))
    }
    fn __iter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }
    fn __next__(&self, py: Python<'_>) -> PyResult<Option<CapturedFrame>> {
        // Detached from the interpreter, because reading a pipe may block.
        let next = py.detach(|| {
            let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let Some((reader, bytes)) = &mut *open else { return Ok(None) };
            bytes.clear();
            let said = reader.next(bytes)?;
            Ok(said.map(|said| (said, std::mem::take(bytes))))
        });
        let Some((said, bytes)) = next.map_err(to_py)? else { return Ok(None) };
        Ok(Some(CapturedFrame { said, bytes: PyBytes::new(py, &bytes).unbind() }))
    }
    /// Close the file; no more frames follow. Closing twice is allowed.
    fn close(&self, py: Python<'_>) {
        py.detach(|| *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None);
    }
}

/// Send the frames of a file; see virtnic.capture.replay.
#[pyfunction]
pub(crate) fn play<'py>(
    port: &Bound<'py, NetPort>,
    path: PathBuf,
    pace: (&str, f64),
    times: u64,
    parts: bool,
    until: Until,
) -> PyResult<Bound<'py, PyDict>> {
    let pace = match pace {
        ("times", times) => Pace::Times(times),
        ("rate", rate) => Pace::Rate(rate),
        ("max", _) => Pace::Most,
        (other, _) => {
            return Err(PyValueError::new_err(format!(
                "the pace must be times, rate or max, not {other:?}"
            )));
        }
    };
    let py = port.py();
    let tape = py.detach(|| capture::Tape::new(path, times, parts)).map_err(to_py)?;
    let core = port.get().core();
    let mut lateness = Lateness::default();
    let result = run_loop(py, &[port.get()], &until, |control| {
        let (report, late) = engine::play(core, tape, pace, control)?;
        lateness = late;
        Ok(report)
    })?;
    result.set_item("late", lateness.late)?;
    result.set_item("latest", lateness.latest.as_secs_f64())?;
    Ok(result)
}
