//! A capture file, which may be anything.

use std::io::Cursor;
use virtnic::capture::Reader;

/// Reads a file to its end: in order, in time, and without more than it has.
pub fn target(data: &[u8]) {
    let Ok(mut reader) = Reader::new("fuzz", Cursor::new(data.to_vec())) else { return };
    let mut bytes = Vec::new();
    let (mut frames, mut total) = (0, 0);
    loop {
        bytes.clear();
        match reader.next(&mut bytes) {
            Ok(Some(frame)) => assert!(bytes.len() <= frame.length as usize, "more than there was"),
            Ok(None) | Err(_) => break,
        }
        frames += 1;
        total += bytes.len();
        // A record has 16 bytes at least, in either format.
        assert!(frames * 12 <= data.len(), "{frames} frames of {} bytes", data.len());
        assert!(total <= data.len(), "{total} of {} bytes", data.len());
    }
    bytes.clear();
    assert!(matches!(reader.next(&mut bytes), Ok(None)), "frames after the end");
}
