"""Public captures: read, compared with what libpcap reads, replayed into a TAP and compared."""
