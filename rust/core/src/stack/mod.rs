//! A TCP/IP stack (smoltcp) on a port: DHCP, ARP and ICMP echo over IPv4; and [`host`], with sockets.
//!
//! A [`Stack`] has no thread. While a call waits for its result, it also answers ARP and echo requests
//! and renews the lease. Between calls, frames wait in the receive ring; [`Stack::poll`] handles them.

mod address;
mod arp;
mod device;
mod dhcp;
mod echo;
pub mod host;
mod link;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod vlan;

pub use address::{Cidr, Settings, parse_ipv4};
pub use dhcp::Lease;
pub use link::{Frames, Link};

use crate::net::{Mac, Wake};
use crate::{Error, Result};
use device::{BURST, Device};
use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A waiting call checks for signals this often.
const SLICE: Duration = Duration::from_millis(50);
/// Time between two attempts to send on a full link.
const RETRY: Duration = Duration::from_micros(100);

/// Called at least every 50 ms, and after a signal, while a call waits. The call returns its error.
pub type Check<'a> = &'a mut dyn FnMut() -> Result<()>;

/// A TCP/IP stack with one link.
pub struct Stack<L> {
    device: Device<L>,
    interface: Interface,
    sockets: SocketSet<'static>,
    settings: Arc<Settings>,
    /// The zero of smoltcp's clock.
    epoch: Instant,
    /// The identifier of our echo requests.
    ident: u16,
    /// The request of [`Self::arp`].
    query: Option<arp::Query>,
    dhcp: Option<dhcp::Client>,
}

/// A random number: the hash of nothing with random keys.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

impl<L: Link> Stack<L> {
    /// Creates a stack without an address.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the link's MAC address is not a unicast address.
    pub fn new(link: L) -> Result<Self> {
        let address = check_mac(link.mac())?;
        let mut device = Device::new(link);
        let mut config = Config::new(HardwareAddress::Ethernet(address));
        config.random_seed = random();
        let interface = Interface::new(config, &mut device, smoltcp::time::Instant::ZERO);
        Ok(Self {
            device,
            interface,
            sockets: SocketSet::new(Vec::new()),
            settings: Arc::default(),
            epoch: Instant::now(),
            ident: random() as u16,
            query: None,
            dhcp: None,
        })
    }

    /// The link below the stack.
    pub fn link(&self) -> &L {
        &self.device.link
    }

    /// The current address and gateway.
    pub fn settings(&self) -> &Arc<Settings> {
        &self.settings
    }

    /// Sets the address and the gateway, and ends the DHCP lease.
    ///
    /// # Errors
    /// [`Error::Invalid`] for addresses that no host can have, and for a gateway outside of the
    /// network.
    pub fn configure(&mut self, address: Cidr, gateway: Option<Ipv4Addr>) -> Result<()> {
        address.check()?;
        if let Some(gateway) = gateway {
            let why = if gateway == address.address {
                "is the stack's own address"
            } else if !address.contains(gateway) {
                "is outside of the network"
            } else if !address::is_unicast(gateway) || address.reserves(gateway) {
                "is not the address of a host"
            } else {
                ""
            };
            if !why.is_empty() {
                return Err(Error::Invalid(format!(
                    "the gateway {gateway} {why}; it must be another host in {address}"
                )));
            }
        }
        self.end_lease();
        self.apply(Some(address), gateway);
        Ok(())
    }

    /// Handles received frames until the timeout (`None`: forever; zero: those that are there now).
    /// Returns how many were received.
    ///
    /// # Errors
    /// Those of the link, and what `check` returns.
    pub fn poll(&mut self, timeout: Option<Duration>, check: Check) -> Result<u64> {
        let mut frames = 0;
        self.wait_for(deadline(timeout), check, |_, received| {
            frames += received as u64;
            Ok(None::<()>)
        })?;
        Ok(frames)
    }

    /// Applies checked addresses.
    fn apply(&mut self, address: Option<Cidr>, gateway: Option<Ipv4Addr>) {
        self.interface.update_ip_addrs(|list| {
            list.clear();
            if let Some(Cidr { address, prefix }) = address {
                // Cannot fail: the list is empty.
                let _ = list.push(IpCidr::new(address.into(), prefix));
            }
        });
        let routes = self.interface.routes_mut();
        routes.remove_default_ipv4_route();
        if let Some(gateway) = gateway
            && let Err(full) = routes.add_default_ipv4_route(gateway)
        {
            log::warn!("the gateway {gateway} cannot be used: {full}");
        }
        self.settings.set(address, gateway);
    }

    fn now(&self) -> smoltcp::time::Instant {
        let micros = self.epoch.elapsed().as_micros();
        smoltcp::time::Instant::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
    }

    /// Receives and sends one burst. Returns the number of received frames.
    fn turn(&mut self) -> Result<usize> {
        let (query, dhcp) = (&mut self.query, &mut self.dhcp);
        let received = self.device.fill(|frame| {
            if let Some(query) = query {
                query.read(frame);
            }
            if let Some(client) = dhcp {
                client.read(frame);
            }
        })?;
        if let Some(query) = &mut self.query {
            query.stamp(self.device.arrived);
        }
        let now = self.now();
        self.interface.poll(now, &mut self.device, &mut self.sockets);
        self.device.flush()?;
        self.follow_lease();
        Ok(received)
    }

    /// Handles frames until `done`, which is called after each turn with the number of received
    /// frames, returns a value. `None` after the deadline.
    fn wait_for<T>(
        &mut self,
        deadline: Option<Instant>,
        check: Check,
        mut done: impl FnMut(&mut Self, usize) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        let mut checked = Instant::now();
        loop {
            let received = self.turn()?;
            if let Some(found) = done(self, received)? {
                return Ok(Some(found));
            }
            let now = Instant::now();
            if deadline.is_some_and(|deadline| now >= deadline) {
                return Ok(None);
            }
            if now.duration_since(checked) >= SLICE {
                check()?;
                checked = now;
            }
            if self.device.stuck() {
                // The device makes room without notification.
                std::thread::sleep(RETRY);
                continue;
            }
            if received == BURST || self.device.behind() {
                continue;
            }
            let mut pause = SLICE - now.duration_since(checked).min(SLICE);
            if let Some(deadline) = deadline {
                pause = pause.min(deadline.duration_since(now));
            }
            let clock = self.now();
            if let Some(delay) = self.interface.poll_delay(clock, &self.sockets) {
                pause = pause.min(delay.into());
            }
            if !pause.is_zero() && self.device.link.wait(Some(pause))? == Wake::Signal {
                check()?;
                checked = Instant::now();
            }
        }
    }

    /// The stack's address, for the call `what`.
    fn own(&self, what: &str) -> Result<Cidr> {
        self.settings.address().ok_or_else(|| no_address(what))
    }
}

/// The error of the call `what` if the stack has no address.
fn no_address(what: &str) -> Error {
    Error::Invalid(format!(
        "{what} needs an address and the stack has none; call dhcp() or configure() first"
    ))
}

/// Checks that a host can have this MAC address.
fn check_mac(mac: Mac) -> Result<EthernetAddress> {
    let address = EthernetAddress(mac.0);
    if address.is_unicast() && mac.0 != [0; 6] {
        return Ok(address);
    }
    Err(Error::Invalid(format!(
        "the port's MAC address {mac} is not a unicast address; give the device another (mac=)"
    )))
}

/// The end of a wait; `None`: never.
fn deadline(timeout: Option<Duration>) -> Option<Instant> {
    timeout.and_then(|timeout| Instant::now().checked_add(timeout))
}

/// A timeout, for messages.
fn spell(timeout: Option<Duration>) -> String {
    timeout.map_or_else(|| "any time".to_owned(), |timeout| format!("{} s", timeout.as_secs_f64()))
}

impl<L> std::fmt::Debug for Stack<L> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stack").field("settings", &self.settings).finish_non_exhaustive()
    }
}
