//! Offload metadata of a frame: checksum and segmentation (sections 5.1.6.2 and 5.1.6.4).
//!
//! This is the front of the header before each packet. What a device writes there is not trusted:
//! [`Offload::adapted`] and [`Offload::checked`] check it before it reaches another device.

use crate::virtio::Features;
use std::fmt;

/// Frames are summed through a private buffer of this size, which is even.
const CHUNK: usize = 2048;
const ETHERNET: usize = 14;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;

/// Metadata of one frame: the fields of `struct virtio_net_hdr` (section 5.1.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Offload {
    /// [`Self::NEEDS_CSUM`], [`Self::DATA_VALID`], [`Self::RSC_INFO`].
    pub flags: u8,
    /// How it is segmented: [`Self::TCPV4`] and so on, with [`Self::ECN`].
    pub gso_type: u8,
    /// Bytes of all headers; 0 if unknown.
    pub hdr_len: u16,
    /// Payload bytes per segment.
    pub gso_size: u16,
    /// Where the checksummed bytes start. With RSC_INFO: the number of coalesced segments.
    pub csum_start: u16,
    /// Where the checksum is stored, from there. With RSC_INFO: the number of duplicate
    /// acknowledgements.
    pub csum_offset: u16,
}

/// Why a frame cannot be sent with its metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The device does not support it: these features were not negotiated.
    NotNegotiated(Features),
    /// It was coalesced by the receiving device.
    Coalesced,
    /// An unknown type of segmentation, or one that does not allow ECN.
    Type(u8),
    /// The checksum field is not inside the frame.
    Checksum {
        /// Where the checksummed bytes start.
        start: u16,
        /// Where the field is, from there.
        offset: u16,
        /// Length of the frame.
        length: usize,
    },
    /// Segmentation without a checksum request.
    NoChecksum,
    /// Segments without payload.
    NoSize,
    /// The checksum of this protocol is at another offset.
    Field {
        /// According to the metadata.
        offset: u16,
        /// The correct one.
        right: u16,
    },
    /// The frame's protocol does not match its type of segmentation.
    Protocol {
        /// The type.
        gso_type: u8,
        /// The EtherType of the frame.
        ethertype: u16,
    },
    /// The headers do not fit the frame.
    Headers {
        /// Bytes that they take, as far as visible.
        need: usize,
        /// Length of the frame.
        length: usize,
    },
    /// The header length is less than the headers, or more than the frame.
    HeaderLength {
        /// According to the metadata.
        says: u16,
        /// According to the headers.
        is: usize,
        /// Length of the frame.
        length: usize,
    },
}

impl Refusal {
    /// Whether another device could have sent it.
    #[must_use]
    pub fn is_missing(self) -> bool {
        matches!(self, Self::NotNegotiated(_) | Self::Coalesced)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NotNegotiated(features) => write!(
                f,
                "its offload needs {features}, which was not negotiated; `features` says why"
            ),
            Self::Coalesced => f.write_str("it was coalesced on reception, which cannot be undone"),
            Self::Type(gso_type) => {
                write!(f, "unknown type of segmentation {gso_type:#04x}")
            }
            Self::Checksum { start, offset, length } => write!(
                f,
                "its checksum, 2 bytes at {start} + {offset}, is outside the frame of {length} bytes"
            ),
            Self::NoChecksum => {
                f.write_str("segmentation needs checksum=\"needed\" and its position")
            }
            Self::NoSize => f.write_str("the segment size is 0"),
            Self::Field { offset, right } => write!(
                f,
                "the checksum offset is {offset}, but in the header of its protocol it is {right}"
            ),
            Self::Protocol { gso_type, ethertype } => write!(
                f,
                "it is segmented as {}, but its EtherType is {ethertype:#06x}",
                name(gso_type).unwrap_or("?")
            ),
            Self::Headers { need, length } => {
                write!(f, "its headers take {need} bytes, but the frame has {length}")
            }
            Self::HeaderLength { says, is, length } => write!(
                f,
                "the header length is {says}, but its headers take {is} bytes of a frame of {length}"
            ),
        }
    }
}

/// The name of a type of segmentation, without ECN; `None` if unknown.
#[must_use]
pub fn name(gso_type: u8) -> Option<&'static str> {
    Some(match gso_type & !Offload::ECN {
        Offload::TCPV4 => "tcp4",
        Offload::TCPV6 => "tcp6",
        Offload::UDP => "udp",
        Offload::UDP_L4 => "udp_l4",
        _ => return None,
    })
}

impl Offload {
    /// No offload.
    pub const NONE: Self =
        Self { flags: 0, gso_type: 0, hdr_len: 0, gso_size: 0, csum_start: 0, csum_offset: 0 };

    /// Flag: the checksum is not calculated yet; its field holds that of the pseudo-header.
    pub const NEEDS_CSUM: u8 = 1;
    /// Flag: the device has verified the checksum.
    pub const DATA_VALID: u8 = 2;
    /// Flag: the device coalesced several segments into this one.
    pub const RSC_INFO: u8 = 4;

    /// Type: not segmented.
    pub const GSO_NONE: u8 = 0;
    /// Type: TCP over IPv4.
    pub const TCPV4: u8 = 1;
    /// Type: a UDP datagram in fragments (UFO).
    pub const UDP: u8 = 3;
    /// Type: TCP over IPv6.
    pub const TCPV6: u8 = 4;
    /// Type: many UDP datagrams (USO).
    pub const UDP_L4: u8 = 5;
    /// Added to a type: the TCP segment has ECN's CWR set.
    pub const ECN: u8 = 0x80;

    /// The features that a device needs for it.
    #[must_use]
    pub fn needs(self) -> Features {
        let checksum = if self.needs_checksum() { Features::CSUM } else { Features::NONE };
        let segmentation = match self.gso_type & !Self::ECN {
            Self::TCPV4 => Features::HOST_TSO4,
            Self::TCPV6 => Features::HOST_TSO6,
            Self::UDP => Features::HOST_UFO,
            Self::UDP_L4 => Features::HOST_USO,
            _ => Features::NONE,
        };
        let ecn = if self.gso_type & Self::ECN == 0 { Features::NONE } else { Features::HOST_ECN };
        checksum | segmentation | ecn
    }

    /// Whether the checksum must still be calculated.
    #[must_use]
    pub fn needs_checksum(self) -> bool {
        // Section 5.1.6.4.1: with RSC_INFO the checksum's fields have another meaning.
        self.flags & (Self::NEEDS_CSUM | Self::RSC_INFO) == Self::NEEDS_CSUM
    }

    /// The metadata for a device with these features, if the frame matches it.
    ///
    /// # Safety
    /// `length` bytes at `data` must be readable.
    pub(in crate::net) unsafe fn checked(
        self,
        data: *const u8,
        length: usize,
        can: Features,
    ) -> Result<Self, Refusal> {
        //  SAFETY: guaranteed by the caller.
        let exact = unsafe { self.exact(data, length) }?;
        let missing = exact.needs() - can;
        if missing == Features::NONE { Ok(exact) } else { Err(Refusal::NotNegotiated(missing)) }
    }

    /// The same for a received frame that is forwarded: a checksum that the device does not support
    /// is calculated here.
    ///
    /// # Safety
    /// `length` bytes at `data` must be readable and writable.
    pub(in crate::net) unsafe fn adapted(
        self,
        data: *mut u8,
        length: usize,
        can: Features,
    ) -> Result<Self, Refusal> {
        // On reception it is a hint (section 5.1.6.4.2), so it is determined again.
        let offload = Self { hdr_len: 0, ..self };
        // SAFETY: the caller's promise.
        match unsafe { offload.checked(data, length, can) } {
            Err(Refusal::NotNegotiated(Features::CSUM)) => {
                // SAFETY: the caller's promise.
                unsafe { offload.complete(data, length) }?;
                Ok(Self::NONE)
            }
            other => other,
        }
    }

    /// Calculates the checksum if needed (section 5.1.6.4.1), ignoring segmentation.
    ///
    /// # Errors
    /// [`Refusal::Checksum`].
    ///
    /// # Safety
    /// `length` bytes at `data` must be readable and writable.
    pub(crate) unsafe fn complete(self, data: *mut u8, length: usize) -> Result<(), Refusal> {
        if !self.needs_checksum() {
            return Ok(());
        }
        let (start, field) = self.checksum(length)?;
        // SAFETY: `start` is below `length`, which the caller vouches for.
        let sum = unsafe { sum(data.add(start), length - start) };
        // Zero means "none" in UDP; its complement is equivalent (RFC 768).
        let checksum = match !sum {
            0 => 0xffff,
            checksum => checksum,
        };
        let [high, low] = checksum.to_ne_bytes();
        // SAFETY: `field` and the byte behind it are below `length`.
        unsafe {
            data.add(field).write_volatile(high);
            data.add(field + 1).write_volatile(low);
        }
        Ok(())
    }

    /// Where the checksummed bytes start, and where the checksum is.
    fn checksum(self, length: usize) -> Result<(usize, usize), Refusal> {
        let (start, offset) = (self.csum_start, self.csum_offset);
        let field = usize::from(start) + usize::from(offset);
        if field + 2 > length {
            return Err(Refusal::Checksum { start, offset, length });
        }
        Ok((start.into(), field))
    }

    /// The metadata with the exact header length, and without fields that no device should get.
    ///
    /// # Safety
    /// As for [`Self::checked`].
    unsafe fn exact(self, data: *const u8, length: usize) -> Result<Self, Refusal> {
        if self.flags & Self::RSC_INFO != 0 {
            return Err(Refusal::Coalesced);
        }
        if self.needs_checksum() {
            self.checksum(length)?;
        }
        let (gso, ecn) = (self.gso_type & !Self::ECN, self.gso_type & Self::ECN != 0);
        if gso == Self::GSO_NONE && !ecn {
            return Ok(if self.needs_checksum() {
                Self { flags: Self::NEEDS_CSUM, gso_type: 0, hdr_len: 0, gso_size: 0, ..self }
            } else {
                Self::NONE
            });
        }
        let tcp = matches!(gso, Self::TCPV4 | Self::TCPV6);
        if name(gso).is_none() || ecn && !tcp {
            return Err(Refusal::Type(self.gso_type));
        }
        if !self.needs_checksum() {
            return Err(Refusal::NoChecksum);
        }
        if self.gso_size == 0 {
            return Err(Refusal::NoSize);
        }
        let right = if tcp { 16 } else { 6 };
        if self.csum_offset != right {
            return Err(Refusal::Field { offset: self.csum_offset, right });
        }
        let start = usize::from(self.csum_start);
        let least = start + if tcp { 20 } else { 8 };
        if start < ETHERNET || least > length {
            return Err(Refusal::Headers { need: least.max(ETHERNET), length });
        }
        // SAFETY: each index is below `length`, which the caller vouches for.
        let byte = |at: usize| unsafe { data.add(at).read_volatile() };
        let ethertype = ethertype(start, byte);
        let fits = match gso {
            Self::TCPV4 => ethertype == IPV4,
            Self::TCPV6 => ethertype == IPV6,
            _ => matches!(ethertype, IPV4 | IPV6),
        };
        if !fits {
            return Err(Refusal::Protocol { gso_type: gso, ethertype });
        }
        let need = if tcp { start + 4 * usize::from(byte(start + 12) >> 4) } else { least };
        let hdr_len = match u16::try_from(need) {
            Ok(hdr_len) if need >= least && need <= length => hdr_len,
            _ => return Err(Refusal::Headers { need: need.max(least), length }),
        };
        if self.hdr_len != 0 && (self.hdr_len < hdr_len || usize::from(self.hdr_len) > length) {
            return Err(Refusal::HeaderLength { says: self.hdr_len, is: need, length });
        }
        Ok(Self { flags: Self::NEEDS_CSUM, hdr_len, ..self })
    }
}

/// The EtherType after the VLAN tags, if these end before `end`, which is at least 14.
fn ethertype(end: usize, byte: impl Fn(usize) -> u8) -> u16 {
    let mut at = ETHERNET - 2;
    loop {
        let ethertype = u16::from_be_bytes([byte(at), byte(at + 1)]);
        if !matches!(ethertype, 0x8100 | 0x88a8) || at + 6 > end {
            return ethertype;
        }
        at += 4;
    }
}

/// The ones' complement sum of the bytes, as 16-bit numbers in native order, which does not matter
/// to it (RFC 1071).
///
/// # Safety
/// `length` bytes at `from` must be readable.
unsafe fn sum(from: *const u8, length: usize) -> u16 {
    let mut chunk = [0u8; CHUNK];
    let mut sum = 0u64;
    let mut at = 0;
    while at < length {
        let count = CHUNK.min(length - at);
        // SAFETY: these bytes are below `length`; copied, because others may write to them.
        unsafe { std::ptr::copy_nonoverlapping(from.add(at), chunk.as_mut_ptr(), count) };
        // The last number is padded with zeros.
        let whole = count.next_multiple_of(4).min(CHUNK);
        chunk[count..whole].fill(0);
        for word in chunk[..whole].chunks_exact(4) {
            sum += u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
        }
        at += count;
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(all(test, not(loom)))]
#[path = "offload_tests.rs"]
mod tests;
