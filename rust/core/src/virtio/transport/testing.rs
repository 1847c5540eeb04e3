//! A fake legacy device at the other end of a QTest socket.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::NO_VECTOR;
use super::legacy::{LegacyPci, LegacyRegisters};
use crate::qtest::QTest;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub(crate) const BASE: u16 = 0xc040;
pub(crate) const LENGTH: u16 = 64;

/// The device's properties and registers.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) msix: bool,
    pub(crate) offered: u32,
    pub(crate) accepted: u32,
    pub(crate) sizes: Vec<u16>,
    pub(crate) pages: Vec<u32>,
    pub(crate) vectors: Vec<u16>,
    pub(crate) config_vector: u16,
    /// The number of its MSI-X vectors.
    pub(crate) most_vectors: u16,
    pub(crate) status: u8,
    pub(crate) isr: u8,
    pub(crate) config: Vec<u8>,
    /// The configuration changes after each of this many reads of it.
    pub(crate) changes: usize,
    /// Refuses every address.
    pub(crate) refuses: bool,
    pub(crate) selected: usize,
    /// Every write: register, width, value.
    pub(crate) written: Vec<(u16, u8, u32)>,
    /// Every read of the configuration: offset and width.
    pub(crate) config_reads: Vec<(u16, u8)>,
}

impl State {
    pub(crate) fn new(msix: bool, offered: u32) -> Self {
        Self {
            msix,
            offered,
            accepted: 0,
            sizes: vec![256, 128, 64],
            pages: vec![0; 3],
            vectors: vec![NO_VECTOR; 3],
            config_vector: NO_VECTOR,
            most_vectors: 3,
            status: 0xff,
            isr: 0,
            config: vec![0x52, 0x54, 0, 1, 2, 3, 1, 0, 1, 0, 0xdc, 5],
            changes: 0,
            refuses: false,
            selected: 0,
            written: Vec::new(),
            config_reads: Vec::new(),
        }
    }

    fn config_at(&self, register: u16) -> Option<u16> {
        register.checked_sub(if self.msix { 24 } else { 20 })
    }

    fn get(&mut self, register: u16, width: u8) -> u32 {
        if let Some(offset) = self.config_at(register) {
            assert!(register.is_multiple_of(width.into()), "{register} by {width} bytes");
            self.config_reads.push((offset, width));
            let bytes = (0..u16::from(width)).rev();
            let value = bytes.fold(0, |value, i| {
                value << 8 | u32::from(*self.config.get(usize::from(offset + i)).unwrap_or(&0xff))
            });
            if self.changes > 0 {
                self.changes -= 1;
                self.config[0] = self.config[0].wrapping_add(1);
            }
            return value;
        }
        let queue = self.selected;
        match (register, width) {
            (0, 4) => self.offered,
            (4, 4) => self.accepted,
            (8, 4) => self.pages.get(queue).copied().unwrap_or(0),
            (12, 2) => self.sizes.get(queue).copied().unwrap_or(0).into(),
            (18, 1) => self.status.into(),
            (19, 1) => std::mem::take(&mut self.isr).into(),
            (20, 2) => self.config_vector.into(),
            (22, 2) => self.vectors.get(queue).copied().unwrap_or(NO_VECTOR).into(),
            other => panic!("the driver read {other:?}"),
        }
    }

    fn set(&mut self, register: u16, width: u8, value: u32) {
        self.written.push((register, width, value));
        if let Some(offset) = self.config_at(register) {
            for (i, byte) in value.to_le_bytes()[..usize::from(width)].iter().enumerate() {
                self.config[usize::from(offset) + i] = *byte;
            }
            return;
        }
        let queue = self.selected;
        let has = |vector: u32| {
            let vector = vector as u16;
            if vector < self.most_vectors { vector } else { NO_VECTOR }
        };
        match (register, width) {
            (4, 4) => self.accepted = value,
            (8, 4) if self.refuses => {}
            (8, 4) => self.pages[queue] = value,
            (14, 2) => self.selected = value as usize,
            (16, 2) => {}
            (18, 1) if value == 0 => {
                (self.status, self.accepted) = (0, 0);
                self.pages.fill(0);
            }
            (18, 1) => self.status = value as u8,
            (20, 2) => self.config_vector = has(value),
            (22, 2) => self.vectors[queue] = has(value),
            other => panic!("the driver wrote {other:?}"),
        }
    }
}

/// A transport to a fake device, and the device.
pub(crate) fn legacy(state: State) -> (LegacyPci, Arc<Mutex<State>>) {
    let msix = state.msix;
    let state = Arc::new(Mutex::new(state));
    let (ours, theirs) = UnixStream::pair().unwrap();
    let device = state.clone();
    std::thread::spawn(move || serve(theirs, &device));
    let timeout = Duration::from_secs(10);
    let qtest = QTest::from_socket(OwnedFd::from(ours), timeout, None).unwrap();
    let registers = LegacyRegisters { base: BASE, length: LENGTH, msix };
    (LegacyPci::new(qtest, registers).unwrap(), state)
}

fn serve(mut socket: UnixStream, state: &Mutex<State>) {
    let lines = BufReader::new(socket.try_clone().unwrap()).lines();
    for line in lines.map_while(Result::ok) {
        let words: Vec<&str> = line.split(' ').collect();
        let number =
            |at: usize| u32::from_str_radix(words[at].trim_start_matches("0x"), 16).unwrap();
        let register = || number(1) as u16 - BASE;
        let width = match words[0].as_bytes().last() {
            Some(b'b') => 1,
            Some(b'w') => 2,
            _ => 4,
        };
        let answer = match words[0] {
            "inb" | "inw" | "inl" => {
                format!("OK {:#x}\n", state.lock().unwrap().get(register(), width))
            }
            "outb" | "outw" | "outl" => {
                state.lock().unwrap().set(register(), width, number(2));
                "OK\n".to_owned()
            }
            "endianness" => "OK little\n".to_owned(),
            other => panic!("the driver said {other}"),
        };
        if socket.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}
