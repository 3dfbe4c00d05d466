"""FORGETs: each counts, however many come at once, and who waits for the event loop is let in between."""

from __future__ import annotations

import asyncio
from pathlib import Path

from outputd.front.fuse.answers import Answers, Timeouts
from outputd.front.fuse.names import Names
from outputd.tree.identity import remember_all
from outputd.tree.node import EXECUTABLE_MODE, File, Local, PackedFile, packed_tail
from outputd.wire.fuse_abi import Opcode
from tests import fake_kernel as kernel
from tests.unit.drive.world import world
from tests.unit.tree.world import EMPTY

COUNT = 40_000


def test_a_huge_batch_is_worked_off_in_slices(tmp_path: Path) -> None:
    async def work() -> None:
        async with world(tmp_path) as w:
            packed = PackedFile(EMPTY + packed_tail(0, executable=True))
            for number in range(COUNT):
                w.tree.place(w.root, b"%d" % number, packed, 0)
            inos, _ = remember_all(w.root, list(w.tree.children(w.root)))
            gone = File(EXECUTABLE_MODE, 1, Local(1))
            w.tree.place(w.root, b"gone", gone, 1)
            inos.append(w.tree.remember(gone, w.root))
            w.tree.unlink(w.root, b"gone", 1)
            told: list[int] = []
            answers = Answers(w.tree, w.content, Timeouts(1, 1, 1))
            names = Names(w.tree, w.content, answers, lambda: told.append(len(w.tree.dropped)))
            ones = [kernel.forget_one(ino, 1) for ino in inos]
            message = bytearray(
                kernel.request(Opcode.BATCH_FORGET, kernel.batch_forget_in(len(ones), 0), *ones)
            )
            names.batch_forget(2, 0, 0, 0, memoryview(message), len(message))
            message[:] = bytes(len(message))  # the channel reads the next request into the same buffer
            assert 0 < len(w.tree.inodes.listed) < COUNT
            turns = 0
            while w.tree.inodes.listed or not told:
                turns += 1
                await asyncio.sleep(0)
            assert turns > 1 and told == [1] and w.tree.dropped == [gone]
            w.tree.dropped.clear()

    asyncio.run(work())
