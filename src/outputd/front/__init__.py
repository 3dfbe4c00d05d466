"""The file systems we show the tree through; a front never meets an RPC, only the tree."""
