//! Addresses, gateways and leases of a host.

use super::state::State;
use crate::stack::dhcp::Client;
use crate::stack::{Cidr, Lease};
use crate::{Error, Result};
use smoltcp::wire::{EthernetAddress, IpCidr};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IPv4 or IPv6 address and its prefix length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// The address.
    pub address: IpAddr,
    /// The prefix length in bits.
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
                "expected the address of a host and its prefix length, such as fd00::5/64, not {text:?}"
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

    /// Adds an address. An IPv4 address ends the DHCP lease.
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
                "{network} cannot be added: the stack has the maximum number of addresses"
            )));
        }
        self.news.notify_all();
        Ok(())
    }

    /// Sets the default gateway of its address family.
    pub(super) fn set_gateway(&mut self, gateway: IpAddr) -> Result<()> {
        let why = if self.is_ours(gateway) {
            "is the stack's own address"
        } else if !self.interface.ip_addrs().iter().any(|c| c.contains_addr(&gateway.into())) {
            "is in none of the stack's networks"
        } else {
            ""
        };
        if !why.is_empty() {
            return Err(Error::Invalid(format!(
                "the gateway {gateway} {why}; it must be another host of one of these networks"
            )));
        }
        let routes = self.interface.routes_mut();
        let set = match gateway {
            IpAddr::V4(gateway) => routes.add_default_ipv4_route(gateway).map(drop),
            IpAddr::V6(gateway) => routes.add_default_ipv6_route(gateway).map(drop),
        };
        set.map_err(|full| Error::Invalid(format!("the gateway {gateway}: {full}")))
    }

    /// Replaces the IPv4 addresses and gateway by those of the lease, if any.
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

    /// Starts the DHCP client.
    pub(super) fn begin_lease(&mut self) {
        self.end_lease();
        self.apply(None);
        self.dhcp = Some(Client::start(&mut self.common, EthernetAddress(self.mac.0)));
    }

    /// Stops the DHCP client. The addresses remain.
    pub(super) fn end_lease(&mut self) {
        if let Some(client) = self.dhcp.take() {
            client.stop(&mut self.common);
        }
    }

    /// Applies the lease after a turn.
    pub(super) fn follow_lease(&mut self) {
        let Some(client) = &mut self.dhcp else { return };
        if client.update(&mut self.common) {
            let lease = client.lease.clone();
            self.apply(lease.as_ref());
            self.news.notify_all();
        }
    }

    /// The name servers of the DHCP lease.
    pub(super) fn name_servers(&self) -> Vec<Ipv4Addr> {
        let lease = self.dhcp.as_ref().and_then(|client| client.lease.as_ref());
        lease.map_or_else(Vec::new, |lease| lease.dns.clone())
    }
}
