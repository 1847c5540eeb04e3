//! The ioctls of a vhost device and of a TAP device.

use crate::memory::Region;
use crate::{Error, Result};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd};
use rustix::io::Errno;
use rustix::ioctl::{IntegerSetter, NoArg, Opcode, Updater, ioctl, opcode};

/// `VHOST_VIRTIO`, the type of vhost's requests.
const VHOST: u8 = 0xaf;
/// The type of a TAP's requests.
const TUN: u8 = b'T';

/// `struct vhost_vring_state`: a ring's number, and its size or position.
type State = [u32; 2];
/// `struct vhost_vring_file`: a ring's number, and a descriptor or -1.
type File = [i32; 2];

/// `struct vhost_vring_addr`.
#[derive(Debug)]
#[repr(C)]
pub(super) struct RingAddress {
    pub index: u32,
    pub flags: u32,
    pub descriptors: u64,
    pub used: u64,
    pub available: u64,
    pub log: u64,
}

/// `struct vhost_memory` with one region: device address, size, our address, padding.
#[repr(C)]
struct MemoryTable {
    count: u32,
    padding: u32,
    region: [u64; 4],
}

/// `struct ifreq`: the name, flags, and the rest of its union.
#[derive(Default)]
#[repr(C)]
struct Interface {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

const GET_FEATURES: Opcode = opcode::read::<u64>(VHOST, 0x00);
const SET_FEATURES: Opcode = opcode::write::<u64>(VHOST, 0x00);
const SET_OWNER: Opcode = opcode::none(VHOST, 0x01);
/// The size in the number is that of an empty table.
const SET_MEM_TABLE: Opcode = opcode::write::<[u32; 2]>(VHOST, 0x03);
const SET_VRING_NUM: Opcode = opcode::write::<State>(VHOST, 0x10);
const SET_VRING_ADDR: Opcode = opcode::write::<RingAddress>(VHOST, 0x11);
const SET_VRING_BASE: Opcode = opcode::write::<State>(VHOST, 0x12);
const GET_VRING_BASE: Opcode = opcode::read_write::<State>(VHOST, 0x12);
const SET_VRING_KICK: Opcode = opcode::write::<File>(VHOST, 0x20);
const SET_VRING_CALL: Opcode = opcode::write::<File>(VHOST, 0x21);
const NET_SET_BACKEND: Opcode = opcode::write::<File>(VHOST, 0x30);
const TUNSETOFFLOAD: Opcode = opcode::write::<u32>(TUN, 208);
const TUNGETIFF: Opcode = opcode::read::<u32>(TUN, 210);
const TUNSETVNETHDRSZ: Opcode = opcode::write::<i32>(TUN, 216);
const TUNSETQUEUE: Opcode = opcode::write::<i32>(TUN, 217);
const TUNSETVNETLE: Opcode = opcode::write::<i32>(TUN, 220);

/// Flags of a TAP (`if_tun.h`): a virtio-net header before each frame, several queues.
pub(super) const IFF_VNET_HDR: u16 = 0x4000;
pub(super) const IFF_MULTI_QUEUE: u16 = 0x0100;
const IFF_ATTACH_QUEUE: u16 = 0x0200;
const IFF_DETACH_QUEUE: u16 = 0x0400;

/// A descriptor number as the kernel takes it; -1 removes what is there.
fn number(fd: Option<BorrowedFd<'_>>) -> i32 {
    fd.map_or(-1, |fd| fd.as_raw_fd())
}

fn failed(what: &str, error: Errno) -> Error {
    let why = match error {
        Errno::PERM => ": another process owns this descriptor of /dev/vhost-net; open another",
        _ => "",
    };
    Error::os(format!("{what} of vhost-net{why}"), error)
}

/// One request that passes a value, which the kernel may change.
fn update<const REQUEST: Opcode, T>(fd: impl AsFd, value: &mut T) -> Result<(), Errno> {
    // SAFETY: callers pair each request number with the structure that it reads or writes, which is
    // ours alone during the call.
    unsafe { ioctl(fd, Updater::<REQUEST, T>::new(value)) }
}

/// The features that the kernel offers.
pub(super) fn features(vhost: impl AsFd) -> Result<u64> {
    let mut features = 0_u64;
    update::<GET_FEATURES, _>(vhost, &mut features).map_err(|e| failed("VHOST_GET_FEATURES", e))?;
    Ok(features)
}

pub(super) fn set_features(vhost: impl AsFd, mut features: u64) -> Result<()> {
    update::<SET_FEATURES, _>(vhost, &mut features).map_err(|e| failed("VHOST_SET_FEATURES", e))
}

/// Makes the descriptor this process's own; starts the kernel's thread.
pub(super) fn set_owner(vhost: impl AsFd) -> Result<()> {
    // SAFETY: the request has no argument.
    let done = unsafe { ioctl(vhost, NoArg::<SET_OWNER>::new()) };
    done.map_err(|e| match e {
        Errno::BUSY => Error::Permission(
            "this descriptor of /dev/vhost-net has an owner already, of which there is one for ever: \
             open another"
                .to_owned(),
        ),
        e => failed("VHOST_SET_OWNER", e),
    })
}

/// Shares the memory: one region.
pub(super) fn set_memory(vhost: impl AsFd, region: &Region) -> Result<()> {
    let region = [region.iova().0, region.size() as u64, region.address() as u64, 0];
    let mut table = MemoryTable { count: 1, padding: 0, region };
    update::<SET_MEM_TABLE, _>(vhost, &mut table).map_err(|e| failed("VHOST_SET_MEM_TABLE", e))
}

pub(super) fn set_size(vhost: impl AsFd, ring: u32, entries: u32) -> Result<()> {
    let mut state: State = [ring, entries];
    update::<SET_VRING_NUM, _>(vhost, &mut state).map_err(|e| failed("VHOST_SET_VRING_NUM", e))
}

pub(super) fn set_base(vhost: impl AsFd, ring: u32, base: u32) -> Result<()> {
    let mut state: State = [ring, base];
    update::<SET_VRING_BASE, _>(vhost, &mut state).map_err(|e| failed("VHOST_SET_VRING_BASE", e))
}

/// The position at which a ring would continue.
pub(super) fn base(vhost: impl AsFd, ring: u32) -> Result<u32> {
    let mut state: State = [ring, 0];
    update::<GET_VRING_BASE, _>(vhost, &mut state)
        .map_err(|e| failed("VHOST_GET_VRING_BASE", e))?;
    Ok(state[1])
}

pub(super) fn set_addresses(vhost: impl AsFd, mut ring: RingAddress) -> Result<()> {
    update::<SET_VRING_ADDR, _>(vhost, &mut ring).map_err(|e| failed("VHOST_SET_VRING_ADDR", e))
}

pub(super) fn set_kick(vhost: impl AsFd, ring: i32, fd: Option<BorrowedFd<'_>>) -> Result<()> {
    let mut file: File = [ring, number(fd)];
    update::<SET_VRING_KICK, _>(vhost, &mut file).map_err(|e| failed("VHOST_SET_VRING_KICK", e))
}

pub(super) fn set_call(vhost: impl AsFd, ring: i32, fd: Option<BorrowedFd<'_>>) -> Result<()> {
    let mut file: File = [ring, number(fd)];
    update::<SET_VRING_CALL, _>(vhost, &mut file).map_err(|e| failed("VHOST_SET_VRING_CALL", e))
}

/// Has a ring served from a TAP; without one, stops it, and waits for the kernel's thread.
pub(super) fn set_tap(vhost: impl AsFd, ring: i32, tap: Option<BorrowedFd<'_>>) -> Result<()> {
    let mut file: File = [ring, number(tap)];
    update::<NET_SET_BACKEND, _>(vhost, &mut file).map_err(|e| match e {
        Errno::NOTSOCK => Error::Invalid("vhost-net takes TAP devices only".to_owned()),
        e => failed("VHOST_NET_SET_BACKEND", e),
    })
}

/// The flags of a TAP.
pub(super) fn tap_flags(tap: impl AsFd) -> Result<u16> {
    let mut interface = Interface::default();
    update::<TUNGETIFF, _>(tap, &mut interface)
        .map_err(|e| Error::os("asking a TAP for its flags", e))?;
    Ok(interface.flags)
}

/// Sets the length of the virtio-net header, in little-endian byte order.
pub(super) fn set_header(tap: impl AsFd, mut length: i32) -> Result<()> {
    let mut little = 1_i32;
    update::<TUNSETVNETHDRSZ, _>(tap.as_fd(), &mut length)
        .and_then(|()| update::<TUNSETVNETLE, _>(tap.as_fd(), &mut little))
        .map_err(|e| Error::os("setting the header of a TAP's frames", e))
}

/// Sets what of a received frame may be left to us (`TUN_F_…`).
pub(super) fn set_offloads(tap: impl AsFd, offloads: u32) -> Result<(), Errno> {
    // SAFETY: the argument is the number itself.
    unsafe { ioctl(tap, IntegerSetter::<TUNSETOFFLOAD>::new_usize(offloads as usize)) }
}

/// Turns a queue of a TAP with several on or off: the kernel sends to those that are on.
pub(super) fn set_queue(tap: impl AsFd, on: bool) -> Result<()> {
    let flags = if on { IFF_ATTACH_QUEUE } else { IFF_DETACH_QUEUE };
    let mut interface = Interface { flags, ..Interface::default() };
    update::<TUNSETQUEUE, _>(tap, &mut interface)
        .map_err(|e| Error::os("turning a queue of a TAP on or off", e))
}
