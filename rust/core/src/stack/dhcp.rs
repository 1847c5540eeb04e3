//! DHCP (RFC 2131): smoltcp implements the client; its leases are checked here.

use super::address::{Cidr, is_unicast};
use super::spell;
use crate::{Error, Result};
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::dhcpv4;
use smoltcp::wire::{
    DHCP_CLIENT_PORT, DhcpMessageType, DhcpPacket, DhcpRepr, EthernetAddress, EthernetFrame,
    EthernetProtocol, IpProtocol, Ipv4Packet, UdpPacket,
};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// Time before the first retransmission (RFC 2131, section 4.1). Not less, because each has another
/// transaction id, and servers that ping an address before they offer it take 3 s.
const REPEAT: Duration = Duration::from_secs(4);
/// How long smoltcp keeps a lease without a lease time, in seconds.
const DEFAULT_SECONDS: u32 = 120;

/// A lease of a DHCP server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The address with its prefix length.
    pub address: Cidr,
    /// The default gateway.
    pub gateway: Option<Ipv4Addr>,
    /// The server.
    pub server: Ipv4Addr,
    /// Name servers.
    pub dns: Vec<Ipv4Addr>,
    /// The lease time.
    pub duration: Duration,
    /// How long it took to get the lease.
    pub elapsed: Duration,
}

/// A DHCP client, with or without a lease.
#[derive(Debug)]
pub(super) struct Client {
    handle: SocketHandle,
    own: EthernetAddress,
    started: Instant,
    /// The server of the last offer.
    offered: Option<Ipv4Addr>,
    /// Lease time of the last acknowledged lease, which smoltcp does not return.
    seconds: u32,
    /// Why the first unusable lease is unusable.
    unusable: Option<String>,
    pub(super) lease: Option<Lease>,
}

impl Client {
    /// Starts a client among these sockets.
    pub(super) fn start(sockets: &mut SocketSet<'static>, own: EthernetAddress) -> Self {
        let mut socket = dhcpv4::Socket::new();
        let mut retry = socket.get_retry_config();
        retry.discover_timeout = REPEAT.into();
        retry.initial_request_timeout = REPEAT.into();
        socket.set_retry_config(retry);
        let (started, seconds) = (Instant::now(), DEFAULT_SECONDS);
        let handle = sockets.add(socket);
        Self { handle, own, started, offered: None, seconds, unusable: None, lease: None }
    }

    /// Removes its socket. The addresses of the lease remain.
    pub(super) fn stop(&self, sockets: &mut SocketSet<'static>) {
        sockets.remove(self.handle);
    }

    /// Reads a received frame.
    pub(super) fn read(&mut self, frame: &[u8]) {
        // Fails for frames that are not DHCP.
        let _ = self.parse(frame);
    }

    fn parse(&mut self, frame: &[u8]) -> Result<(), smoltcp::wire::Error> {
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
            DhcpMessageType::Ack => {
                self.seconds = message.lease_duration.unwrap_or(DEFAULT_SECONDS);
            }
            _ => {}
        }
        Ok(())
    }

    /// Checks the lease that smoltcp accepted.
    fn check(&self, config: &dhcpv4::Config) -> Result<Lease> {
        let server = config.server;
        let address =
            Cidr { address: config.address.address(), prefix: config.address.prefix_len() };
        address.check()?;
        // The client sends renewals to this address.
        if !is_unicast(server.address) {
            return Err(Error::Invalid(format!(
                "the server's address {} is not a unicast address",
                server.address
            )));
        }
        let gateway = config.router.filter(|gateway| {
            let usable = is_unicast(*gateway) && *gateway != address.address;
            if !usable {
                log::warn!("DHCP: {gateway} cannot be a gateway; ignored");
            } else if !address.contains(*gateway) {
                log::warn!("DHCP: the gateway {gateway} is outside of {address}, so unreachable");
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

    /// Handles an event of smoltcp's client. Returns whether the address or the gateway has changed:
    /// a lease renewed without changes leaves connections alone.
    pub(super) fn update(&mut self, sockets: &mut SocketSet<'static>) -> bool {
        let socket = sockets.get_mut::<dhcpv4::Socket<'_>>(self.handle);
        let lease = match socket.poll() {
            None => return false,
            Some(dhcpv4::Event::Configured(config)) => match self.check(&config) {
                Ok(lease) => Some(lease),
                Err(error) => {
                    let why = format!("from the server {}: {error}", config.server.identifier);
                    if self.unusable.is_none() {
                        log::warn!("DHCP: a lease cannot be used, {why}");
                    }
                    self.unusable.get_or_insert(why);
                    // Another server may offer a usable lease.
                    socket.reset();
                    None
                }
            },
            Some(dhcpv4::Event::Deconfigured) => None,
        };
        if let (Some(old), None) = (&self.lease, &lease) {
            log::warn!("DHCP: the lease of {} ended; looking for another", old.address);
        }
        let addresses = |lease: &Option<Lease>| lease.as_ref().map(|l| (l.address, l.gateway));
        let changed = addresses(&self.lease) != addresses(&lease);
        self.lease = lease;
        changed
    }

    /// The error of a timeout without a lease.
    pub(super) fn timeout(&self, timeout: Option<Duration>) -> Error {
        let within = spell(timeout);
        Error::Timeout(match (&self.unusable, self.offered) {
            (Some(why), _) => format!("no usable DHCP lease within {within}: {why}"),
            (None, Some(server)) => format!(
                "the DHCP server {server} made an offer but did not acknowledge it within {within}"
            ),
            _ => format!(
                "no DHCP offer within {within}; is there a DHCP server on this network? QEMU's `user` netdev has one"
            ),
        })
    }
}

/// The error of a wait for a lease whose client was stopped.
pub(super) fn no_client() -> Error {
    Error::Timeout("another call ended the wait for a DHCP lease".to_owned())
}
