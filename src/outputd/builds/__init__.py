"""What a build is: the verbs of every protocol (start, stage, stat, finalize, clean) without a protocol, and what survives."""
