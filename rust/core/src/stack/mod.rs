//! A TCP/IP stack (smoltcp) on top of a port: DHCP, ARP and ICMP echo over IPv4.
//!
//! A [`Stack`] holds smoltcp's interface and its sockets together with the [`Link`] they use.
//! Nothing runs by itself: while a call waits for what it wants, everything else that the stack
//! serves is served too (ARP, echo requests, the renewal of a lease). Between calls the frames
//! wait in the receive ring; [`Stack::poll`] is the call that only serves.

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

use crate::net::Wake;
use crate::{Error, Result};
use device::{BURST, Device};
use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A wait is cut into pieces of this length, to ask whether it shall go on.
const SLICE: Duration = Duration::from_millis(50);
/// With frames that the link has no room for, it is asked again this often.
const RETRY: Duration = Duration::from_micros(100);

/// Asked at least every 50 ms, and when a signal came, while a call waits. An error ends the
/// call, which returns it.
pub type Check<'a> = &'a mut dyn FnMut() -> Result<()>;

/// A TCP/IP stack with one link.
pub struct Stack<L> {
    device: Device<L>,
    interface: Interface,
    sockets: SocketSet<'static>,
    settings: Arc<Settings>,
    /// When smoltcp's clock was 0.
    epoch: Instant,
    /// Tells our echo requests from those of others.
    ident: u16,
    /// The question that [`Self::arp`] waits for an answer to.
    query: Option<arp::Query>,
    dhcp: Option<dhcp::Client>,
}

/// A random number from the system's source, by way of the keys of a hash table.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

impl<L: Link> Stack<L> {
    /// A stack without an address.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the link has no usable MAC address.
    pub fn new(link: L) -> Result<Self> {
        let mac = link.mac();
        let address = EthernetAddress(mac.0);
        if !address.is_unicast() || mac.0 == [0; 6] {
            return Err(Error::Invalid(format!(
                "the port's MAC address {mac} is not that of a host; give the device another (mac=)"
            )));
        }
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

    /// What the stack stands on.
    pub fn link(&self) -> &L {
        &self.device.link
    }

    /// Its address and gateway, as they are at any time.
    pub fn settings(&self) -> &Arc<Settings> {
        &self.settings
    }

    /// Sets the address and the gateway, in place of a lease.
    ///
    /// # Errors
    /// [`Error::Invalid`] for addresses that no host can have, and for a gateway outside of the
    /// address's network.
    pub fn configure(&mut self, address: Cidr, gateway: Option<Ipv4Addr>) -> Result<()> {
        address.check()?;
        if let Some(gateway) = gateway {
            let why = if gateway == address.address {
                "is the stack's own address"
            } else if !address.contains(gateway) {
                "is outside of the network"
            } else if !address::is_unicast(gateway) || address.reserves(gateway) {
                "is no host's address"
            } else {
                ""
            };
            if !why.is_empty() {
                return Err(Error::Invalid(format!(
                    "the gateway {gateway} {why}; expected another host of {address}"
                )));
            }
        }
        self.end_lease();
        self.apply(Some(address), gateway);
        Ok(())
    }

    /// Serves the network until the timeout (`None`: for ever; zero: what is there now); says
    /// how many frames were received.
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

    /// Makes smoltcp and the settings know the addresses, which have been checked.
    fn apply(&mut self, address: Option<Cidr>, gateway: Option<Ipv4Addr>) {
        self.interface.update_ip_addrs(|list| {
            list.clear();
            if let Some(Cidr { address, prefix }) = address {
                // An empty list has room for one.
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

    /// One burst in, one burst out; says how many frames came.
    fn turn(&mut self) -> Result<usize> {
        let (query, dhcp) = (&mut self.query, &mut self.dhcp);
        let received = self.device.fill(|frame| {
            if let Some(query) = query {
                query.look(frame);
            }
            if let Some(client) = dhcp {
                client.look(frame);
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

    /// Serves the network until `done`, which is called after each turn with the number of frames
    /// received in it, has found something; `None` after the deadline.
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
                // Only the device can make room, and it tells nobody when it does.
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

    /// The stack's address.
    fn own(&self, what: &str) -> Result<Cidr> {
        self.settings.address().ok_or_else(|| {
            Error::Invalid(format!(
                "{what} needs an address and the stack has none; call dhcp() or configure() first"
            ))
        })
    }
}

/// The moment that ends a wait; `None` for ever.
fn deadline(timeout: Option<Duration>) -> Option<Instant> {
    timeout.and_then(|timeout| Instant::now().checked_add(timeout))
}

/// For messages: how long was waited.
fn spell(timeout: Option<Duration>) -> String {
    timeout.map_or_else(|| "any time".to_owned(), |timeout| format!("{} s", timeout.as_secs_f64()))
}

impl<L> std::fmt::Debug for Stack<L> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stack").field("settings", &self.settings).finish_non_exhaustive()
    }
}
