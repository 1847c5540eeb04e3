//! `Burst`.

use crate::offload::Offloads;
use crate::sequence;
use crate::views::{Bytes, Frame, Numbers, Rows};
use pyo3::exceptions::{PyBufferError, PyImportError, PyIndexError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::{MutexExt, PyOnceLock};
use pyo3::types::{PyBytes, PyList, PyMemoryView, PySlice};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// `numpy.asarray`, once it has been used.
static ASARRAY: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

/// Frames received or to be sent together; each is a writable memoryview.
///
/// No frame is copied: a view is the packet memory itself. A buffer returns to the pool when its
/// burst and all views of it are gone.
#[pyclass(frozen, sequence, module = "virtnic._native")]
pub(crate) struct Burst(Mutex<virtnic::net::Burst>);

impl Burst {
    pub(crate) fn new(burst: virtnic::net::Burst) -> Self {
        Self(Mutex::new(burst))
    }
    /// Waits without the interpreter: the lock's holder may need it.
    pub(crate) fn lock(&self, py: Python<'_>) -> MutexGuard<'_, virtnic::net::Burst> {
        self.0.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner)
    }
    /// A view of a frame; `None` past the end.
    fn view<'py>(
        &self,
        py: Python<'py>,
        index: usize,
    ) -> Option<PyResult<Bound<'py, PyMemoryView>>> {
        // Hold the lock only for the export: creating objects can run any finaliser.
        let frame = {
            let burst = self.lock(py);
            Frame::export(burst.pool(), *burst.ids().get(index)?, *burst.lengths().get(index)?)
        };
        Some(frame.into_view(py))
    }
}

#[pymethods]
impl Burst {
    fn __len__(&self, py: Python<'_>) -> usize {
        self.lock(py).len()
    }

    fn __getitem__<'py>(&self, index: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let py = index.py();
        let length = self.__len__(py);
        if let Ok(slice) = index.cast::<PySlice>() {
            let slice = slice.indices(length as isize)?;
            let list = PyList::empty(py);
            let mut at = slice.start;
            for _ in 0..slice.slicelength {
                if let Some(view) = usize::try_from(at).ok().and_then(|at| self.view(py, at)) {
                    list.append(view?)?;
                }
                at += slice.step;
            }
            return Ok(list.into_any());
        }
        let Ok(at) = index.extract::<isize>() else {
            return Err(PyTypeError::new_err(format!(
                "burst indices must be integers or slices, not {}",
                index.get_type().name()?
            )));
        };
        let from_front = if at < 0 { at + length as isize } else { at };
        match usize::try_from(from_front).ok().and_then(|at| self.view(py, at)) {
            Some(view) => Ok(view?.into_any()),
            None => Err(PyIndexError::new_err(format!("frame {at} of a burst of {length}"))),
        }
    }

    fn __iter__(slf: Bound<'_, Self>) -> BurstIterator {
        BurstIterator { burst: slf.unbind(), next: AtomicUsize::new(0) }
    }

    fn __contains__(slf: &Bound<'_, Self>, value: &Bound<'_, PyAny>) -> PyResult<bool> {
        sequence::contains(slf.as_any(), value)
    }

    fn __reversed__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        sequence::walk(slf.as_any(), -1)
    }

    /// Return the first index of a value. Raises ValueError if it is not present.
    #[pyo3(signature = (value, start = 0, stop = None))]
    fn index(
        slf: &Bound<'_, Self>,
        value: &Bound<'_, PyAny>,
        start: isize,
        stop: Option<isize>,
    ) -> PyResult<usize> {
        sequence::index(slf.as_any(), value, start, stop)
    }

    /// Return the number of occurrences of a value.
    fn count(slf: &Bound<'_, Self>, value: &Bound<'_, PyAny>) -> PyResult<usize> {
        sequence::count(slf.as_any(), value)
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        let burst = self.lock(py);
        let bytes: u64 = burst.lengths().iter().map(|length| u64::from(*length)).sum();
        format!("<virtnic.Burst: {} frames, {bytes} bytes>", burst.len())
    }

    /// The frames' lengths: a read-only view of 32-bit unsigned integers (a snapshot).
    #[getter]
    fn lengths<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyMemoryView>> {
        let numbers = self.lock(py).lengths().into();
        Numbers::view(py, numbers)
    }

    /// The buffers' indices in the pool, in the same form.
    #[getter]
    fn ids<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyMemoryView>> {
        let numbers = self.lock(py).ids().into();
        Numbers::view(py, numbers)
    }

    /// The hash of each frame (unsigned 32 bits); None if the device reports none.
    #[getter]
    fn hashes<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyMemoryView>>> {
        let hashes = self.lock(py).hashes();
        hashes.map(|h| Numbers::view(py, h.iter().map(|h| h.0).collect())).transpose()
    }

    /// What each hash covers: 0 nothing, 1 IPv4, 2 TCPv4, 3 UDPv4, 4 IPv6 etc.
    ///
    /// The values of ``hash_report`` in VIRTIO 1.3, section 5.1.6.4.4.
    #[getter]
    fn hash_types<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyMemoryView>>> {
        let hashes = self.lock(py).hashes();
        hashes.map(|h| Numbers::view(py, h.iter().map(|h| h.1.into()).collect())).transpose()
    }

    /// When the frames were taken from the ring, in nanoseconds since 1970 (``time.time_ns()``).
    ///
    /// No frame arrived later. It may have arrived earlier: with polling, by up to the time since
    /// the previous poll; after a wait, by the latency of the interrupt. None unless the port was
    /// opened with ``timestamps=True``.
    #[getter]
    fn timestamp(&self, py: Python<'_>) -> Option<u64> {
        self.lock(py).timestamp()
    }

    /// The offload metadata of each frame: what is left to do, or what the device has verified.
    ///
    /// None if no offload of received frames was negotiated.
    #[getter]
    fn offload(&self, py: Python<'_>) -> Option<Offloads> {
        self.lock(py).offloads().map(|offloads| Offloads(offloads.into()))
    }

    /// The frames as one two-dimensional view (frame, byte) of their buffers, without a copy.
    ///
    /// Row ``i`` is the whole buffer of frame ``i``, whose first ``lengths[i]`` bytes are the
    /// frame. Raises BufferError if the buffers are not adjacent; use ``headers`` then.
    #[getter]
    fn data<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyMemoryView>> {
        let rows = Rows::of_burst(&self.lock(py));
        let Some(rows) = rows else {
            return Err(PyBufferError::new_err(
                "the buffers of this burst are not adjacent; copy with headers() instead",
            ));
        };
        PyMemoryView::from(Bound::new(py, rows)?.as_any())
    }

    /// Copy the first ``count`` bytes of every frame into a NumPy array (frame, byte).
    ///
    /// Shorter frames are padded with zeros. Raises ValueError, ImportError without NumPy.
    #[pyo3(signature = (count = 64))]
    fn headers<'py>(&self, py: Python<'py>, count: i64) -> PyResult<Bound<'py, PyAny>> {
        let columns = match usize::try_from(count) {
            Ok(columns) if (1..=self.lock(py).pool().capacity()).contains(&columns) => columns,
            _ => {
                return Err(PyValueError::new_err(format!(
                    "headers: count must be 1 to {}, not {count}",
                    self.lock(py).pool().capacity()
                )));
            }
        };
        let asarray = ASARRAY.get_or_try_init(py, || -> PyResult<_> {
            let numpy = py.import("numpy").map_err(|cause| {
                let error = PyImportError::new_err(
                    "headers() makes a NumPy array; pip install 'virtnic[numpy]'",
                );
                error.set_cause(py, Some(cause));
                error
            })?;
            Ok(numpy.getattr("asarray")?.unbind())
        })?;
        let rows = Rows::of_headers(&self.lock(py), columns);
        asarray.bind(py).call1((Bound::new(py, rows)?,))
    }

    /// Copy one row of bytes over the start of each frame, up to the frame's length.
    ///
    /// ``headers`` is C-contiguous with one row of unsigned bytes per frame. Raises ValueError for
    /// any other shape.
    fn put_headers(&self, headers: &Bound<'_, PyAny>) -> PyResult<()> {
        let bytes = Bytes::of(headers)?;
        let burst = self.lock(headers.py());
        if burst.is_empty() && bytes.len() == 0 {
            return Ok(());
        }
        if burst.is_empty() || bytes.len() == 0 || !bytes.len().is_multiple_of(burst.len()) {
            return Err(PyValueError::new_err(format!(
                "headers must have one row for each frame: {} bytes for {} frames do not",
                bytes.len(),
                burst.len()
            )));
        }
        let columns = bytes.len() / burst.len();
        for index in 0..burst.len() {
            if let Some((to, length)) = burst.frame(index) {
                //  SAFETY: the row lies in `bytes`, the frame has `length` bytes; `copy` allows
                //  overlap, in
                // case a burst's own rows are put back.
                unsafe {
                    let from = bytes.as_ptr().add(index * columns);
                    std::ptr::copy(from, to, columns.min(length));
                }
            }
        }
        Ok(())
    }

    /// Return copies of all frames.
    ///
    /// With ``checksums``, those that the device left out or vouches for are calculated in the
    /// copies: see :attr:`offload`. Some devices vouch for checksums whatever was negotiated.
    #[pyo3(signature = (*, checksums = false))]
    fn tobytes<'py>(&self, py: Python<'py>, checksums: bool) -> PyResult<Bound<'py, PyList>> {
        let list = PyList::empty(py);
        let burst = self.lock(py);
        for index in 0..burst.len() {
            if let Some((from, length)) = burst.frame(index) {
                let bytes = PyBytes::new_with(py, length, |out| {
                    //  SAFETY: the buffer belongs to the burst, which is locked; `out` has room for
                    //  `length` bytes
                    // and does not overlap it.
                    unsafe { std::ptr::copy_nonoverlapping(from, out.as_mut_ptr(), length) };
                    if checksums {
                        burst.receive_offload(index).finish(out);
                    }
                    Ok(())
                })?;
                list.append(bytes)?;
            }
        }
        Ok(list)
    }

    /// Return the buffers to the pool now; the burst is empty afterwards.
    fn release(&self, py: Python<'_>) {
        self.lock(py).clear();
    }
}

/// Iterates over a burst; ends early if frames leave the burst.
#[pyclass(frozen, module = "virtnic._native")]
pub(crate) struct BurstIterator {
    burst: Py<Burst>,
    next: AtomicUsize,
}

#[pymethods]
impl BurstIterator {
    fn __iter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }
    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyMemoryView>>> {
        let index = self.next.fetch_add(1, Ordering::Relaxed);
        self.burst.get().view(py, index).transpose()
    }
}
