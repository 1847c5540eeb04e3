//! `NetStack`, `NetSocket`, `StackWire`, `Connection`.

use crate::answers::{ArpReply, Lease, PingReply};
use crate::errors::to_py;
use crate::given::Given;
use crate::port::NetPort;
use crate::queue::NetQueue;
use crate::time::span;
use crate::views::Bytes;
use pyo3::exceptions::{PyTimeoutError, PyTypeError, PyValueError};
use pyo3::ffi;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use virtnic::net::Mac;
use virtnic::stack::{
    Area, Congestion, Fed, Half, Host, HostOptions, Network, Options, Packets, PairWire, Socket,
    SocketCounters, Transport, Wire,
};
use virtnic::stack::{Check, parse_ipv4};

type Address = (String, u16);

/// Runs a call without the interpreter; checks Python's signals during waits.
fn run<T: Send>(
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

fn parse(host: &str) -> PyResult<IpAddr> {
    // Ignore the zone of a link-local address: a stack has one link.
    let address = host.split('%').next().unwrap_or(host);
    address.parse().map_err(|_| {
        PyValueError::new_err(format!(
            "expected an IP address such as 10.0.2.2 or fe80::2, not {host:?}"
        ))
    })
}

fn spell(address: SocketAddr) -> Address {
    (address.ip().to_string(), address.port())
}

/// A wire whose frames Python moves.
#[pyclass(frozen, module = "virtnic._native")]
pub(crate) struct StackWire(Arc<Fed>);

/// The host's reference to the wire.
struct Shared(Arc<Fed>);

impl Wire for Shared {
    fn mac(&self) -> Mac {
        self.0.mac()
    }
    fn mtu(&self) -> u16 {
        self.0.mtu()
    }
    fn abilities(&self) -> virtnic::stack::Abilities {
        self.0.abilities()
    }
    fn recv(&self, max: usize, packets: &mut Packets) -> virtnic::Result<usize> {
        self.0.recv(max, packets)
    }
    fn wait(&self, timeout: Option<Duration>) -> virtnic::Result<virtnic::net::Wake> {
        self.0.wait(timeout)
    }
    fn wake(&self) {
        self.0.wake();
    }
    fn send(&self, packets: &Packets) -> virtnic::Result<usize> {
        self.0.send(packets)
    }
    fn end(&self) {
        self.0.end();
    }
}

#[pymethods]
impl StackWire {
    #[new]
    fn new(mac: [u8; 6], mtu: u16) -> Self {
        Self(Arc::new(Fed::new(Mac(mac), mtu)))
    }
    /// Pass received frames to the stack; return how many it took.
    fn feed(&self, frames: &Bound<'_, PyAny>) -> PyResult<usize> {
        let given = Given::of(frames)?;
        let mut taken = 0;
        for index in 0..given.len() {
            let bytes = Bytes::of(&given.item(index)?)?.to_vec();
            taken += usize::from(self.0.feed(&bytes));
        }
        Ok(taken)
    }
    /// Return the sent frames, waiting for the first; None after the stack has ended.
    fn take<'py>(
        &self,
        py: Python<'py>,
        timeout: f64,
    ) -> PyResult<Option<Vec<Bound<'py, PyBytes>>>> {
        let timeout = span(Some(timeout))?.unwrap_or(Duration::from_secs(3600));
        let frames = py.detach(|| self.0.take(timeout));
        Ok(frames.map(|all| all.iter().map(|frame| PyBytes::new(py, frame)).collect()))
    }
    /// Fail the wire: no more frames are moved.
    fn fail(&self, why: String) {
        self.0.fail(virtnic::Error::Closed(why));
    }
    /// Whether the stack was closed.
    #[getter]
    fn ended(&self) -> bool {
        self.0.is_over()
    }
}

/// A TCP/IP stack with its own thread, on a port, a queue or a StackWire.
#[pyclass(frozen, subclass, module = "virtnic._native")]
pub(crate) struct NetStack {
    host: Host,
    /// The port, queue or wire below it, kept alive.
    port: Py<PyAny>,
}

impl Drop for NetStack {
    fn drop(&mut self) {
        // None if the interpreter is shutting down: then nothing needs to be closed.
        Python::try_attach(|py| py.detach(|| self.host.close()));
    }
}

fn counted<'py>(py: Python<'py>, counters: &SocketCounters) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (name, value) in counters.fields() {
        dict.set_item(name, value)?;
    }
    dict.set_item("rtt", counters.rtt.map(|rtt| rtt.as_secs_f64()))?;
    Ok(dict)
}

/// One socket of a stack, as ``connections`` lists it.
#[pyclass(frozen, get_all, module = "virtnic._native")]
pub(crate) struct Connection {
    /// ``tcp`` or ``udp``.
    protocol: &'static str,
    /// The state: ``established``, ``listen`` and so on.
    state: &'static str,
    /// The local address and port; None if it is not bound.
    local: Option<Address>,
    /// The peer's address and port; None if it is not connected.
    remote: Option<Address>,
    /// Bytes that the program has not received yet; connections that it has not accepted yet.
    receive_queue: usize,
    /// Bytes that the peer has not acknowledged yet.
    send_queue: usize,
    /// The counters, as ``stats`` of the socket.
    stats: Py<PyDict>,
}

#[pymethods]
impl Connection {
    fn __repr__(&self) -> String {
        let end = |address: &Option<Address>| {
            address.as_ref().map_or_else(
                || "*".to_owned(),
                |(host, port)| {
                    if host.contains(':') {
                        format!("[{host}]:{port}")
                    } else {
                        format!("{host}:{port}")
                    }
                },
            )
        };
        let (local, remote) = (end(&self.local), end(&self.remote));
        format!("<{} {} {local} {remote}>", self.protocol, self.state)
    }
}

/// A 16-bit number.
fn number(what: &str, value: i64) -> PyResult<u16> {
    u16::try_from(value)
        .map_err(|_| PyValueError::new_err(format!("{what} must be 0 to 65535, not {value}")))
}

#[pymethods]
impl NetStack {
    #[new]
    #[pyo3(signature = (port, *, ipv6 = true, mtu = None, **_kwargs))]
    fn new(
        port: &Bound<'_, PyAny>,
        ipv6: bool,
        mtu: Option<i64>,
        _kwargs: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Self> {
        let mtu = mtu.map(|mtu| number("an MTU", mtu)).transpose()?;
        let wire: Box<dyn Wire> = if let Ok(port) = port.cast::<NetPort>() {
            Box::new(PairWire::new(port.get().shared(), 0).map_err(to_py)?)
        } else if let Ok(queue) = port.cast::<NetQueue>() {
            let queue = queue.get();
            let port = queue.owner().get().shared();
            Box::new(PairWire::new(port, queue.number()).map_err(to_py)?)
        } else if let Ok(wire) = port.cast::<StackWire>() {
            Box::new(Shared(wire.get().0.clone()))
        } else {
            return Err(PyTypeError::new_err(format!(
                "a stack needs a port, a queue or a StackWire, not {}",
                port.get_type().name()?
            )));
        };
        let host = Host::new(wire, HostOptions { ipv6, mtu }).map_err(to_py)?;
        Ok(Self { host, port: port.clone().unbind() })
    }

    /// Reset the connections, close the sockets, end the thread.
    fn close(&self, py: Python<'_>) {
        py.detach(|| self.host.close());
    }
    /// Whether it was closed.
    #[getter]
    fn closed(&self) -> bool {
        self.host.is_closed()
    }
    /// All addresses with their prefixes: ``10.0.2.15/24``, ``fe80::…/64``.
    #[getter]
    fn addresses(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        let networks = py.detach(|| self.host.networks()).map_err(to_py)?;
        Ok(networks.iter().map(ToString::to_string).collect())
    }
    /// The default gateways, IPv4 first.
    #[getter]
    fn gateways(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        let gateways = py.detach(|| self.host.gateways()).map_err(to_py)?;
        Ok(gateways.iter().map(ToString::to_string).collect())
    }
    /// The name servers of the DHCP lease.
    #[getter]
    fn name_servers(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        let servers = py.detach(|| self.host.name_servers()).map_err(to_py)?;
        Ok(servers.iter().map(ToString::to_string).collect())
    }

    /// Add an address with its prefix, and set the default gateway of its family.
    ///
    /// Raises ValueError; then nothing has changed.
    #[pyo3(signature = (address, gateway = None))]
    fn configure(&self, py: Python<'_>, address: &str, gateway: Option<&str>) -> PyResult<()> {
        let network: Network = address.parse().map_err(to_py)?;
        let gateway = gateway.map(parse).transpose()?;
        py.detach(|| self.host.configure(network, gateway)).map_err(to_py)
    }

    /// Remove an address, and the gateway that only its network reaches.
    ///
    /// The prefix length may be omitted. Removing the address of the DHCP lease ends the lease. Sockets that are bound to the address
    /// remain, but receive nothing more. Raises ValueError if it is none of the stack's addresses.
    fn remove_address(&self, py: Python<'_>, address: &str) -> PyResult<()> {
        let address = parse(address.split('/').next().unwrap_or(address))?;
        py.detach(|| self.host.remove_address(address)).map_err(to_py)
    }

    /// Get a lease by DHCP, use it, and keep renewing it.
    ///
    /// It takes the place of an earlier lease; addresses that were configured remain, and so does
    /// their gateway. Raises TimeoutError without a lease within ``timeout`` seconds.
    #[pyo3(signature = (timeout = Some(10.0)), text_signature = "($self, timeout=10.0)")]
    fn dhcp(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Lease> {
        let timeout = span(timeout)?;
        run(py, |check| self.host.dhcp(timeout, check)).map(Lease::from)
    }

    /// Wait for an IPv6 address of global scope from a router; return it with its prefix.
    ///
    /// Raises TimeoutError without one within ``timeout`` seconds.
    #[pyo3(signature = (timeout = Some(10.0)), text_signature = "($self, timeout=10.0)")]
    fn wait_ipv6(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<String> {
        let timeout = span(timeout)?;
        run(py, |check| self.host.await_global_v6(timeout, check)).map(|found| found.to_string())
    }

    /// Resolve an IPv4 address.
    ///
    /// Raises TimeoutError without a reply within ``timeout`` seconds.
    #[pyo3(signature = (address, timeout = Some(1.0)), text_signature = "($self, address, timeout=1.0)")]
    fn arp(&self, py: Python<'_>, address: &str, timeout: Option<f64>) -> PyResult<ArpReply> {
        let (address, timeout) = (parse_ipv4(address).map_err(to_py)?, span(timeout)?);
        let (mac, took) = run(py, |check| self.host.arp(address, timeout, check))?;
        Ok(ArpReply { mac: mac.to_string(), seconds: took.as_secs_f64() })
    }

    /// Send one ICMP echo request with ``payload`` bytes, and wait for its reply.
    ///
    /// Raises TimeoutError without a reply within ``timeout`` seconds.
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
        let (to, timeout) = (parse(address)?, span(timeout)?);
        let sequence = number("a sequence number", sequence)?;
        let payload = number("a payload's length", payload)?;
        let took = run(py, |check| self.host.ping(to, sequence, payload.into(), timeout, check))?;
        match took {
            Some(took) => Ok(PingReply { sequence, seconds: took.as_secs_f64() }),
            None => {
                let seconds = timeout.map_or(0.0, |timeout| timeout.as_secs_f64());
                let why = format!("no echo reply from {address} within {seconds} s");
                Err(PyTimeoutError::new_err(why))
            }
        }
    }

    /// Create a socket: TCP or UDP, IPv4 or IPv6.
    #[pyo3(name = "_open")]
    fn open(&self, py: Python<'_>, stream: bool, ipv6: bool) -> PyResult<NetSocket> {
        let transport = if stream { Transport::Stream } else { Transport::Datagram };
        py.detach(|| self.host.socket(transport, ipv6)).map(NetSocket).map_err(to_py)
    }

    /// Return the counters by name.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let counters = py.detach(|| self.host.counters()).map_err(to_py)?;
        let dict = PyDict::new(py);
        for (name, value) in counters.fields() {
            dict.set_item(name, value)?;
        }
        Ok(dict)
    }

    /// Return all sockets, in the order of creation.
    fn connections(&self, py: Python<'_>) -> PyResult<Vec<Connection>> {
        let all = py.detach(|| self.host.connections()).map_err(to_py)?;
        let connection = |one: virtnic::stack::Connection| {
            Ok(Connection {
                protocol: one.protocol,
                state: one.state,
                local: one.local.map(spell),
                remote: one.remote.map(spell),
                receive_queue: one.receive_queue,
                send_queue: one.send_queue,
                stats: counted(py, &one.counters)?.unbind(),
            })
        };
        all.into_iter().map(connection).collect()
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.port)
    }
}

/// One socket of a stack. A ``timeout`` is in seconds; None waits forever, 0 not at all.
#[pyclass(frozen, module = "virtnic._native")]
pub(crate) struct NetSocket(Socket);

/// A writable buffer of a Python object.
struct Writable(Box<ffi::Py_buffer>);

impl Writable {
    fn of(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let mut view = Box::new(ffi::Py_buffer::new());
        let into = &raw mut *view;
        let flags = ffi::PyBUF_WRITABLE;
        // SAFETY: `view` is a fresh Py_buffer at a stable address; we are attached.
        let result = unsafe { ffi::PyObject_GetBuffer(object.as_ptr(), into, flags) };
        if result == 0 { Ok(Self(view)) } else { Err(PyErr::fetch(object.py())) }
    }
    fn area(&self, limit: usize) -> Area {
        let length = usize::try_from(self.0.len).unwrap_or(0);
        let length = if limit == 0 { length } else { length.min(limit) };
        // SAFETY: writable for its length while `self` lives, which is for the whole call.
        unsafe { Area::new(self.0.buf.cast(), length) }
    }
}

impl Drop for Writable {
    fn drop(&mut self) {
        // SAFETY: filled by PyObject_GetBuffer and released once, while we are attached.
        unsafe { ffi::PyBuffer_Release(&raw mut *self.0) };
    }
}

fn readable(bytes: &Bytes) -> Area {
    // SAFETY: readable for its length while `bytes` lives, which is for the whole call; nothing is
    // received into it.
    unsafe { Area::new(bytes.as_ptr().cast_mut(), bytes.len()) }
}

/// A new `bytes` object to receive into.
struct Received<'py> {
    object: *mut ffi::PyObject,
    length: usize,
    py: Python<'py>,
}

impl<'py> Received<'py> {
    fn new(py: Python<'py>, length: usize) -> PyResult<Self> {
        let size = ffi::Py_ssize_t::try_from(length)
            .map_err(|_| PyValueError::new_err("the number of bytes to receive is too large"))?;
        // SAFETY: null requests uninitialized bytes; we are attached.
        let object = unsafe { ffi::PyBytes_FromStringAndSize(std::ptr::null(), size) };
        if object.is_null() { Err(PyErr::fetch(py)) } else { Ok(Self { object, length, py }) }
    }
    fn area(&self) -> Area {
        // SAFETY: the object has that many bytes and is not shared yet.
        unsafe { Area::new(ffi::PyBytes_AsString(self.object).cast(), self.length) }
    }
    fn finish(mut self, length: usize) -> Bound<'py, PyAny> {
        if length < self.length {
            // Another call took some, or the connection ended.
            let mut copy = vec![0; length];
            // SAFETY: the object has more than `length` bytes and is not shared yet.
            unsafe {
                let from = ffi::PyBytes_AsString(self.object).cast::<u8>();
                std::ptr::copy_nonoverlapping(from, copy.as_mut_ptr(), length);
            }
            return PyBytes::new(self.py, &copy).into_any();
        }
        let object = std::mem::replace(&mut self.object, std::ptr::null_mut());
        // SAFETY: our reference to a bytes object.
        unsafe { Bound::from_owned_ptr(self.py, object) }
    }
}

impl Drop for Received<'_> {
    fn drop(&mut self) {
        // SAFETY: null or our reference; we are attached.
        unsafe { ffi::Py_XDECREF(self.object) };
    }
}

/// The value of an option.
fn get(options: &Options, name: &str) -> Option<f64> {
    let flag = |value: bool| f64::from(u8::from(value));
    Some(match name {
        "no_delay" => flag(options.no_delay),
        "keep_alive" => flag(options.keep_alive),
        "keep_idle" => options.keep_idle.as_secs_f64(),
        "keep_interval" => options.keep_interval.as_secs_f64(),
        "keep_count" => options.keep_count.into(),
        "user_timeout" => options.user_timeout.as_secs_f64(),
        "broadcast" => flag(options.broadcast),
        "reuse" => flag(options.reuse),
        "receive_buffer" => options.receive_buffer as f64,
        "send_buffer" => options.send_buffer as f64,
        "hops" => options.hops.into(),
        "multicast_hops" => options.multicast_hops.into(),
        "reset_on_close" => flag(options.reset_on_close),
        "congestion" => match options.congestion {
            Congestion::Cubic => 0.0,
            Congestion::Reno => 1.0,
            Congestion::None => 2.0,
        },
        _ => return None,
    })
}

fn set(options: &mut Options, name: &str, value: f64) {
    let span = Duration::try_from_secs_f64(value).unwrap_or(Duration::from_secs(1));
    match name {
        "no_delay" => options.no_delay = value != 0.0,
        "keep_alive" => options.keep_alive = value != 0.0,
        "keep_idle" => options.keep_idle = span.max(Duration::from_secs(1)),
        "keep_interval" => options.keep_interval = span.max(Duration::from_secs(1)),
        "keep_count" => options.keep_count = (value as u32).clamp(1, 127),
        "user_timeout" if value > 0.0 => options.user_timeout = span,
        "user_timeout" => options.user_timeout = Options::default().user_timeout,
        "broadcast" => options.broadcast = value != 0.0,
        "reuse" => options.reuse = value != 0.0,
        "receive_buffer" => options.receive_buffer = value as usize,
        "send_buffer" => options.send_buffer = value as usize,
        "hops" => options.hops = value as u8,
        "multicast_hops" => options.multicast_hops = value as u8,
        "reset_on_close" => options.reset_on_close = value != 0.0,
        "congestion" => {
            options.congestion = match value as u8 {
                0 => Congestion::Cubic,
                1 => Congestion::Reno,
                _ => Congestion::None,
            }
        }
        _ => {}
    }
}

impl NetSocket {
    /// Waits until something can be received, and allocates bytes for it. Returns also the remaining
    /// timeout.
    fn room<'py>(
        &self,
        py: Python<'py>,
        size: usize,
        timeout: Option<f64>,
    ) -> PyResult<(Received<'py>, Option<Duration>)> {
        let timeout = span(timeout)?;
        let start = Instant::now();
        let available = run(py, |check| self.0.wait_readable(timeout, check))?;
        let left = timeout.map(|timeout| timeout.saturating_sub(start.elapsed()));
        Ok((Received::new(py, available.min(size))?, left))
    }
}

#[pymethods]
impl NetSocket {
    /// Bind to an address and a port; port 0 selects a free one.
    fn bind(&self, py: Python<'_>, host: &str, port: u16) -> PyResult<()> {
        let address = SocketAddr::new(parse(host)?, port);
        py.detach(|| self.0.bind(address)).map_err(to_py)
    }
    /// Listen for connections, of which ``backlog`` can wait to be accepted.
    fn listen(&self, py: Python<'_>, backlog: usize) -> PyResult<()> {
        py.detach(|| self.0.listen(backlog)).map_err(to_py)
    }
    /// Accept a connection; return it and its peer's address.
    #[pyo3(signature = (timeout = None))]
    fn accept(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<(Self, Address)> {
        let timeout = span(timeout)?;
        let (socket, from) = run(py, |check| self.0.accept(timeout, check))?;
        Ok((Self(socket), spell(from)))
    }
    /// Connect to a peer.
    #[pyo3(signature = (host, port, timeout = None))]
    fn connect(&self, py: Python<'_>, host: &str, port: u16, timeout: Option<f64>) -> PyResult<()> {
        let (to, timeout) = (SocketAddr::new(parse(host)?, port), span(timeout)?);
        run(py, |check| self.0.connect(to, timeout, check))
    }
    /// Send at least one of the bytes; return how many.
    #[pyo3(signature = (data, timeout = None))]
    fn send(
        &self,
        py: Python<'_>,
        data: &Bound<'_, PyAny>,
        timeout: Option<f64>,
    ) -> PyResult<usize> {
        let (bytes, timeout) = (Bytes::of(data)?, span(timeout)?);
        let area = readable(&bytes);
        run(py, move |check| self.0.send(area, timeout, check))
    }
    /// Send all bytes.
    #[pyo3(signature = (data, timeout = None))]
    fn send_all(
        &self,
        py: Python<'_>,
        data: &Bound<'_, PyAny>,
        timeout: Option<f64>,
    ) -> PyResult<()> {
        let (bytes, timeout) = (Bytes::of(data)?, span(timeout)?);
        let area = readable(&bytes);
        run(py, move |check| self.0.send_all(area, timeout, check, &mut 0))
    }
    /// Return up to ``size`` bytes; none after the peer has shut down sending.
    #[pyo3(signature = (size, timeout = None, peek = false))]
    fn recv<'py>(
        &self,
        py: Python<'py>,
        size: usize,
        timeout: Option<f64>,
        peek: bool,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (bytes, timeout) = self.room(py, size, timeout)?;
        let area = bytes.area();
        let count = run(py, move |check| self.0.recv(area, peek, timeout, check))?;
        Ok(bytes.finish(count))
    }
    /// Receive up to ``size`` bytes (0: its length) into a buffer; return how many.
    #[pyo3(signature = (buffer, size = 0, timeout = None, peek = false))]
    fn recv_into(
        &self,
        py: Python<'_>,
        buffer: &Bound<'_, PyAny>,
        size: usize,
        timeout: Option<f64>,
        peek: bool,
    ) -> PyResult<usize> {
        let (buffer, timeout) = (Writable::of(buffer)?, span(timeout)?);
        let area = buffer.area(size);
        run(py, move |check| self.0.recv(area, peek, timeout, check))
    }
    /// Send one datagram to an address (None: the connected peer); return its length.
    #[pyo3(signature = (data, address, timeout = None))]
    fn send_to(
        &self,
        py: Python<'_>,
        data: &Bound<'_, PyAny>,
        address: Option<(String, u16)>,
        timeout: Option<f64>,
    ) -> PyResult<usize> {
        let (bytes, timeout) = (Bytes::of(data)?, span(timeout)?);
        let to = match address {
            Some((host, port)) => Some(SocketAddr::new(parse(&host)?, port)),
            None => None,
        };
        let area = readable(&bytes);
        run(py, move |check| self.0.send_to(area, to, timeout, check))
    }
    /// Return one datagram, cut to ``size`` bytes, its whole length, and its sender.
    #[pyo3(signature = (size, timeout = None, peek = false))]
    fn recv_from<'py>(
        &self,
        py: Python<'py>,
        size: usize,
        timeout: Option<f64>,
        peek: bool,
    ) -> PyResult<(Bound<'py, PyAny>, usize, Option<Address>)> {
        let (bytes, timeout) = self.room(py, size, timeout)?;
        let area = bytes.area();
        let (count, whole, from) =
            run(py, move |check| self.0.recv_from(area, peek, timeout, check))?;
        Ok((bytes.finish(count), whole, from.map(spell)))
    }
    /// Receive a datagram into a buffer; return its bytes there, its length, and its sender.
    #[pyo3(signature = (buffer, size = 0, timeout = None, peek = false))]
    fn recv_from_into(
        &self,
        py: Python<'_>,
        buffer: &Bound<'_, PyAny>,
        size: usize,
        timeout: Option<f64>,
        peek: bool,
    ) -> PyResult<(usize, usize, Option<Address>)> {
        let (buffer, timeout) = (Writable::of(buffer)?, span(timeout)?);
        let area = buffer.area(size);
        let (count, whole, from) =
            run(py, move |check| self.0.recv_from(area, peek, timeout, check))?;
        Ok((count, whole, from.map(spell)))
    }
    /// Return how many bytes can be received now; for UDP, the length of the next datagram.
    fn available(&self, py: Python<'_>) -> PyResult<usize> {
        py.detach(|| self.0.available()).map_err(to_py)
    }
    /// Shut down receiving (0), sending (1) or both (2).
    fn shutdown(&self, py: Python<'_>, how: u8) -> PyResult<()> {
        let half = match how {
            0 => Half::Read,
            1 => Half::Write,
            2 => Half::Both,
            other => {
                return Err(PyValueError::new_err(format!(
                    "expected SHUT_RD (0), SHUT_WR (1) or SHUT_RDWR (2), not {other}"
                )));
            }
        };
        py.detach(|| self.0.shutdown(half)).map_err(to_py)
    }
    /// Close the socket.
    fn close(&self, py: Python<'_>) {
        py.detach(|| self.0.close());
    }
    /// Return the local address; None if it is not bound.
    fn local(&self, py: Python<'_>) -> PyResult<Option<Address>> {
        Ok(py.detach(|| self.0.local()).map_err(to_py)?.map(spell))
    }
    /// Return the peer's address.
    fn peer(&self, py: Python<'_>) -> PyResult<Address> {
        Ok(spell(py.detach(|| self.0.peer()).map_err(to_py)?))
    }
    /// Return the value of an option.
    fn option(&self, py: Python<'_>, name: &str) -> PyResult<f64> {
        let options = py.detach(|| self.0.options()).map_err(to_py)?;
        get(&options, name)
            .ok_or_else(|| PyValueError::new_err(format!("there is no option {name:?}")))
    }
    /// Set an option.
    fn set_option(&self, py: Python<'_>, name: &str, value: f64) -> PyResult<()> {
        if get(&Options::default(), name).is_none() {
            return Err(PyValueError::new_err(format!("there is no option {name:?}")));
        }
        py.detach(|| self.0.set_options(|options| set(options, name, value))).map_err(to_py)
    }
    /// Return and clear the pending error number; 0 for none.
    fn take_error(&self, py: Python<'_>) -> PyResult<i32> {
        py.detach(|| self.0.take_error()).map_err(to_py)
    }
    /// Join or leave a multicast group.
    fn membership(&self, py: Python<'_>, group: &str, join: bool) -> PyResult<()> {
        let group = parse(group)?;
        py.detach(|| self.0.membership(group, join)).map_err(to_py)
    }
    /// Return a descriptor to wait on for reading and writing.
    fn fileno(&self, py: Python<'_>) -> PyResult<RawFd> {
        py.detach(|| self.0.descriptor()).map_err(to_py)
    }
    /// Return whether receiving, and whether sending, would return at once.
    fn ready(&self, py: Python<'_>) -> PyResult<(bool, bool)> {
        py.detach(|| self.0.ready()).map_err(to_py)
    }
    /// Return the counters by name.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let counters = py.detach(|| self.0.counters()).map_err(to_py)?;
        counted(py, &counters)
    }
}
