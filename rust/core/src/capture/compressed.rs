//! Decompresses gzip and Zstandard files while they are read.

use flate2::read::MultiGzDecoder;
use ruzstd::decoding::StreamingDecoder;
use std::fs::File;
use std::io::{BufRead, BufReader, Chain, Cursor, Read, Result};

/// Bytes at the start of a file that are examined.
const HEAD: usize = 64 << 10;
/// The largest window of a Zstandard file, in bytes; that of `zstd --long` is the same.
const WINDOW: u64 = 128 << 20;

/// A file whose first bytes are read again.
type Rewound<R> = Chain<Cursor<Vec<u8>>, R>;

/// Returns a reader of the decompressed contents of a file.
pub(super) fn open(file: File) -> Result<Box<dyn Read + Send>> {
    let (head, file) = rewound(file)?;
    match head.as_slice() {
        [0x1f, 0x8b, ..] => Ok(Box::new(rewound(MultiGzDecoder::new(file))?.1)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok(Box::new(rewound(Frames::new(file)?)?.1)),
        _ => Ok(Box::new(file)),
    }
}

/// Reads the first bytes, and returns a source whose first read returns them in one piece.
fn rewound<R: Read>(mut source: R) -> Result<(Vec<u8>, Rewound<R>)> {
    let mut head = Vec::new();
    source.by_ref().take(HEAD as u64).read_to_end(&mut head)?;
    Ok((head.clone(), Cursor::new(head).chain(source)))
}

/// The contents of successive Zstandard frames.
struct Frames<R: Read>(Option<StreamingDecoder<BufReader<R>, ruzstd::decoding::FrameDecoder>>);

impl<R: Read> Frames<R> {
    fn new(source: R) -> Result<Self> {
        Self::next(BufReader::new(source))
    }
    fn next(source: BufReader<R>) -> Result<Self> {
        let decoder = StreamingDecoder::new_with_max_window_size(source, WINDOW);
        Ok(Self(Some(decoder.map_err(std::io::Error::other)?)))
    }
}

impl<R: Read> Read for Frames<R> {
    fn read(&mut self, into: &mut [u8]) -> Result<usize> {
        while let Some(frame) = &mut self.0 {
            let count = frame.read(into)?;
            if count > 0 || into.is_empty() {
                return Ok(count);
            }
            let Some(mut source) = self.0.take().map(StreamingDecoder::into_inner) else { break };
            if !source.fill_buf()?.is_empty() {
                *self = Self::next(source)?;
            }
        }
        Ok(0)
    }
}
