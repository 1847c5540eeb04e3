//! Capture files: writes the frames that ports send and receive, and reads files for replay.
//!
//! `writer` has a thread that moves frames from the taps of ports to a pcapng file. `blocks`
//! encodes the blocks of the file, and `filter` selects frames. `reader` reads pcapng and classic
//! pcap, plain or `compressed`, with the crate `pcap-parser`. `tape` reads a file ahead for a
//! replay.

mod blocks;
mod compressed;
mod filter;
mod reader;
mod tape;
mod writer;

pub use filter::{Filter, RawFilter};
pub use reader::{Direction, Frame, Reader};
pub use tape::Tape;
pub use writer::{Counts, Interface, Options, Rotation, Writer, snap};
