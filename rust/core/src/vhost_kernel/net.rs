//! `Net`: TAP devices behind the kernel's vhost-net.

use super::request::{self, IFF_MULTI_QUEUE, IFF_VNET_HDR, RingAddress};
use crate::memory::Region;
use crate::virtio::transport::vhost::{Vhost, Vring};
use crate::virtio::{Features, Status};
use crate::{Error, Owned, Result};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// Bits of vhost's own meaning: log dirty pages; no header from the TAP, which is `ANY_LAYOUT` of
/// virtio.
const F_LOG_ALL: u64 = 1 << 26;
const F_VIRTIO_NET_HDR: u64 = 1 << 27;

/// Each offload for received frames, with the flag that asks a TAP for it (`if_tun.h`).
const RECEIVE: [(Features, u32); 7] = [
    (Features::GUEST_CSUM, 0x01),
    (Features::GUEST_TSO4, 0x02),
    (Features::GUEST_TSO6, 0x04),
    (Features::GUEST_ECN, 0x08),
    (Features::GUEST_UFO, 0x10),
    (Features::GUEST_USO4, 0x20),
    (Features::GUEST_USO6, 0x40),
];
/// What any TAP with a header takes and gives: checksums and TCP segmentation.
const USUAL: u32 = 0x0f;
/// UDP fragmentation (gone and back in Linux 4.14 to 4.16), UDP segmentation (Linux 6.2).
const FRAGMENTS: u32 = 0x10;
const SEGMENTS: u32 = 0x60;

/// One queue pair: a descriptor of `/dev/vhost-net` and one of a TAP's queue.
#[derive(Debug)]
pub struct NetPair {
    vhost: Owned,
    tap: Owned,
    /// Whether the queue can be turned off, and whether it is on.
    several: bool,
    on: bool,
}

impl NetPair {
    /// Makes the vhost descriptor this process's own.
    ///
    /// # Errors
    /// [`Error::Permission`] if it has an owner, [`Error::Invalid`] for a TAP without virtio-net
    /// headers, [`Error::Os`].
    pub fn new(vhost: OwnedFd, tap: OwnedFd) -> Result<Self> {
        let flags = request::tap_flags(&tap)?;
        if flags & IFF_VNET_HDR == 0 {
            return Err(Error::Invalid(
                "the TAP was opened without virtio-net headers (IFF_VNET_HDR), which vhost-net needs"
                    .to_owned(),
            ));
        }
        request::set_owner(&vhost)?;
        let several = flags & IFF_MULTI_QUEUE != 0;
        Ok(Self { vhost: vhost.into(), tap: tap.into(), several, on: true })
    }

    fn turn(&mut self, on: bool) -> Result<()> {
        if self.several && self.on != on {
            request::set_queue(self.tap.as_fd(), on)?;
        }
        self.on = on;
        Ok(())
    }
}

/// A backend: the kernel, with one TAP.
#[derive(Debug)]
pub struct Net {
    pairs: Vec<NetPair>,
    /// What vhost-net itself offers.
    kernel: u64,
    offered: u64,
}

impl Net {
    /// A backend of these queue pairs.
    ///
    /// # Errors
    /// [`Error::Os`] if the kernel does not say what it offers.
    pub fn new(pairs: Vec<NetPair>) -> Result<Self> {
        let Some(first) = pairs.first() else {
            return Err(Error::Invalid("vhost-net needs a queue pair".to_owned()));
        };
        let kernel = request::features(first.vhost.as_fd())? & !(F_LOG_ALL | F_VIRTIO_NET_HDR);
        let takes = |more| request::set_offloads(first.tap.as_fd(), USUAL | more).is_ok();
        let mut offloads = Features::CSUM
            | Features::HOST_TSO4
            | Features::HOST_TSO6
            | Features::HOST_ECN
            | Features::GUEST_CSUM
            | Features::GUEST_TSO4
            | Features::GUEST_TSO6
            | Features::GUEST_ECN;
        if takes(FRAGMENTS) {
            offloads = offloads | Features::HOST_UFO | Features::GUEST_UFO;
        }
        if takes(SEGMENTS) {
            offloads = offloads | Features::HOST_USO | Features::GUEST_USO4 | Features::GUEST_USO6;
        }
        // None until the driver has chosen.
        let _ = request::set_offloads(first.tap.as_fd(), 0);
        Ok(Self { pairs, kernel, offered: kernel | offloads.0 as u64 })
    }

    /// The pair of a ring, and the ring's number there.
    fn pair(&mut self, ring: u16) -> Result<(&mut NetPair, u16)> {
        let pair = self.pairs.get_mut(usize::from(ring / 2));
        pair.map(|pair| (pair, ring % 2))
            .ok_or_else(|| Error::Invalid(format!("there is no TAP queue for ring {ring}")))
    }
}

impl Vhost for Net {
    fn offered(&self) -> u64 {
        self.offered
    }
    fn pairs(&self) -> u16 {
        self.pairs.len() as u16
    }
    fn begin(&mut self, _time: Duration) {}
    fn set_features(&mut self, features: u64) -> Result<()> {
        let chosen = Features(features.into());
        // VIRTIO 1.3, section 5.1.6.1: `num_buffers` is always there but in the legacy interface.
        let long = chosen.contains(Features::VERSION_1) || chosen.contains(Features::MRG_RXBUF);
        let header = if long { 12 } else { 10 };
        let wanted = RECEIVE.iter().filter(|(feature, _)| chosen.contains(*feature));
        let offloads = wanted.fold(0, |all, (_, flag)| all | flag);
        for pair in &self.pairs {
            request::set_features(pair.vhost.as_fd(), features & self.kernel)?;
            request::set_header(pair.tap.as_fd(), header)?;
            request::set_offloads(pair.tap.as_fd(), offloads)
                .map_err(|e| Error::os("setting the offloads of a TAP", e))?;
        }
        Ok(())
    }
    fn set_memory(&mut self, region: &Arc<Region>) -> Result<()> {
        self.pairs.iter().try_for_each(|pair| request::set_memory(pair.vhost.as_fd(), region))
    }
    fn set_mtu(&mut self, _mtu: u16) -> Result<()> {
        Ok(())
    }
    fn set_status(&mut self, status: Status) -> Result<Status> {
        Ok(status)
    }
    fn set_ring(&mut self, ring: &Vring) -> Result<()> {
        let Vring { index, addresses, here, base, kick, call } = ring;
        let (pair, ring) = self.pair(*index)?;
        let (vhost, index) = (pair.vhost.as_fd(), ring.into());
        request::set_size(vhost, index, addresses.size.into())?;
        request::set_base(vhost, index, *base)?;
        let [descriptors, available, used] = *here;
        let areas = RingAddress { index, flags: 0, descriptors, used, available, log: 0 };
        request::set_addresses(vhost, areas)?;
        request::set_kick(vhost, ring.into(), Some(kick.as_fd()))?;
        request::set_call(vhost, ring.into(), call.as_ref().map(|call| call.as_fd()))
    }
    fn enable_ring(&mut self, index: u16, on: bool) -> Result<()> {
        let (pair, ring) = self.pair(index)?;
        // The even ring of a pair is the first to be turned on, and off.
        if on {
            pair.turn(true)?;
        }
        request::set_tap(pair.vhost.as_fd(), ring.into(), on.then_some(pair.tap.as_fd()))?;
        if !on && ring == 1 {
            pair.turn(false)?;
        }
        Ok(())
    }
    fn stop_ring(&mut self, index: u16) -> Result<()> {
        let (pair, ring) = self.pair(index)?;
        let vhost = pair.vhost.as_fd();
        request::set_tap(vhost, ring.into(), None)?;
        request::base(vhost, ring.into())?;
        // The eventfds may be closed now.
        request::set_kick(vhost, ring.into(), None)?;
        request::set_call(vhost, ring.into(), None)
    }
    fn reset(&mut self) -> Result<()> {
        self.pairs.iter_mut().try_for_each(|pair| pair.turn(true))
    }
    fn is_gone(&self) -> bool {
        false
    }
}
