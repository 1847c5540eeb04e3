//! Which frames are wanted: a program of libpcap's, which libpcap runs.

use crate::{Error, Result};

/// `bpf_filter` of libpcap: a program, a frame, its length, and how much of it is there. Not 0 where
/// the frame is wanted.
pub type RawFilter = unsafe extern "C" fn(*const u64, *const u8, u32, u32) -> u32;

/// Bytes of an instruction (`struct bpf_insn`).
const INSTRUCTION: usize = 8;
/// Instructions that a program has at most, as in the kernel (`BPF_MAXINSNS`).
const MOST: usize = 4096;

/// A compiled filter.
#[derive(Clone, Debug)]
pub struct Filter {
    function: RawFilter,
    program: Vec<u64>,
    text: String,
}

impl Filter {
    /// A program, what runs it, and what it was compiled from.
    ///
    /// # Safety
    /// At the address must be libpcap's `bpf_filter`, which stays there; the program must be one
    /// that libpcap compiled.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an address where there is no function, and for a program with no or too
    /// many instructions.
    pub unsafe fn at(address: usize, program: &[u8], text: &str) -> Result<Self> {
        let count = program.len() / INSTRUCTION;
        if address < 4096
            || !(1..=MOST).contains(&count)
            || !program.len().is_multiple_of(INSTRUCTION)
        {
            return Err(Error::Invalid(format!(
                "a filter of {} bytes at {address:#x} is none",
                program.len()
            )));
        }
        let word = |bytes: &[u8]| {
            let mut word = [0; INSTRUCTION];
            word.copy_from_slice(bytes);
            u64::from_ne_bytes(word)
        };
        // SAFETY: the caller vouches for what is there.
        let function = unsafe { std::mem::transmute::<usize, RawFilter>(address) };
        let program = program.chunks_exact(INSTRUCTION).map(word).collect();
        Ok(Self { function, program, text: text.to_owned() })
    }

    /// What it was compiled from.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Whether a frame of that length is wanted, of which these are the first bytes.
    pub(super) fn wants(&self, frame: &[u8], length: u32) -> bool {
        let held = frame.len().min(u32::MAX as usize) as u32;
        // SAFETY: a program that libpcap compiled, and private memory of that length.
        unsafe { (self.function)(self.program.as_ptr(), frame.as_ptr(), length, held) != 0 }
    }
}
