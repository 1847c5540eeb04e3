//! Fuzz targets: what a hostile peer may send or write, as a function of random bytes.
//!
//! Each target is an ordinary function that panics where the driver does what it must not:
//! loses a buffer, believes a lie, keeps more than it may, or does not come to an end.
//!
//! - `cargo test -p virtnic-fuzz` replays the corpus, on any toolchain.
//! - `make fuzz` runs the targets under libFuzzer, which looks for new paths through the code.
//! - `cargo run -p virtnic-fuzz --bin TARGET FILE…` replays single files, such as a finding.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a panic is a finding")]

pub mod capture;
mod input;
pub mod ivshmem;
pub mod measure;
pub mod qtest;
pub mod ring;
pub mod stack;
pub mod streams;
pub mod vhost_user;

pub use input::Input;

/// A target.
pub type Target = fn(&[u8]);

/// Every target, by the name of its program and of its corpus.
pub const TARGETS: [(&str, Target); 9] = [
    ("ring_split", ring::split),
    ("ring_packed", ring::packed),
    ("qtest", qtest::target),
    ("ivshmem", ivshmem::target),
    ("stack", stack::target),
    ("vhost_user", vhost_user::target),
    ("capture", capture::target),
    ("streams", streams::target),
    ("measure", measure::target),
];

/// The program of a target: under libFuzzer the target, else a replay of files.
#[macro_export]
macro_rules! program {
    ($target:path) => {
        #[cfg(fuzzing)]
        libfuzzer_sys::fuzz_target!(|data: &[u8]| $target(data));
        /// A region is mapped between 64 GiB and 1 TiB, which AddressSanitizer leaves unused
        /// otherwise. It asks for this function by its name; without the sanitizer nobody does.
        // SAFETY: a name of the sanitizer's, with the signature that it declares.
        #[cfg(fuzzing)]
        #[unsafe(no_mangle)]
        pub extern "C" fn __asan_default_options() -> *const std::ffi::c_char {
            c"protect_shadow_gap=0".as_ptr()
        }
        #[cfg(not(fuzzing))]
        fn main() -> std::io::Result<()> {
            $crate::replay($target)
        }
    };
}

/// Gives each file named on the command line to a target.
///
/// # Errors
/// When a file cannot be read.
pub fn replay(target: Target) -> std::io::Result<()> {
    for name in std::env::args_os().skip(1) {
        target(&std::fs::read(name)?);
    }
    Ok(())
}
