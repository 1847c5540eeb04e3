//! An address by DHCP (RFC 2131). smoltcp's client speaks the protocol, here its results are
//! checked and used. A lease is renewed as long as the stack is given time to.

use super::address::{Cidr, is_unicast};
use super::{Check, Stack, deadline, link::Link, spell};
use crate::{Error, Result};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::dhcpv4;
use smoltcp::wire::{
    DHCP_CLIENT_PORT, DhcpMessageType, DhcpPacket, DhcpRepr, EthernetAddress, EthernetFrame,
    EthernetProtocol, IpProtocol, Ipv4Packet, UdpPacket,
};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// RFC 2131, section 4.1: 4 s before the first repetition. Not less, because each repetition has
/// another transaction id, and servers that ping an address before they offer it take 3 s.
const REPEAT: Duration = Duration::from_secs(4);
/// How long smoltcp keeps a lease whose server does not say.
const UNSAID: u32 = 120;

/// What a server gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The address with the length of its network's prefix.
    pub address: Cidr,
    /// The default gateway.
    pub gateway: Option<Ipv4Addr>,
    /// Who gave it.
    pub server: Ipv4Addr,
    /// Name servers.
    pub dns: Vec<Ipv4Addr>,
    /// For how long, unless it is renewed.
    pub duration: Duration,
    /// How long it took to get it.
    pub elapsed: Duration,
}

/// A client that has a lease, or wants one.
#[derive(Debug)]
pub(super) struct Client {
    handle: SocketHandle,
    own: EthernetAddress,
    started: Instant,
    /// The server that last offered something.
    offered: Option<Ipv4Addr>,
    /// Seconds of the last acknowledged lease, which smoltcp does not tell.
    seconds: u32,
    /// Why the first lease that could not be used could not.
    nonsense: Option<String>,
    lease: Option<Lease>,
}

impl Client {
    /// Looks at a received frame.
    pub(super) fn look(&mut self, frame: &[u8]) {
        // Fails for whatever is not DHCP.
        let _ = self.read(frame);
    }

    fn read(&mut self, frame: &[u8]) -> Result<(), smoltcp::wire::Error> {
        let frame = EthernetFrame::new_checked(frame)?;
        if frame.ethertype() != EthernetProtocol::Ipv4 {
            return Ok(());
        }
        let ip = Ipv4Packet::new_checked(frame.payload())?;
        if ip.next_header() != IpProtocol::Udp {
            return Ok(());
        }
        let udp = UdpPacket::new_checked(ip.payload())?;
        if udp.dst_port() != DHCP_CLIENT_PORT {
            return Ok(());
        }
        let packet = DhcpPacket::new_checked(udp.payload())?;
        let message = DhcpRepr::parse(&packet)?;
        if message.client_hardware_address != self.own {
            return Ok(());
        }
        match message.message_type {
            DhcpMessageType::Offer => self.offered = message.server_identifier,
            DhcpMessageType::Ack => self.seconds = message.lease_duration.unwrap_or(UNSAID),
            _ => {}
        }
        Ok(())
    }

    /// What smoltcp agreed to, unless something in it cannot be used.
    fn take(&self, config: &dhcpv4::Config) -> Result<Lease> {
        let server = config.server;
        let address =
            Cidr { address: config.address.address(), prefix: config.address.prefix_len() };
        address.check()?;
        // To this address the client sends when it renews.
        if !is_unicast(server.address) {
            return Err(Error::Invalid(format!("{} is no server's address", server.address)));
        }
        let gateway = config.router.filter(|gateway| {
            let usable = is_unicast(*gateway) && *gateway != address.address;
            if !usable {
                log::warn!("DHCP: {gateway} cannot be a gateway; ignored");
            } else if !address.contains(*gateway) {
                log::warn!("DHCP: the gateway {gateway} is outside of {address}: no way to it");
            }
            usable
        });
        Ok(Lease {
            address,
            gateway,
            server: server.identifier,
            dns: config.dns_servers.to_vec(),
            duration: Duration::from_secs(self.seconds.into()),
            elapsed: self.started.elapsed(),
        })
    }
}

impl<L: Link> Stack<L> {
    /// Takes a lease and configures the stack with it. An earlier address is given up first.
    ///
    /// # Errors
    /// [`Error::Timeout`]; those of the link, and what `check` returns.
    pub fn dhcp(&mut self, timeout: Option<Duration>, check: Check) -> Result<Lease> {
        self.end_lease();
        self.apply(None, None);
        let mut socket = dhcpv4::Socket::new();
        let mut retry = socket.get_retry_config();
        retry.discover_timeout = REPEAT.into();
        retry.initial_request_timeout = REPEAT.into();
        socket.set_retry_config(retry);
        self.dhcp = Some(Client {
            handle: self.sockets.add(socket),
            own: EthernetAddress(self.device.link.mac().0),
            started: Instant::now(),
            offered: None,
            seconds: UNSAID,
            nonsense: None,
            lease: None,
        });
        let result = self.wait_for(deadline(timeout), check, |stack, _| {
            Ok(stack.dhcp.as_ref().and_then(|client| client.lease.clone()))
        });
        if let Ok(Some(lease)) = result {
            return Ok(lease);
        }
        let (offered, nonsense) = self.dhcp.take().map_or((None, None), |client| {
            self.sockets.remove(client.handle);
            (client.offered, client.nonsense)
        });
        result?;
        let within = spell(timeout);
        Err(Error::Timeout(match (offered, nonsense) {
            (_, Some(why)) => format!("no usable DHCP lease within {within}: {why}"),
            (Some(server), _) => {
                format!(
                    "the DHCP server {server} made an offer but acknowledged nothing within {within}"
                )
            }
            _ => format!(
                "no DHCP offer within {within}; is there a DHCP server on this netdev? QEMU's `user` netdev has one"
            ),
        }))
    }

    /// Forgets the lease; the addresses stay.
    pub(super) fn end_lease(&mut self) {
        if let Some(client) = self.dhcp.take() {
            self.sockets.remove(client.handle);
        }
    }

    /// Does what the client says after a turn.
    pub(super) fn follow_lease(&mut self) {
        let Some(client) = &mut self.dhcp else { return };
        let socket = self.sockets.get_mut::<dhcpv4::Socket>(client.handle);
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
        client.lease.clone_from(&lease);
        let (address, gateway) = lease.map_or((None, None), |l| (Some(l.address), l.gateway));
        self.apply(address, gateway);
    }
}
