//! Addresses as the device sees them.

use super::pages::human;
use crate::{Error, Result};
use std::fmt;
use std::ops::Range;

/// An address in the device's address space (what VIRTIO calls a physical address).
///
/// A value, never a cast pointer: a [`super::Region`] converts between offsets in the file and
/// `Iova`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Iova(pub u64);

impl Iova {
    /// The address `bytes` further on; wraps.
    #[must_use]
    pub const fn plus(self, bytes: u64) -> Self {
        Self(self.0.wrapping_add(bytes))
    }
}

impl fmt::Debug for Iova {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Iova({:#x})", self.0)
    }
}

impl fmt::Display for Iova {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Where the region lies in the device's address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// At the process's own virtual address (`iova="va"`); needs no privilege.
    Virtual,
    /// At the host-physical address (`iova="pa"`): contiguous and aligned to its size.
    ///
    /// The kernel may still migrate a hugepage later (memory hot-unplug, compaction for gigantic
    /// pages). The device is not affected: QEMU accesses the memory through the file, and the
    /// address is only its name on the device's side.
    Physical,
    /// At this address.
    At(Iova),
}

/// An explicit address must end at or below this: 2^40, the guest-physical address space of QEMU's
/// default CPU models.
///
/// With TCG a BAR works anywhere (tested up to 2^63 on QEMU 5.2, 7.2, 10.0 and 11.1), but under KVM
/// the memory becomes a memslot, which must be within the host processor's address space. Below
/// 2^40 works everywhere, and `Virtual` stays below it too.
pub const IOVA_LIMIT: u64 = 1 << 40;

/// Fixed addresses of a PC: a BAR there would hide something or be hidden.
const OCCUPIED: [(Range<u64>, &str); 2] = [
    (0..16 << 20, "the machine's RAM, VGA window and BIOS shadow"),
    (0xc000_0000..1 << 32, "the PC's 32-bit PCI window, IO-APIC, local APIC and BIOS"),
];

/// What in the PC the `len` bytes at `start` would overlap.
pub(super) fn overlapped(start: u64, len: u64) -> Option<(Range<u64>, &'static str)> {
    let end = start.saturating_add(len);
    OCCUPIED.iter().find(|(range, _)| start < range.end && range.start < end).cloned()
}

/// Whether a region of `size` bytes can lie at `at`.
pub(super) fn check_explicit(at: Iova, size: u64) -> Result<()> {
    let Iova(start) = at;
    if !start.is_multiple_of(size) {
        return Err(Error::Invalid(format!(
            "iova {at} is not a multiple of the size ({}): a PCI BAR is aligned to its size; \
             the nearest below is {:#x}",
            human(size),
            start - start % size,
        )));
    }
    if start.checked_add(size).is_none_or(|end| end > IOVA_LIMIT) {
        return Err(Error::Invalid(format!(
            "iova {at} with {} ends above {IOVA_LIMIT:#x} (2^40), the limit up to which every \
             accelerator maps memory; choose a lower address",
            human(size),
        )));
    }
    if let Some((range, what)) = overlapped(start, size) {
        return Err(Error::Invalid(format!(
            "iova {at} with {} overlaps {what} ({:#x} to {:#x}); choose an address from {:#x} \
             upwards",
            human(size),
            range.start,
            range.end - 1,
            size.max(1 << 32),
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const MIB: u64 = 1 << 20;

    fn refusal(at: u64, size: u64) -> String {
        match check_explicit(Iova(at), size) {
            Err(Error::Invalid(message)) => message,
            other => format!("not refused: {other:?}"),
        }
    }

    #[test]
    fn explicit_address_is_accepted_outside_the_pc() {
        for (at, size) in [
            (16 * MIB, 16 * MIB),
            (64 * MIB, 64 * MIB),
            (0xb000_0000, 256 * MIB),
            (1 << 32, 1 << 30),
            (IOVA_LIMIT - MIB, MIB),
        ] {
            check_explicit(Iova(at), size).unwrap();
        }
    }

    #[test]
    fn explicit_address_is_refused_with_what_it_overlaps() {
        assert!(refusal(0, MIB).contains("RAM"));
        assert!(refusal(15 * MIB, MIB).contains("RAM"));
        assert!(refusal(0xc000_0000, MIB).contains("IO-APIC"));
        assert!(refusal(0xfff0_0000, MIB).contains("BIOS"));
        assert!(refusal(0x8000_0000, 1 << 31).contains("PCI window"));
    }

    #[test]
    fn explicit_address_is_refused_unaligned_and_too_high() {
        assert!(refusal((1 << 32) + 4096, MIB).contains("not a multiple"));
        assert!(refusal(IOVA_LIMIT, MIB).contains("2^40"));
        assert!(refusal(u64::MAX - MIB + 1, MIB).contains("2^40"));
    }

    #[test]
    fn plus_wraps() {
        assert_eq!(Iova(u64::MAX).plus(1), Iova(0));
        assert_eq!(format!("{}", Iova(0x1000).plus(4)), "0x1004");
    }
}
