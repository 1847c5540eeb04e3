//! Addresses, gateways and leases of a host.

use super::address::is_unicast;
use super::dhcp::Client;
use super::state::State;
use super::{Cidr, Lease};
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

impl Network {
    fn cidr(self) -> IpCidr {
        IpCidr::new(self.address.into(), self.prefix)
    }
    /// Whether an address is in the same network.
    fn contains(self, address: IpAddr) -> bool {
        self.cidr().contains_addr(&address.into())
    }
    /// Whether no host of the network can have the address.
    fn reserves(self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(address)) => {
                let network = Cidr { address: own, prefix: self.prefix };
                !is_unicast(address) || network.reserves(address)
            }
            _ => address.is_unspecified() || address.is_multicast() || address.is_loopback(),
        }
    }
}

/// Checks that another host in one of these networks can have the address.
fn check_gateway(gateway: IpAddr, networks: &[Network]) -> Result<()> {
    let near: Vec<_> = networks.iter().filter(|network| network.contains(gateway)).collect();
    let why = if networks.iter().any(|network| network.address == gateway) {
        "is the stack's own address"
    } else if near.is_empty() {
        "is in none of the stack's networks"
    } else if near.iter().any(|network| network.reserves(gateway)) {
        "is not the address of a host"
    } else {
        return Ok(());
    };
    let all: Vec<_> = networks.iter().map(ToString::to_string).collect();
    Err(Error::Invalid(format!(
        "the gateway {gateway} {why}; it must be another host in one of {}",
        all.join(", ")
    )))
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

    /// Adds an address, and sets the default gateway of its family.
    pub(super) fn configure(&mut self, network: Network, gateway: Option<IpAddr>) -> Result<()> {
        if let Some(gateway) = gateway {
            let mut networks = self.networks();
            networks.push(network);
            check_gateway(gateway, &networks)?;
        }
        self.add_address(network)?;
        gateway.map_or(Ok(()), |gateway| self.set_gateway(gateway))
    }

    /// Adds an address.
    pub(super) fn add_address(&mut self, network: Network) -> Result<()> {
        let address = network.cidr();
        let mut full = false;
        self.interface.update_ip_addrs(|list| {
            if !list.contains(&address) {
                full = list.push(address).is_err();
            }
        });
        if full {
            let count = self.interface.ip_addrs().len();
            return Err(Error::Invalid(format!(
                "{network} cannot be added: the stack has {count} addresses, the most that it can have"
            )));
        }
        self.news.notify_all();
        Ok(())
    }

    /// Removes an address, and the gateway that only its network reaches. Removing the address of the
    /// lease ends the lease.
    pub(super) fn remove_address(&mut self, address: IpAddr) -> Result<()> {
        if !self.is_ours(address) {
            let all: Vec<_> = self.networks().iter().map(ToString::to_string).collect();
            let all = if all.is_empty() { "none".to_owned() } else { all.join(", ") };
            return Err(Error::Invalid(format!(
                "{address} cannot be removed: the stack's addresses are: {all}"
            )));
        }
        if self.leased.is_some_and(|(leased, _)| IpAddr::from(leased.address) == address) {
            self.end_lease();
            self.apply(None);
        }
        self.interface.update_ip_addrs(|list| {
            list.retain(|cidr| IpAddr::from(cidr.address()) != address);
        });
        let networks = self.networks();
        for gateway in self.gateways() {
            if !networks.iter().any(|network| network.contains(gateway)) {
                self.remove_gateway(gateway);
            }
        }
        self.news.notify_all();
        Ok(())
    }

    fn remove_gateway(&mut self, gateway: IpAddr) {
        let routes = self.interface.routes_mut();
        match gateway {
            IpAddr::V4(_) => routes.remove_default_ipv4_route(),
            IpAddr::V6(_) => routes.remove_default_ipv6_route(),
        };
    }

    /// Sets the default gateway of its address family.
    fn set_gateway(&mut self, gateway: IpAddr) -> Result<()> {
        let routes = self.interface.routes_mut();
        let set = match gateway {
            IpAddr::V4(gateway) => routes.add_default_ipv4_route(gateway).map(drop),
            IpAddr::V6(gateway) => routes.add_default_ipv6_route(gateway).map(drop),
        };
        set.map_err(|full| Error::Invalid(format!("the gateway {gateway} cannot be used: {full}")))
    }

    /// Replaces what the last lease brought by the address of this one, and its gateway if there is no
    /// other.
    fn apply(&mut self, lease: Option<&Lease>) {
        let old =
            std::mem::replace(&mut self.leased, lease.map(|lease| (lease.address, lease.gateway)));
        self.interface.update_ip_addrs(|list| {
            if let Some((old, _)) = old {
                list.retain(|cidr| *cidr != IpCidr::new(old.address.into(), old.prefix));
            }
            if let Some(Cidr { address, prefix }) = lease.map(|lease| lease.address) {
                let address = IpCidr::new(address.into(), prefix);
                if !list.contains(&address) && list.push(address).is_err() {
                    log::warn!("DHCP: {address} cannot be used: the stack has too many addresses");
                }
            }
        });
        let current = self.gateways().into_iter().find(IpAddr::is_ipv4);
        let ended = old.and_then(|(_, gateway)| gateway).map(IpAddr::from);
        if let Some(gateway) = current.filter(|_| current == ended) {
            self.remove_gateway(gateway);
        }
        if let Some(gateway) = lease.and_then(|lease| lease.gateway)
            && (current.is_none() || current == ended)
            && let Err(error) = self.set_gateway(gateway.into())
        {
            log::warn!("DHCP: {error}");
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
