//! `Feature`, and the table of features, from which `docs/features.md` is made.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use virtnic::virtio::catalogue::entry;
use virtnic::virtio::features::{Support, TABLE};
use virtnic::virtio::negotiation::Outcome;

/// The outcome of negotiating a feature bit.
#[pyclass(frozen, get_all, eq, hash, module = "virtnic._native")]
#[derive(PartialEq, Eq, Hash)]
pub(crate) struct Feature {
    /// Name in VIRTIO 1.3, without the prefix: ``MRG_RXBUF``.
    name: String,
    /// Bit number.
    bit: u8,
    /// Whether the device offers it.
    offered: bool,
    /// Whether it was negotiated.
    accepted: bool,
    /// The reason.
    why: String,
}

#[pymethods]
impl Feature {
    fn __repr__(&self) -> String {
        let Self { name, bit, offered, accepted, why } = self;
        let [offered, accepted] = [offered, accepted].map(|&known| word(known));
        format!(
            "Feature(name={name:?}, bit={bit}, offered={offered}, accepted={accepted}, why={why:?})"
        )
    }
}

impl From<Outcome> for Feature {
    fn from(outcome: Outcome) -> Self {
        let Outcome { name, bit, offered, accepted, why } = outcome;
        Self { name, bit, offered, accepted, why }
    }
}

/// Formats a bool as Python does.
fn word(known: bool) -> &'static str {
    if known { "True" } else { "False" }
}

/// Return what is known of each virtio-net feature bit, in order of number.
///
/// ``bit``, ``name``, ``section`` of VIRTIO 1.3; ``support`` (required, accepted, on request,
/// unsupported) and ``why``; ``about``: a description; ``since``: the oldest QEMU of 5.2, 7.2, 10.0
/// and 11.1 that offers it, or None, with which ``netdev`` and ``properties`` of
/// ``virtio-net-pci``; ``argument``: what controls it in virtnic; ``tests`` that cover it.
#[pyfunction]
pub(crate) fn features_table(py: Python<'_>) -> PyResult<Vec<Bound<'_, PyDict>>> {
    let row = |feature: &virtnic::virtio::features::Feature| {
        let (support, why) = match feature.support {
            Support::Required => ("required", ""),
            Support::Accepted => ("accepted", ""),
            Support::OnRequest(why) => ("on request", why),
            Support::Unsupported(why) => ("unsupported", why),
        };
        let row = PyDict::new(py);
        row.set_item("bit", feature.bit)?;
        row.set_item("name", feature.name)?;
        row.set_item("section", feature.section)?;
        row.set_item("support", support)?;
        row.set_item("why", why)?;
        if let Some(entry) = entry(feature.bit) {
            row.set_item("about", entry.about)?;
            row.set_item("since", entry.since)?;
            row.set_item("netdev", entry.netdev)?;
            row.set_item("properties", entry.properties)?;
            row.set_item("argument", entry.argument)?;
            row.set_item("tests", entry.tests.to_vec())?;
        }
        Ok(row)
    };
    TABLE.iter().map(row).collect()
}

/// The error of a name that is none.
pub(crate) fn unknown(name: &str) -> PyErr {
    PyValueError::new_err(format!(
        "there is no virtio-net feature {name:?}; names are those of VIRTIO 1.3, such as MRG_RXBUF"
    ))
}
