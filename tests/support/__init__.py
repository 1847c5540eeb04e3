"""What the tests share: frames, waiting, counting interruptions."""
