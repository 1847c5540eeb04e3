//! The modern PCI transport (VIRTIO 1.3, section 4.1.4) over QTest MMIO.

use super::{QueueAddresses, RESET_TIMEOUT, Transport, await_reset};
use crate::memory::Iova;
use crate::notify::{Doorbell, Notification};
use crate::qtest::QTest;
use crate::virtio::{Features, Status};
use crate::{Error, Result};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The absolute MMIO addresses of a device's register structures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    /// The common configuration (section 4.1.4.3).
    pub common: u64,
    /// The ISR status (section 4.1.4.5).
    pub isr: u64,
    /// The device configuration (section 4.1.4.6).
    pub device: u64,
    /// The notification area (section 4.1.4.4).
    pub notify: u64,
    /// The length of the device configuration in bytes.
    pub device_length: u32,
    /// Bytes between the notification addresses of consecutive `queue_notify_off`.
    pub notify_multiplier: u32,
}

/// Offsets in the common configuration structure.
mod common {
    pub const DEVICE_FEATURE_SELECT: u64 = 0;
    pub const DEVICE_FEATURE: u64 = 4;
    pub const DRIVER_FEATURE_SELECT: u64 = 8;
    pub const DRIVER_FEATURE: u64 = 12;
    pub const CONFIG_MSIX_VECTOR: u64 = 16;
    pub const NUM_QUEUES: u64 = 18;
    pub const DEVICE_STATUS: u64 = 20;
    pub const CONFIG_GENERATION: u64 = 21;
    pub const QUEUE_SELECT: u64 = 22;
    pub const QUEUE_SIZE: u64 = 24;
    pub const QUEUE_MSIX_VECTOR: u64 = 26;
    pub const QUEUE_ENABLE: u64 = 28;
    pub const QUEUE_NOTIFY_OFF: u64 = 30;
    pub const QUEUE_DESC: u64 = 32;
    pub const QUEUE_DRIVER: u64 = 40;
    pub const QUEUE_DEVICE: u64 = 48;
    pub const QUEUE_NOTIF_CONFIG_DATA: u64 = 56;
    pub const QUEUE_RESET: u64 = 58;
}

/// The most attempts to read the configuration consistently.
const GENERATION_TRIES: usize = 16;

/// A modern virtio device on QEMU's PCI bus.
#[derive(Debug)]
pub struct ModernPci {
    qtest: QTest,
    registers: Registers,
    /// Held from a write of a select register to the last access that depends on it.
    select: Mutex<()>,
    /// The accepted features, which determine the format of notifications.
    accepted: Mutex<Features>,
}

impl ModernPci {
    /// The device with these registers.
    #[must_use]
    pub fn new(qtest: QTest, registers: Registers) -> Self {
        Self { qtest, registers, select: Mutex::new(()), accepted: Mutex::default() }
    }

    fn at(&self, offset: u64) -> u64 {
        self.registers.common.wrapping_add(offset)
    }

    fn read16(&self, offset: u64) -> Result<u16> {
        Ok(self.qtest.read(self.at(offset), 2)? as u16)
    }

    fn write16(&self, offset: u64, value: u16) -> Result<()> {
        self.qtest.write(self.at(offset), 2, u64::from(value))
    }

    /// Writes a 64-bit field as two halves (section 4.1.3.1).
    fn write_address(&self, offset: u64, address: Iova) -> Result<()> {
        self.qtest.write(self.at(offset), 4, address.0 & 0xffff_ffff)?;
        self.qtest.write(self.at(offset + 4), 4, address.0 >> 32)
    }

    fn check_config(&self, offset: usize, len: usize) -> Result<u64> {
        let end = offset.checked_add(len);
        if end.is_none_or(|end| end > self.registers.device_length as usize) {
            return Err(Error::Device(format!(
                "cannot access bytes {offset}..{} of the device configuration, which has {}",
                offset.saturating_add(len),
                self.registers.device_length
            )));
        }
        Ok(self.registers.device.wrapping_add(offset as u64))
    }

    fn selecting(&self, queue: u16) -> Result<std::sync::MutexGuard<'_, ()>> {
        let guard = self.select.lock().unwrap_or_else(PoisonError::into_inner);
        self.write16(common::QUEUE_SELECT, queue)?;
        Ok(guard)
    }
}

impl Transport for ModernPci {
    fn device_features(&self) -> Result<Features> {
        let _guard = self.select.lock().unwrap_or_else(PoisonError::into_inner);
        let mut features = 0;
        for word in 0..4 {
            self.qtest.write(self.at(common::DEVICE_FEATURE_SELECT), 4, word)?;
            let bits = self.qtest.read(self.at(common::DEVICE_FEATURE), 4)? & 0xffff_ffff;
            features |= u128::from(bits) << (32 * word);
        }
        Ok(Features(features))
    }

    fn set_driver_features(&self, features: Features) -> Result<()> {
        let _guard = self.select.lock().unwrap_or_else(PoisonError::into_inner);
        for word in 0..4u32 {
            // A device before VIRTIO 1.2 has two words, so write the others only if necessary.
            if word < 2 || features.word(word) != 0 {
                self.qtest.write(self.at(common::DRIVER_FEATURE_SELECT), 4, word.into())?;
                self.qtest.write(self.at(common::DRIVER_FEATURE), 4, features.word(word).into())?;
            }
        }
        *self.accepted.lock().unwrap_or_else(PoisonError::into_inner) = features;
        Ok(())
    }

    fn status(&self) -> Result<Status> {
        Ok(Status::from_bits_retain(self.qtest.read(self.at(common::DEVICE_STATUS), 1)? as u8))
    }

    fn set_status(&self, status: Status) -> Result<()> {
        self.qtest.write(self.at(common::DEVICE_STATUS), 1, u64::from(status.bits()))?;
        if !status.is_empty() {
            return Ok(());
        }
        await_reset(|| self.status())
    }

    fn read_config(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        let address = self.check_config(offset, out.len())?;
        for _ in 0..GENERATION_TRIES {
            let before = self.qtest.read(self.at(common::CONFIG_GENERATION), 1)?;
            let bytes = self.qtest.read_bytes(address, out.len())?;
            if self.qtest.read(self.at(common::CONFIG_GENERATION), 1)? == before {
                if bytes.len() != out.len() {
                    return Err(Error::Qemu(format!(
                        "QTest returned {} bytes instead of {}",
                        bytes.len(),
                        out.len()
                    )));
                }
                out.copy_from_slice(&bytes);
                return Ok(());
            }
        }
        Err(Error::Device(format!(
            "the device configuration changed during each of {GENERATION_TRIES} reads"
        )))
    }

    fn write_config(&self, offset: usize, data: &[u8]) -> Result<()> {
        let address = self.check_config(offset, data.len())?;
        self.qtest.write_bytes(address, data)
    }

    fn queue_count(&self) -> Result<u16> {
        self.read16(common::NUM_QUEUES)
    }

    fn queue_max_size(&self, queue: u16) -> Result<u16> {
        let _guard = self.selecting(queue)?;
        self.read16(common::QUEUE_SIZE)
    }

    fn setup_queue(&self, queue: u16, addresses: &QueueAddresses) -> Result<()> {
        let _guard = self.selecting(queue)?;
        self.write16(common::QUEUE_SIZE, addresses.size)?;
        self.write16(common::QUEUE_MSIX_VECTOR, addresses.vector)?;
        // Section 4.1.5.1.2.1: a device without resources for it reads back NO_VECTOR.
        let vector = self.read16(common::QUEUE_MSIX_VECTOR)?;
        if vector != addresses.vector {
            return Err(Error::Device(format!(
                "the device refused MSI-X vector {} for queue {queue} (it reads back {vector:#x})",
                addresses.vector
            )));
        }
        self.write_address(common::QUEUE_DESC, addresses.descriptors)?;
        self.write_address(common::QUEUE_DRIVER, addresses.driver)?;
        self.write_address(common::QUEUE_DEVICE, addresses.device)?;
        self.write16(common::QUEUE_ENABLE, 1)
    }

    fn reset_queue(&self, queue: u16) -> Result<()> {
        let _guard = self.selecting(queue)?;
        self.write16(common::QUEUE_RESET, 1)?;
        // Section 4.1.4.3.2: the reset is complete when this reads 0.
        let deadline = Instant::now() + RESET_TIMEOUT;
        while self.read16(common::QUEUE_RESET)? != 0 || self.read16(common::QUEUE_ENABLE)? != 0 {
            if Instant::now() > deadline {
                return Err(Error::Device(format!(
                    "the reset of queue {queue} is not complete after {RESET_TIMEOUT:?}"
                )));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn doorbell(&self, queue: u16) -> Result<Doorbell> {
        let accepted = *self.accepted.lock().unwrap_or_else(PoisonError::into_inner);
        let _guard = self.selecting(queue)?;
        let offset = self.read16(common::QUEUE_NOTIFY_OFF)?;
        let value = if accepted.contains(Features::NOTIF_CONFIG_DATA) {
            Some(self.read16(common::QUEUE_NOTIF_CONFIG_DATA)?)
        } else {
            None
        };
        let address = self
            .registers
            .notify
            .wrapping_add(u64::from(offset) * u64::from(self.registers.notify_multiplier));
        let data = accepted.contains(Features::NOTIFICATION_DATA);
        let notification = Notification { value, data };
        Ok(Doorbell::Mmio { qtest: self.qtest.clone(), address, notification })
    }

    fn set_config_vector(&self, vector: u16) -> Result<()> {
        self.write16(common::CONFIG_MSIX_VECTOR, vector)?;
        let now = self.read16(common::CONFIG_MSIX_VECTOR)?;
        if now == vector {
            return Ok(());
        }
        Err(Error::Device(format!(
            "the device refused MSI-X vector {vector} for configuration changes (it reads back {now:#x})"
        )))
    }

    fn take_isr(&self) -> Result<u8> {
        Ok(self.qtest.read(self.registers.isr, 1)? as u8)
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
#[path = "modern_tests.rs"]
mod tests;
