//! The `frames` argument: an iterable of frames, never a single frame.

use crate::burst::Burst;
use pyo3::exceptions::PyTypeError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyString, PyTuple};

/// Frames taken from an iterable between two checks for signals.
const LOOK: usize = 4096;

/// Frames one by one; bytes-like objects, unless the caller made a mistake.
pub(crate) enum Given<'py> {
    List(Bound<'py, PyList>),
    Tuple(Bound<'py, PyTuple>),
}

impl<'py> Given<'py> {
    /// Takes an iterable of frames. A list or tuple is used as it is unless an item must be
    /// converted with `bytes()`, which can run any Python code and so is done here, not while
    /// sending.
    pub(crate) fn of(frames: &Bound<'py, PyAny>) -> PyResult<Self> {
        refuse_lone(frames)?;
        if let Ok(list) = frames.cast::<PyList>() {
            if list.iter().all(|frame| is_plain(&frame)) {
                return Ok(Self::List(list.clone()));
            }
        } else if let Ok(tuple) = frames.cast::<PyTuple>()
            && tuple.iter().all(|frame| is_plain(&frame))
        {
            return Ok(Self::Tuple(tuple.clone()));
        }
        let ends = frames.is_instance_of::<PyList>() || frames.is_instance_of::<PyTuple>();
        let list = PyList::empty(frames.py());
        for frame in frames.try_iter()? {
            let frame = frame?;
            let plain = is_plain(&frame);
            let frame = if plain { frame } else { bytes_of(frame)? };
            // Nothing after it is sent, and the iterable may be endless.
            let last = !ends && !plain && !is_plain(&frame);
            list.append(frame)?;
            if last {
                break;
            }
            if list.len().is_multiple_of(LOOK) {
                // Producing the frames need not run any Python code: `itertools.repeat`.
                frames.py().check_signals()?;
            }
        }
        Ok(Self::List(list))
    }

    /// Whether the last item is not a frame; more may have followed.
    pub(crate) fn ends_early(&self) -> PyResult<bool> {
        Ok(self.len() > 0 && !is_plain(&self.item(self.len() - 1)?))
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Self::List(list) => list.len(),
            Self::Tuple(tuple) => tuple.len(),
        }
    }

    pub(crate) fn item(&self, index: usize) -> PyResult<Bound<'py, PyAny>> {
        match self {
            Self::List(list) => list.get_item(index),
            Self::Tuple(tuple) => tuple.get_item(index),
        }
    }
}

/// Whether an object supports the buffer protocol, as `bytes`, arrays and views do.
fn shows_bytes(object: &Bound<'_, PyAny>) -> bool {
    // SAFETY: the pointer is that of a live object, and we are attached.
    unsafe { ffi::PyObject_CheckBuffer(object.as_ptr()) != 0 }
}

/// Whether an object has `__bytes__`, as packets of scapy and dpkt do.
fn makes_bytes(object: &Bound<'_, PyAny>) -> PyResult<bool> {
    // Look at the type, as Python does: an object with `__getattr__` may claim anything.
    object.get_type().hasattr("__bytes__")
}

#[inline]
fn is_plain(frame: &Bound<'_, PyAny>) -> bool {
    frame.is_exact_instance_of::<PyBytes>() || shows_bytes(frame)
}

/// An object's bytes; an object without any is kept, and refused when its turn comes.
fn bytes_of(frame: Bound<'_, PyAny>) -> PyResult<Bound<'_, PyAny>> {
    if !makes_bytes(&frame)? {
        return Ok(frame);
    }
    frame.py().get_type::<PyBytes>().call1((frame,))
}

/// Refuses a single frame: each of its bytes would be taken for a frame.
fn refuse_lone(frames: &Bound<'_, PyAny>) -> PyResult<()> {
    // What is usual has neither bytes nor `__bytes__`; to ask costs an exception.
    if frames.is_exact_instance_of::<PyList>() || frames.is_exact_instance_of::<PyTuple>() {
        return Ok(());
    }
    if frames.is_instance_of::<PyString>() || shows_bytes(frames) || makes_bytes(frames)? {
        return Err(PyTypeError::new_err(format!(
            "frames are a burst or an iterable of frames, not {}; for one frame write [frame]",
            frames.get_type().name()?
        )));
    }
    Ok(())
}

/// Convert a ``frames`` argument into a burst, a list or a tuple of bytes-like objects.
///
/// Items that are not bytes-like but define ``__bytes__`` are converted. A list or tuple without
/// such items is returned as it is. Raises TypeError for a single frame (anything bytes-like or
/// with ``__bytes__``), and whatever ``__bytes__`` raises.
#[pyfunction]
pub(crate) fn as_frames<'py>(frames: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    if frames.is_instance_of::<Burst>() {
        return Ok(frames.clone());
    }
    Ok(match Given::of(frames)? {
        Given::List(list) => list.into_any(),
        Given::Tuple(tuple) => tuple.into_any(),
    })
}
