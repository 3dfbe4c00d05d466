"""Bytes to values and back, for the protocols we speak ourselves; never waits, never touches a file or a socket."""
