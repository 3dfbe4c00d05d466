"""The file system itself: names, nodes, identity and Merkle digests. No await, no I/O, no protocol."""
