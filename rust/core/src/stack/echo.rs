//! ICMP echo requests (RFC 792). smoltcp answers received ones.

use super::address::is_unicast;
use super::{Check, Stack, deadline, link::Link, random};
use crate::{Error, Result};
use smoltcp::iface::SocketHandle;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::icmp;
use smoltcp::wire::{IPV4_HEADER_LEN, Icmpv4Packet, Icmpv4Repr};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// Bytes of an echo request's header.
const HEADER: usize = 8;
/// The most replies that are not processed yet.
const REPLIES: usize = 16;

/// A payload: up to 8 random bytes, which distinguish it from earlier ones, then a pattern.
fn payload(length: usize) -> Vec<u8> {
    let nonce = random().to_ne_bytes();
    (0..length).map(|i| nonce.get(i).copied().unwrap_or(i as u8)).collect()
}

impl<L: Link> Stack<L> {
    /// Sends one echo request with `length` bytes of payload. Returns the round-trip time, or `None`
    /// without a reply. Replies with another payload or a wrong checksum are ignored.
    ///
    /// If necessary, the next hop is resolved first; the timeout includes that, the round-trip time
    /// does not.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the stack has no address, for a target that cannot be reached, and for a
    /// payload that does not fit the MTU; those of the link, and what `check` returns.
    pub fn ping(
        &mut self,
        target: Ipv4Addr,
        sequence: u16,
        length: usize,
        timeout: Option<Duration>,
        check: Check,
    ) -> Result<Option<Duration>> {
        let deadline = deadline(timeout);
        let hop = self.next_hop(target)?;
        let most = self.device.mtu().saturating_sub(IPV4_HEADER_LEN + HEADER);
        if length > most {
            return Err(Error::Invalid(format!(
                "a payload of {length} bytes does not fit the MTU of {}; it can have at most {most}",
                self.device.mtu()
            )));
        }
        let data = payload(length);
        let request = Icmpv4Repr::EchoRequest { ident: self.ident, seq_no: sequence, data: &data };
        // A new socket holds no unsent request or late reply of an earlier ping.
        let handle = self.open(HEADER + length)?;
        let result = self
            .queue(handle, target, &request)
            .and_then(|()| self.await_reply(handle, target, hop, sequence, &data, deadline, check));
        self.sockets.remove(handle);
        result
    }

    /// The next hop for a target.
    fn next_hop(&self, target: Ipv4Addr) -> Result<Ipv4Addr> {
        let own = self.own("ping")?;
        let bad = |why: &str| Error::Invalid(format!("{target} cannot be pinged: {why}"));
        if target == own.address {
            return Err(bad("it is the stack's own address"));
        }
        if !is_unicast(target) || own.reserves(target) {
            return Err(bad("expected the address of one host"));
        }
        if own.contains(target) {
            return Ok(target);
        }
        self.settings
            .gateway()
            .ok_or_else(|| bad(&format!("it is outside of {own}, and there is no gateway")))
    }

    fn open(&mut self, room: usize) -> Result<SocketHandle> {
        let buffer = |packets: usize| {
            icmp::PacketBuffer::new(
                vec![icmp::PacketMetadata::EMPTY; packets],
                vec![0; packets * room],
            )
        };
        let mut socket = icmp::Socket::new(buffer(REPLIES), buffer(1));
        socket.bind(icmp::Endpoint::Ident(self.ident)).map_err(|error| {
            Error::Invalid(format!("the stack has no room for a ping: {error}"))
        })?;
        Ok(self.sockets.add(socket))
    }

    fn queue(
        &mut self,
        handle: SocketHandle,
        target: Ipv4Addr,
        request: &Icmpv4Repr,
    ) -> Result<()> {
        let socket = self.sockets.get_mut::<icmp::Socket>(handle);
        let buffer = socket
            .send(request.buffer_len(), target.into())
            .map_err(|error| Error::Invalid(format!("{target} cannot be pinged: {error}")))?;
        request.emit(&mut Icmpv4Packet::new_unchecked(buffer), &ChecksumCapabilities::default());
        Ok(())
    }

    #[allow(clippy::too_many_arguments, reason = "the parts of one request")]
    fn await_reply(
        &mut self,
        handle: SocketHandle,
        target: Ipv4Addr,
        hop: Ipv4Addr,
        sequence: u16,
        data: &[u8],
        deadline: Option<Instant>,
        check: Check,
    ) -> Result<Option<Duration>> {
        let mut requested = false;
        let mut departed = None;
        let before = self.device.sent;
        self.wait_for(deadline, check, |stack, _| {
            let socket = stack.sockets.get_mut::<icmp::Socket>(handle);
            if departed.is_none() {
                if socket.send_queue() == 0 {
                    departed = Some(stack.device.departed);
                } else if !requested && stack.device.sent == before {
                    // smoltcp sends at most one ARP request a second and may have just resolved
                    // another address. It also accepts the reply to this request.
                    requested = true;
                    let own = stack.own("ping")?;
                    stack.request(own.address, hop)?;
                }
            }
            let Some(departed) = departed else { return Ok(None) };
            while let Ok((packet, from)) = socket_of(stack, handle).recv() {
                if from == target.into() && is_reply(packet, sequence, data) {
                    let took = stack.device.arrived.saturating_duration_since(departed);
                    return Ok(Some(took));
                }
            }
            Ok(None)
        })
    }
}

fn socket_of<L>(stack: &mut Stack<L>, handle: SocketHandle) -> &mut icmp::Socket<'static> {
    stack.sockets.get_mut(handle)
}

/// Whether the packet, whose checksum smoltcp has verified, answers this request.
fn is_reply(packet: &[u8], sequence: u16, sent: &[u8]) -> bool {
    let Ok(packet) = Icmpv4Packet::new_checked(packet) else { return false };
    match Icmpv4Repr::parse(&packet, &ChecksumCapabilities::default()) {
        Ok(Icmpv4Repr::EchoReply { seq_no, data, .. }) if seq_no == sequence => {
            if data != sent {
                log::warn!("echo reply {sequence} has another payload than the request; ignored");
            }
            data == sent
        }
        _ => false,
    }
}
