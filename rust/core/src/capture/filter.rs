//! Selects frames by a BPF program that libpcap compiled and runs.

use crate::{Error, Result};

/// libpcap's `bpf_filter`. Arguments: program, frame, length on the wire, captured length. Returns
/// 0 if the frame does not match.
pub type RawFilter = unsafe extern "C" fn(*const u64, *const u8, u32, u32) -> u32;

/// The size of an instruction (`struct bpf_insn`) in bytes.
const INSTRUCTION: usize = 8;
/// The most instructions in a program, as in the kernel (`BPF_MAXINSNS`).
const MOST: usize = 4096;

/// A compiled filter.
#[derive(Clone, Debug)]
pub struct Filter {
    function: RawFilter,
    program: Vec<u64>,
    text: String,
}

impl Filter {
    /// Makes a filter from a program, the address of `bpf_filter`, and the source expression.
    ///
    /// # Safety
    /// The address must be that of libpcap's `bpf_filter`, and stay valid; the program must have
    /// been compiled by libpcap.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an address in the first page, and for a program with no or too many
    /// instructions.
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
        // SAFETY: the caller guarantees that the function is there.
        let function = unsafe { std::mem::transmute::<usize, RawFilter>(address) };
        let program = program.chunks_exact(INSTRUCTION).map(word).collect();
        Ok(Self { function, program, text: text.to_owned() })
    }

    /// The expression that the filter was compiled from.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Whether a frame matches, given its first bytes and its length on the wire.
    pub(super) fn wants(&self, frame: &[u8], length: u32) -> bool {
        let held = frame.len().min(u32::MAX as usize) as u32;
        // SAFETY: libpcap compiled the program, and the frame is private memory of that length.
        unsafe { (self.function)(self.program.as_ptr(), frame.as_ptr(), length, held) != 0 }
    }
}
