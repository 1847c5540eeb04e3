//! Addresses, gateways and leases of a host.

use super::lease::Client;
use super::state::State;
use crate::stack::{Cidr, Lease};
use crate::{Error, Result};
use smoltcp::socket::dhcpv4;
use smoltcp::wire::{EthernetAddress, IpCidr};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

/// RFC 2131, section 4.1: 4 s before the first repetition. Not less, because each repetition has
/// another transaction id, and servers that ping an address before they offer it take 3 s.
const REPEAT: Duration = Duration::from_secs(4);

/// An address of either family, and the length of its network's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// The address.
    pub address: IpAddr,
    /// Bits of the network's part.
    pub prefix: u8,
}

impl std::str::FromStr for Network {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        if !text.contains(':') {
            let cidr: Cidr = text.parse()?;
            return Ok(Self { address: cidr.address.into(), prefix: cidr.prefix });
        }
        let parsed = text.split_once('/').and_then(|(address, prefix)| {
            Some((address.parse::<Ipv6Addr>().ok()?, prefix.parse::<u8>().ok()?))
        });
        match parsed {
            Some((address, prefix))
                if prefix <= 128
                    && !address.is_multicast()
                    && !address.is_unspecified()
                    && !address.is_loopback() =>
            {
                Ok(Self { address: address.into(), prefix })
            }
            _ => Err(Error::Invalid(format!(
                "expected an address of a host with the length of its prefix, such as fd00::5/64, not {text:?}"
            ))),
        }
    }
}

impl std::fmt::Display for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl State {
    /// All addresses.
    pub(super) fn networks(&self) -> Vec<Network> {
        let network =
            |cidr: &IpCidr| Network { address: cidr.address().into(), prefix: cidr.prefix_len() };
        self.interface.ip_addrs().iter().map(network).collect()
    }
    /// The gateway of each family.
    pub(super) fn gateways(&self) -> Vec<IpAddr> {
        let routes = self.interface.routes();
        [routes.get_default_ipv4_route(), routes.get_default_ipv6_route()]
            .into_iter()
            .flatten()
            .map(|route| route.via_router.into())
            .collect()
    }

    /// Adds an address; an IPv4 address takes the place of a lease.
    pub(super) fn add_address(&mut self, network: Network) -> Result<()> {
        let address = IpCidr::new(network.address.into(), network.prefix);
        if network.address.is_ipv4() {
            self.end_lease();
        }
        let mut full = false;
        self.interface.update_ip_addrs(|list| {
            if !list.contains(&address) {
                full = list.push(address).is_err();
            }
        });
        if full {
            return Err(Error::Invalid(format!(
                "{network} cannot be added: the stack has as many addresses as it has room for"
            )));
        }
        self.news.notify_all();
        Ok(())
    }

    /// Sets the gateway of its family.
    pub(super) fn set_gateway(&mut self, gateway: IpAddr) -> Result<()> {
        let why = if self.is_ours(gateway) {
            "is the stack's own address"
        } else if !self.interface.ip_addrs().iter().any(|c| c.contains_addr(&gateway.into())) {
            "is in no network of the stack"
        } else {
            ""
        };
        if !why.is_empty() {
            return Err(Error::Invalid(format!(
                "the gateway {gateway} {why}; expected another host of one of its networks"
            )));
        }
        let routes = self.interface.routes_mut();
        let set = match gateway {
            IpAddr::V4(gateway) => routes.add_default_ipv4_route(gateway).map(drop),
            IpAddr::V6(gateway) => routes.add_default_ipv6_route(gateway).map(drop),
        };
        set.map_err(|full| Error::Invalid(format!("the gateway {gateway}: {full}")))
    }

    /// Replaces the IPv4 address and gateway by those of a lease, or by none.
    fn apply(&mut self, lease: Option<&Lease>) {
        self.interface.update_ip_addrs(|list| {
            list.retain(|cidr| matches!(cidr, IpCidr::Ipv6(_)));
            if let Some(lease) = lease {
                let Cidr { address, prefix } = lease.address;
                let _ = list.push(IpCidr::new(address.into(), prefix));
            }
        });
        let routes = self.interface.routes_mut();
        routes.remove_default_ipv4_route();
        if let Some(gateway) = lease.and_then(|lease| lease.gateway)
            && let Err(full) = routes.add_default_ipv4_route(gateway)
        {
            log::warn!("the gateway {gateway} cannot be used: {full}");
        }
    }

    /// Begins to look for a lease.
    pub(super) fn begin_lease(&mut self) {
        self.end_lease();
        self.apply(None);
        let mut socket = dhcpv4::Socket::new();
        let mut retry = socket.get_retry_config();
        retry.discover_timeout = REPEAT.into();
        retry.initial_request_timeout = REPEAT.into();
        socket.set_retry_config(retry);
        let handle = self.common.add(socket);
        self.leases.client = Some(Client::new(handle, EthernetAddress(self.mac.0)));
    }

    /// Forgets the lease; the addresses stay.
    pub(super) fn end_lease(&mut self) {
        if let Some(client) = self.leases.client.take() {
            self.common.remove(client.handle);
        }
    }

    /// Does what DHCP's client says.
    pub(super) fn follow_lease(&mut self) {
        let Some(client) = &mut self.leases.client else { return };
        let socket = self.common.get_mut::<dhcpv4::Socket<'_>>(client.handle);
        let lease = match socket.poll() {
            None => return,
            Some(dhcpv4::Event::Configured(config)) => match client.take(&config) {
                Ok(lease) => Some(lease),
                Err(error) => {
                    let why = format!("from the server {}: {error}", config.server.identifier);
                    if client.nonsense.is_none() {
                        log::warn!("DHCP: a lease cannot be used, {why}");
                    }
                    client.nonsense.get_or_insert(why);
                    // Perhaps another server does better.
                    socket.reset();
                    None
                }
            },
            Some(dhcpv4::Event::Deconfigured) => None,
        };
        if let (Some(old), None) = (&client.lease, &lease) {
            log::warn!("DHCP: the lease of {} ended; looking for another", old.address);
        }
        if client.lease.is_none() && lease.is_none() {
            return;
        }
        let same = match (&client.lease, &lease) {
            (Some(old), Some(new)) => old.address == new.address && old.gateway == new.gateway,
            _ => false,
        };
        client.lease.clone_from(&lease);
        if !same {
            // Renewed as it was, it changes nothing: connections go on.
            self.apply(lease.as_ref());
        }
        self.news.notify_all();
    }

    /// Name servers that DHCP told of.
    pub(super) fn name_servers(&self) -> Vec<Ipv4Addr> {
        let lease = self.leases.client.as_ref().and_then(|client| client.lease.as_ref());
        lease.map_or_else(Vec::new, |lease| lease.dns.clone())
    }
}
