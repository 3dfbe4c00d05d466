"""The longest step of sealing and of expanding one directory of 100,000 entries: `python -m bench.micro.large_directory`.

The event loop serves nobody during a step. Steps are measured in processor time, so that other work does not count.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Generator, Iterator
from typing import Any

from outputd.digest import Digest, DigestFunction
from outputd.drive.loader import decoding_directory
from outputd.tree.expand import expanding
from outputd.tree.identity import remember_all
from outputd.tree.merkle import Sealed, seal
from outputd.tree.node import Directory, PackedFile, packable, packed_tail
from outputd.tree.tree import Tree

SHA256 = DigestFunction.SHA256


class Kept:
    """A Sink in memory."""

    def __init__(self) -> None:
        self.messages: dict[bytes, bytes] = {}

    def directory(self, digest: Digest, message: bytes) -> None:
        self.messages[digest] = message

    def record(self, digest: bytes, record: bytes) -> None:
        self.messages[digest] = record


def timed(what: str, work: Iterator[Any] | Generator[Any, None, Any]) -> Any:
    """Run the work; its last value, or what it returns."""
    longest = whole = 0.0
    steps = 0
    last = None
    while True:
        began = time.thread_time()
        try:
            last = next(work)
        except StopIteration as end:
            last = end.value if end.value is not None else last
            break
        finally:
            took = time.thread_time() - began
            longest = max(longest, took)
            whole += took
            steps += 1
    print(f"{what:36} {whole * 1e3:8.1f} ms in {steps:5} steps, the longest {longest * 1e3:5.1f} ms")
    return last


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=100_000)
    options = parser.parse_args()
    gc.set_threshold(10_000, 2, 1_000_000)  # as the daemon does
    now = packable(time.time_ns())
    tree = Tree(uid=0, gid=0, now=now)
    root = tree.add_volume(1, b"base", now).root
    tail = packed_tail(now, executable=True)
    for number in range(options.files):
        name = b"output_file_%d.pic.o" % number
        tree.place(root, name, PackedFile(Digest.of(SHA256, name) + tail), now)
    kept = Kept()
    timed("seal, as staged", seal(root, SHA256, kept))
    remember_all(root, list(tree.children(root)))
    sealed = timed("seal, with inode numbers", seal(root, SHA256, kept))
    assert isinstance(sealed, Sealed)
    listing = timed("decode its message", decoding_directory(sealed.digest, kept.messages[sealed.digest]))
    again = Directory(root.mode, now, tree.add_volume(2, b"again", now))
    again.children = None
    again.digest, again.record = sealed
    timed("expand", expanding(again, listing, kept.messages[sealed.record]))
    timed("take apart", tree.dismantle(again))


if __name__ == "__main__":
    main()
