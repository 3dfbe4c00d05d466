"""Bytes by digest: the local content-addressed store, the remote one, and the two behind one door."""
