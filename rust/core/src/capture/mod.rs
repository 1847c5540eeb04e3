//! Frames in files: what ports send and receive is written, and files are read and replayed.
//!
//! `writer` has a thread that empties the taps of ports into a pcapng file, of which `blocks` are
//! the blocks and `filter` says which frames go into it. `reader` reads pcapng and classic pcap, plain
//! or `compressed`, by the crate `pcap-parser`; `tape` reads ahead for who replays a file.

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
