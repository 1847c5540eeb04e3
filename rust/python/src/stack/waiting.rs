//! Calls that wait without the interpreter, and the addresses that they take and return.

use crate::errors::to_py;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use std::net::{IpAddr, SocketAddr};
use virtnic::stack::Check;

/// A host and a port.
pub(super) type Address = (String, u16);

/// Runs a call without the interpreter; checks Python's signals during waits.
pub(super) fn run<T: Send>(
    py: Python<'_>,
    call: impl FnOnce(Check<'_>) -> virtnic::Result<T> + Send,
) -> PyResult<T> {
    let mut raised = None;
    let result = py.detach(|| {
        call(&mut || {
            let signals = Python::try_attach(|py| py.check_signals());
            let ending = || virtnic::Error::Closed("the interpreter is shutting down".to_owned());
            signals.ok_or_else(ending)?.map_err(|error| {
                raised = Some(error);
                virtnic::Error::Closed("interrupted by a signal".to_owned())
            })
        })
    });
    match raised {
        Some(error) => Err(error),
        None => result.map_err(to_py),
    }
}

/// Parses an IPv4 or IPv6 address.
pub(super) fn parse(host: &str) -> PyResult<IpAddr> {
    // Ignore the zone of a link-local address: a stack has one link.
    let address = host.split('%').next().unwrap_or(host);
    address.parse().map_err(|_| {
        PyValueError::new_err(format!(
            "expected an IP address such as 10.0.2.2 or fe80::2, not {host:?}"
        ))
    })
}

/// An address as Python gets it.
pub(super) fn spell(address: SocketAddr) -> Address {
    (address.ip().to_string(), address.port())
}
