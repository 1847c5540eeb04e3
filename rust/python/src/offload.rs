//! `Offload` and `Offloads`: offload metadata of frames.

use crate::sequence;
use crate::views::{Flat, conceal, expose};
use pyo3::exceptions::{PyIndexError, PyTypeError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyList, PySlice};
use std::ffi::c_int;
use virtnic::net::{Offload as Header, segmentation_name};

/// The offload metadata of a frame: its checksum and its segmentation.
///
/// The fields of ``virtio_net_hdr`` (VIRTIO 1.3, section 5.1.6). True if any of them is set.
#[pyclass(frozen, eq, hash, from_py_object, module = "virtnic._native")]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Offload(pub(crate) Header);

/// A 16-bit number.
fn word(name: &str, value: i64) -> PyResult<u16> {
    u16::try_from(value)
        .map_err(|_| PyValueError::new_err(format!("{name} must be 0 to 65535, not {value}")))
}

#[pymethods]
impl Offload {
    #[new]
    #[pyo3(signature = (*, checksum = None, checksum_start = 0, checksum_offset = 0,
                        segmentation = None, segment_size = 0, header_length = 0, ecn = false))]
    fn new(
        checksum: Option<&str>,
        checksum_start: i64,
        checksum_offset: i64,
        segmentation: Option<&str>,
        segment_size: i64,
        header_length: i64,
        ecn: bool,
    ) -> PyResult<Self> {
        let flags = match checksum {
            None => 0,
            Some("needed") => Header::NEEDS_CSUM,
            Some("valid") => Header::DATA_VALID,
            Some(other) => {
                return Err(PyValueError::new_err(format!(
                    "checksum must be None, 'needed' or 'valid', not {other:?}"
                )));
            }
        };
        let types = [Header::TCPV4, Header::TCPV6, Header::UDP, Header::UDP_L4];
        let gso_type = match segmentation {
            None => Header::GSO_NONE,
            Some(name) => {
                let known = types.into_iter().find(|&gso| segmentation_name(gso) == Some(name));
                known.ok_or_else(|| {
                    PyValueError::new_err(format!(
                        "segmentation must be None, 'tcp4', 'tcp6', 'udp' or 'udp_l4', not {name:?}"
                    ))
                })?
            }
        };
        Ok(Self(Header {
            flags,
            gso_type: gso_type | if ecn { Header::ECN } else { 0 },
            hdr_len: word("header_length", header_length)?,
            gso_size: word("segment_size", segment_size)?,
            csum_start: word("checksum_start", checksum_start)?,
            csum_offset: word("checksum_offset", checksum_offset)?,
        }))
    }

    /// ``"needed"``: not calculated yet; the field holds the sum of the pseudo-header.
    ///
    /// ``"valid"``: verified by the device; ignored on transmission.
    #[getter]
    fn checksum(&self) -> Option<&'static str> {
        if self.0.needs_checksum() {
            Some("needed")
        } else if self.0.flags & Header::DATA_VALID != 0 {
            Some("valid")
        } else {
            None
        }
    }
    /// Where the checksummed bytes start: the transport header (0 unless needed).
    #[getter]
    fn checksum_start(&self) -> u16 {
        if self.0.needs_checksum() { self.0.csum_start } else { 0 }
    }
    /// Where the checksum is stored, from there: 16 for TCP, 6 for UDP (0 unless needed).
    #[getter]
    fn checksum_offset(&self) -> u16 {
        if self.0.needs_checksum() { self.0.csum_offset } else { 0 }
    }
    /// How the frame is segmented: TCP segments, IP fragments (``udp``) or UDP datagrams.
    ///
    /// ``unknown`` is a value that VIRTIO 1.3 does not define.
    #[getter]
    fn segmentation(&self) -> Option<&'static str> {
        match self.0.gso_type & !Header::ECN {
            Header::GSO_NONE => None,
            gso_type => Some(segmentation_name(gso_type).unwrap_or("unknown")),
        }
    }
    /// Payload bytes per segment.
    #[getter]
    fn segment_size(&self) -> u16 {
        self.0.gso_size
    }
    /// Length in bytes of all headers; 0 if not given. Only a hint on reception.
    #[getter]
    fn header_length(&self) -> u16 {
        self.0.hdr_len
    }
    /// Whether the TCP segment has CWR set (ECN), which only the first segment keeps.
    #[getter]
    fn ecn(&self) -> bool {
        self.0.gso_type & Header::ECN != 0
    }
    /// How many segments the device coalesced into this frame (RSC); 0 if it did not.
    #[getter]
    fn coalesced_segments(&self) -> u16 {
        if self.coalesced() { self.0.csum_start } else { 0 }
    }
    /// How many of them were duplicate acknowledgements.
    #[getter]
    fn duplicate_acks(&self) -> u16 {
        if self.coalesced() { self.0.csum_offset } else { 0 }
    }

    fn __bool__(&self) -> bool {
        self.0 != Header::NONE
    }

    fn __repr__(&self) -> String {
        let mut words = Vec::new();
        let mut add = |name: &str, value: String| words.push(format!("{name}={value}"));
        if let Some(checksum) = self.checksum() {
            add("checksum", format!("'{checksum}'"));
        }
        if self.0.needs_checksum() {
            add("checksum_start", self.0.csum_start.to_string());
            add("checksum_offset", self.0.csum_offset.to_string());
        }
        if let Some(segmentation) = self.segmentation() {
            add("segmentation", format!("'{segmentation}'"));
            add("segment_size", self.0.gso_size.to_string());
        }
        if self.0.hdr_len != 0 {
            add("header_length", self.0.hdr_len.to_string());
        }
        if self.ecn() {
            add("ecn", "True".to_owned());
        }
        if self.coalesced() {
            add("coalesced_segments", self.0.csum_start.to_string());
            add("duplicate_acks", self.0.csum_offset.to_string());
        }
        format!("Offload({})", words.join(", "))
    }
}

impl Offload {
    fn coalesced(&self) -> bool {
        self.0.flags & Header::RSC_INFO != 0
    }
}

/// The offload metadata of each frame of a burst: a snapshot.
///
/// ``numpy.asarray(burst.offload)`` is a structured array whose fields are those of
/// ``virtio_net_hdr``: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset.
#[pyclass(frozen, sequence, module = "virtnic._native")]
pub(crate) struct Offloads(pub(crate) Box<[Header]>);

#[pymethods]
impl Offloads {
    fn __len__(&self) -> usize {
        self.0.len()
    }

    fn __getitem__<'py>(&self, index: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let py = index.py();
        if let Ok(slice) = index.cast::<PySlice>() {
            let slice = slice.indices(self.0.len() as isize)?;
            let list = PyList::empty(py);
            let mut at = slice.start;
            for _ in 0..slice.slicelength {
                if let Some(&header) = usize::try_from(at).ok().and_then(|at| self.0.get(at)) {
                    list.append(Offload(header))?;
                }
                at += slice.step;
            }
            return Ok(list.into_any());
        }
        let Ok(at) = index.extract::<isize>() else {
            return Err(PyTypeError::new_err(format!(
                "indices are integers or slices, not {}",
                index.get_type().name()?
            )));
        };
        let from_front = if at < 0 { at + self.0.len() as isize } else { at };
        match usize::try_from(from_front).ok().and_then(|at| self.0.get(at)) {
            Some(&header) => Ok(Bound::new(py, Offload(header))?.into_any()),
            None => Err(PyIndexError::new_err(format!("frame {at} of {}", self.0.len()))),
        }
    }

    fn __iter__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        sequence::walk(slf.as_any(), 1)
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

    fn __repr__(&self) -> String {
        let busy = self.0.iter().filter(|&&header| header != Header::NONE).count();
        format!("<virtnic.Offloads: of {} frames, {busy} with offloads>", self.0.len())
    }

    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let headers = &slf.get().0;
        let flat = Flat {
            start: headers.as_ptr().cast_mut().cast(),
            items: headers.len(),
            item_size: size_of::<Header>(),
            format: c"T{B:flags:B:gso_type:H:hdr_len:H:gso_size:H:csum_start:H:csum_offset:}",
            read_only: true,
        };
        // SAFETY: the headers are never changed, and live as long as the object.
        unsafe { expose(slf.into_any(), view, flags, &flat) }
    }

    unsafe fn __releasebuffer__(&self, view: *mut ffi::Py_buffer) {
        // SAFETY: Python releases each view that `__getbuffer__` filled once.
        unsafe { conceal(view) }
    }
}

/// An `offload=` argument.
pub(crate) enum Says {
    /// The same for all frames.
    All(Header),
    /// One for each.
    Each(Box<[Header]>),
}

impl Says {
    /// Reads `offload=` for `count` frames; with `more`, others of unknown kind follow.
    pub(crate) fn of(offload: &Bound<'_, PyAny>, count: usize, more: bool) -> PyResult<Self> {
        if let Ok(one) = offload.cast::<Offload>() {
            return Ok(Self::All(one.get().0));
        }
        let each: Box<[Header]> = if let Ok(many) = offload.cast::<Offloads>() {
            many.get().0.clone()
        } else {
            let wrong = |item: &Bound<'_, PyAny>| {
                PyTypeError::new_err(format!(
                    "offload must be an Offload, one or None for each frame, or a burst's offload; not {}",
                    item.get_type().name().map_or_else(|_| "?".to_owned(), |name| name.to_string())
                ))
            };
            let items = offload.try_iter().map_err(|_| wrong(offload))?;
            items
                .take(count + 1) // it may be endless
                .map(|item| {
                    let item = item?;
                    let one: Option<Offload> = item.extract().map_err(|_| wrong(&item))?;
                    Ok(one.map_or(Header::NONE, |one| one.0))
                })
                .collect::<PyResult<_>>()?
        };
        if each.len() != count && !(more && each.len() > count) {
            return Err(PyValueError::new_err(format!(
                "{count} frames need {count} offloads, or one for all; not {}",
                if each.len() > count { "more".to_owned() } else { each.len().to_string() }
            )));
        }
        Ok(Self::Each(each))
    }

    /// That of one frame.
    pub(crate) fn at(&self, index: usize) -> Header {
        match self {
            Self::All(one) => *one,
            Self::Each(each) => each.get(index).copied().unwrap_or_default(),
        }
    }
}
