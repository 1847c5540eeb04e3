//! The legacy PCI interface over QTest port I/O, of devices before VIRTIO 1.0 and of transitional
//! devices (VIRTIO 1.3, section 4.1.4.10; virtio 0.9.5, section 2.2).
//!
//! One I/O BAR has all registers. There are 32 feature bits and no FEATURES_OK; the device determines
//! the size of a queue, whose address is a page number; the configuration has no generation. Fields
//! have the guest's byte order, which the QTest client has checked to be little-endian.

use super::{NO_VECTOR, QueueAddresses, Transport, await_reset};
use crate::notify::Doorbell;
use crate::qtest::QTest;
use crate::virtio::{Features, Status};
use crate::{Error, Result};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The location of a device's legacy registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LegacyRegisters {
    /// The first I/O port of BAR 0.
    pub base: u16,
    /// The number of ports of BAR 0.
    pub length: u16,
    /// Whether MSI-X is enabled: then two vector registers precede the configuration.
    pub msix: bool,
}

/// Offsets in BAR 0 (section 4.1.4.10).
mod register {
    pub const DEVICE_FEATURES: u16 = 0;
    pub const DRIVER_FEATURES: u16 = 4;
    pub const QUEUE_ADDRESS: u16 = 8;
    pub const QUEUE_SIZE: u16 = 12;
    pub const QUEUE_SELECT: u16 = 14;
    pub const QUEUE_NOTIFY: u16 = 16;
    pub const DEVICE_STATUS: u16 = 18;
    pub const ISR_STATUS: u16 = 19;
    pub const CONFIG_VECTOR: u16 = 20;
    pub const QUEUE_VECTOR: u16 = 22;
    /// The device configuration without and with MSI-X.
    pub const CONFIG: u16 = 20;
    pub const CONFIG_MSIX: u16 = 24;
}

/// The unit of a queue's address and the alignment of its used ring.
const PAGE: u64 = 4096;
/// The most attempts to read the configuration consistently.
const TRIES: usize = 16;
/// The most queues: the number of MSI-X vectors (QEMU's limit is half of it).
const MOST_QUEUES: u16 = 2048;

/// The legacy interface of a legacy or transitional virtio device on QEMU's PCI bus.
#[derive(Debug)]
pub struct LegacyPci {
    qtest: QTest,
    registers: LegacyRegisters,
    /// Held from a write of the queue select register to the last access that depends on it.
    select: Mutex<()>,
}

impl LegacyPci {
    /// The device with these registers.
    ///
    /// # Errors
    /// [`Error::Invalid`] if they do not fit: there are 2^16 ports, and at least 20 or 24 registers.
    pub fn new(qtest: QTest, registers: LegacyRegisters) -> Result<Self> {
        let LegacyRegisters { base, length, msix } = registers;
        let least = if msix { register::CONFIG_MSIX } else { register::CONFIG };
        if length < least || base.checked_add(length - 1).is_none() {
            return Err(Error::Invalid(format!(
                "a virtio device's legacy registers take at least {least} ports below 0x10000, not \
                 {length} at {base:#x}"
            )));
        }
        Ok(Self { qtest, registers, select: Mutex::new(()) })
    }

    fn read(&self, offset: u16, width: u8) -> Result<u32> {
        self.qtest.port_in(self.registers.base.wrapping_add(offset), width)
    }

    fn write(&self, offset: u16, width: u8, value: u32) -> Result<()> {
        self.qtest.port_out(self.registers.base.wrapping_add(offset), width, value)
    }

    fn read16(&self, offset: u16) -> Result<u16> {
        Ok(self.read(offset, 2)? as u16)
    }

    fn selecting(&self, queue: u16) -> Result<MutexGuard<'_, ()>> {
        let guard = self.select.lock().unwrap_or_else(PoisonError::into_inner);
        self.write(register::QUEUE_SELECT, 2, queue.into())?;
        Ok(guard)
    }

    /// The register of the byte `offset` of the device configuration.
    fn config_at(&self, offset: usize, len: usize) -> Result<u16> {
        let start = if self.registers.msix { register::CONFIG_MSIX } else { register::CONFIG };
        let room = usize::from(self.registers.length - start);
        match offset.checked_add(len) {
            Some(end) if end <= room => Ok(start + offset as u16),
            _ => Err(Error::Device(format!(
                "cannot access bytes {offset}..{} of the device configuration: BAR 0 has room for \
                 {room}",
                offset.saturating_add(len)
            ))),
        }
    }

    /// Reads aligned fields of up to four bytes with one access each.
    fn read_config_once(&self, at: u16, out: &mut [u8]) -> Result<()> {
        let mut at = at;
        let mut rest = out;
        while !rest.is_empty() {
            let width = access_width(at, rest.len());
            let value = self.read(at, width)?;
            let (now, later) = rest.split_at_mut(width.into());
            now.copy_from_slice(&value.to_le_bytes()[..usize::from(width)]);
            rest = later;
            at += u16::from(width);
        }
        Ok(())
    }

    /// Sets a vector register and reads it back: a device without resources for the vector returns
    /// [`NO_VECTOR`] (section 4.1.5.1.2.1).
    fn set_vector(&self, offset: u16, vector: u16, of_what: &str) -> Result<()> {
        if !self.registers.msix {
            return match vector {
                NO_VECTOR => Ok(()),
                _ => Err(Error::Invalid(format!(
                    "MSI-X vector {vector} for {of_what}: MSI-X is not enabled, so the legacy \
                     interface has no vector registers"
                ))),
            };
        }
        self.write(offset, 2, vector.into())?;
        let now = self.read16(offset)?;
        if now == vector {
            return Ok(());
        }
        Err(Error::Device(format!(
            "the device refused MSI-X vector {vector} for {of_what} (it reads back {now:#x})"
        )))
    }
}

/// The widest aligned access at a register for at most `left` bytes.
fn access_width(at: u16, left: usize) -> u8 {
    match left {
        4.. if at.is_multiple_of(4) => 4,
        2.. if at.is_multiple_of(2) => 2,
        _ => 1,
    }
}

/// The page number of a queue, which is all that the device gets.
///
/// The available ring must directly follow the descriptors, and the used ring must be on the next page
/// (section 2.7.2).
fn page_number(queue: u16, addresses: &QueueAddresses) -> Result<u32> {
    let QueueAddresses { size, descriptors, driver, device, .. } = *addresses;
    let size = u64::from(size);
    let available = 16 * size;
    let used = (available + 6 + 2 * size).next_multiple_of(PAGE);
    let lies = |part: u64, offset: u64| descriptors.0.checked_add(offset) == Some(part);
    if !descriptors.0.is_multiple_of(PAGE) || !lies(driver.0, available) || !lies(device.0, used) {
        return Err(Error::Invalid(format!(
            "queue {queue} does not have the layout of the legacy interface (section 2.7.2): \
             descriptors at {:#x}, available ring at {:#x}, used ring at {:#x}",
            descriptors.0, driver.0, device.0
        )));
    }
    u32::try_from(descriptors.0 / PAGE).map_err(|_| {
        Error::Invalid(format!(
            "queue {queue} is at IOVA {:#x}, but the legacy interface only reaches the first 2^44 \
             bytes; choose a lower iova for the memory",
            descriptors.0
        ))
    })
}

impl Transport for LegacyPci {
    fn reset_queue(&self, queue: u16) -> Result<()> {
        Err(Error::Refused(format!(
            "the legacy interface cannot reset the single queue {queue} (RING_RESET)"
        )))
    }

    fn is_legacy(&self) -> bool {
        true
    }

    fn device_features(&self) -> Result<Features> {
        Ok(Features(self.read(register::DEVICE_FEATURES, 4)?.into()))
    }

    fn set_driver_features(&self, features: Features) -> Result<()> {
        let word = features.word(0);
        if features != Features(word.into()) {
            return Err(Error::Invalid(format!(
                "the legacy interface has 32 feature bits, so there is no {}",
                features - Features(word.into())
            )));
        }
        self.write(register::DRIVER_FEATURES, 4, word)
    }

    fn status(&self) -> Result<Status> {
        Ok(Status::from_bits_retain(self.read(register::DEVICE_STATUS, 1)? as u8))
    }

    fn set_status(&self, status: Status) -> Result<()> {
        self.write(register::DEVICE_STATUS, 1, status.bits().into())?;
        if !status.is_empty() {
            return Ok(());
        }
        await_reset(|| self.status())
    }

    /// There is no generation: two equal reads are consistent (section 2.5.4).
    fn read_config(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        let at = self.config_at(offset, out.len())?;
        let mut again = vec![0; out.len()];
        self.read_config_once(at, out)?;
        for _ in 0..TRIES {
            self.read_config_once(at, &mut again)?;
            if again == out {
                return Ok(());
            }
            out.copy_from_slice(&again);
        }
        Err(Error::Device(format!(
            "the device configuration changed between any two of {} reads",
            TRIES + 1
        )))
    }

    fn write_config(&self, offset: usize, data: &[u8]) -> Result<()> {
        let mut at = self.config_at(offset, data.len())?;
        let mut rest = data;
        while !rest.is_empty() {
            let width = access_width(at, rest.len());
            let (now, later) = rest.split_at(width.into());
            let value = now.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte));
            self.write(at, width, value)?;
            rest = later;
            at += u16::from(width);
        }
        Ok(())
    }

    /// There is no register for it: counts queues up to the first that does not exist.
    fn queue_count(&self) -> Result<u16> {
        for queue in 0..MOST_QUEUES {
            if self.queue_max_size(queue)? == 0 {
                return Ok(queue);
            }
        }
        Ok(MOST_QUEUES)
    }

    /// The only size of the queue.
    fn queue_max_size(&self, queue: u16) -> Result<u16> {
        let _guard = self.selecting(queue)?;
        self.read16(register::QUEUE_SIZE)
    }

    fn setup_queue(&self, queue: u16, addresses: &QueueAddresses) -> Result<()> {
        let page = page_number(queue, addresses)?;
        let _guard = self.selecting(queue)?;
        let size = self.read16(register::QUEUE_SIZE)?;
        if size != addresses.size {
            return Err(Error::Invalid(format!(
                "queue {queue} has {size} entries, not {}: a legacy device determines the size",
                addresses.size
            )));
        }
        self.set_vector(register::QUEUE_VECTOR, addresses.vector, &format!("queue {queue}"))?;
        self.write(register::QUEUE_ADDRESS, 4, page)?;
        let now = self.read(register::QUEUE_ADDRESS, 4)?;
        if now == page {
            return Ok(());
        }
        Err(Error::Device(format!(
            "the device did not take page {page:#x} for queue {queue} (it reads back {now:#x})"
        )))
    }

    fn doorbell(&self, _queue: u16) -> Result<Doorbell> {
        let port = self.registers.base.wrapping_add(register::QUEUE_NOTIFY);
        Ok(Doorbell::Port { qtest: self.qtest.clone(), port })
    }

    fn set_config_vector(&self, vector: u16) -> Result<()> {
        self.set_vector(register::CONFIG_VECTOR, vector, "configuration changes")
    }

    fn take_isr(&self) -> Result<u8> {
        Ok(self.read(register::ISR_STATUS, 1)? as u8)
    }

    fn check_signals(&self) -> Result<()> {
        self.qtest.check_signals()
    }

    fn alive(&self) -> Result<()> {
        match self.qtest.death() {
            None => Ok(()),
            Some(why) => Err(Error::QemuDied(why)),
        }
    }
}

#[cfg(all(test, not(loom)))]
#[path = "legacy_tests.rs"]
mod tests;
