//! `Stack`.

use crate::answers::{ArpReply, Lease, PingReply};
use crate::errors::to_py;
use crate::port::NetPort;
use crate::time::span;
use pyo3::exceptions::{PyTimeoutError, PyValueError};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use std::ops::Deref;
use std::sync::{Arc, Mutex, TryLockError};
use virtnic::stack::{Cidr, Settings, parse_ipv4};

/// The port, kept alive by the stack.
struct Held(Py<NetPort>);

impl Deref for Held {
    type Target = virtnic::net::Port;
    fn deref(&self) -> &Self::Target {
        self.0.get().core()
    }
}

/// A TCP/IP stack (smoltcp) on top of a port: DHCP, ARP, ICMP echo.
#[pyclass(frozen, module = "virtnic._native")]
pub(crate) struct Stack {
    stack: Mutex<virtnic::stack::Stack<Held>>,
    settings: Arc<Settings>,
}

impl Stack {
    /// Runs a call of the stack without the interpreter; checks for signals regularly.
    fn call<T: Send>(
        &self,
        py: Python<'_>,
        call: impl FnOnce(
            &mut virtnic::stack::Stack<Held>,
            virtnic::stack::Check<'_>,
        ) -> virtnic::Result<T>
        + Send,
    ) -> PyResult<T> {
        let mut raised = None;
        let result = py.detach(|| {
            let mut stack = match self.stack.try_lock() {
                Ok(stack) => stack,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => {
                    return Err(virtnic::Error::Busy(
                        "another call of this stack is running, and a stack runs one at a time"
                            .to_owned(),
                    ));
                }
            };
            call(&mut stack, &mut || {
                let signals = Python::try_attach(|py| py.check_signals());
                let ending = || virtnic::Error::Closed("the interpreter is ending".to_owned());
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
}

/// A 16-bit number.
fn number(what: &str, value: i64) -> PyResult<u16> {
    u16::try_from(value)
        .map_err(|_| PyValueError::new_err(format!("{what} must be 0 to 65535, not {value}")))
}

#[pymethods]
impl Stack {
    #[new]
    fn new(port: Py<NetPort>) -> PyResult<Self> {
        let stack = virtnic::stack::Stack::new(Held(port)).map_err(to_py)?;
        let settings = stack.settings().clone();
        Ok(Self { stack: Mutex::new(stack), settings })
    }

    /// The address with prefix length, ``10.0.2.15/24``.
    #[getter]
    fn address(&self) -> Option<String> {
        self.settings.address().map(|address| address.to_string())
    }
    /// The default gateway.
    #[getter]
    fn gateway(&self) -> Option<String> {
        self.settings.gateway().map(|gateway| gateway.to_string())
    }

    /// Set the address (with prefix length) and the gateway. Raises ValueError.
    #[pyo3(signature = (address, gateway = None))]
    fn configure(&self, py: Python<'_>, address: &str, gateway: Option<&str>) -> PyResult<()> {
        let address: Cidr = address.parse().map_err(to_py)?;
        let gateway = gateway.map(parse_ipv4).transpose().map_err(to_py)?;
        self.call(py, |stack, _| stack.configure(address, gateway))
    }

    /// Obtain a lease by DHCP and use it.
    ///
    /// Raises TimeoutError if no server answers within ``timeout`` seconds.
    #[pyo3(signature = (timeout = Some(10.0)), text_signature = "($self, timeout=10.0)")]
    fn dhcp(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Lease> {
        let timeout = span(timeout)?;
        self.call(py, |stack, check| stack.dhcp(timeout, check)).map(Lease::from)
    }

    /// Resolve an IPv4 address.
    ///
    /// Raises TimeoutError if there is no answer within ``timeout`` seconds.
    #[pyo3(signature = (address, timeout = Some(1.0)), text_signature = "($self, address, timeout=1.0)")]
    fn arp(&self, py: Python<'_>, address: &str, timeout: Option<f64>) -> PyResult<ArpReply> {
        let (address, timeout) = (parse_ipv4(address).map_err(to_py)?, span(timeout)?);
        let (mac, took) = self.call(py, |stack, check| stack.arp(address, timeout, check))?;
        Ok(ArpReply { mac: mac.to_string(), seconds: took.as_secs_f64() })
    }

    /// Send one ICMP echo request with ``payload`` bytes and wait for the reply.
    ///
    /// Raises TimeoutError if none comes within ``timeout`` seconds.
    #[pyo3(signature = (address, sequence = 0, payload = 56, timeout = Some(1.0)),
           text_signature = "($self, address, sequence=0, payload=56, timeout=1.0)")]
    fn ping(
        &self,
        py: Python<'_>,
        address: &str,
        sequence: i64,
        payload: i64,
        timeout: Option<f64>,
    ) -> PyResult<PingReply> {
        let (to, timeout) = (parse_ipv4(address).map_err(to_py)?, span(timeout)?);
        let sequence = number("a sequence number", sequence)?;
        let payload = number("a payload's length", payload)?.into();
        let took =
            self.call(py, |stack, check| stack.ping(to, sequence, payload, timeout, check))?;
        match took {
            Some(took) => Ok(PingReply { sequence, seconds: took.as_secs_f64() }),
            None => {
                let seconds = timeout.map_or(0.0, |timeout| timeout.as_secs_f64());
                let why = format!("no echo reply from {address} within {seconds} s");
                Err(PyTimeoutError::new_err(why))
            }
        }
    }

    /// Answer ARP and echo requests until the timeout; return the number of frames handled.
    #[pyo3(signature = (timeout = Some(0.0)), text_signature = "($self, timeout=0.0)")]
    fn poll(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<u64> {
        let timeout = span(timeout)?;
        self.call(py, |stack, check| stack.poll(timeout, check))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        // While a call runs, the stack is in use and so not garbage.
        match self.stack.try_lock() {
            Ok(stack) => visit.call(&stack.link().0),
            Err(_) => Ok(()),
        }
    }
}
