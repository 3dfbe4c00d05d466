"""The tree as a Linux FUSE file system: the mount, the device, the session with the kernel, one operation an opcode."""
