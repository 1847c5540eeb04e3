//! The core logs to stderr, from the level set by Python. It does not use Python's logging, which
//! would have to be called with a queue's lock held.

use log::{LevelFilter, Log, Metadata, Record};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

struct Stderr;

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("virtnic")
    }
    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            eprintln!("{}: {}: {}", record.target(), record.level(), record.args());
        }
    }
    fn flush(&self) {}
}

/// Set the lowest level (off, error, warn, info, debug, trace) that the core logs to stderr.
#[pyfunction]
pub(crate) fn set_log_level(level: &str) -> PyResult<()> {
    let Ok(filter) = level.parse::<LevelFilter>() else {
        return Err(PyValueError::new_err(format!(
            "the log level must be off, error, warn, info, debug or trace, not {level:?}"
        )));
    };
    // An error means that it is already set.
    let _ = log::set_logger(&Stderr);
    log::set_max_level(filter);
    Ok(())
}
