"""The journal against the tree: after any operations and a crash, what is played back is what there was.

The operations are those of test_tree_model.py, and the real directory is compared with what was played back too.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path as FilePath
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from outputd.builds.journal import Journal, read_journal
from outputd.builds.loading import Loading
from outputd.builds.replay import Replay
from outputd.disk.disk import RealDisk
from outputd.drive.loader import Loader
from outputd.tree.node import Directory
from outputd.tree.records import Reader, encode_leftover
from outputd.tree.tree import Tree
from tests.model.test_tree_model import NIGHTLY, TreeAgainstDirectory
from tests.unit.tree.kept import Kept, picture

BOOT = bytes(range(16))


class KeptLoader(Loader):
    """Loads from what was sealed."""

    def __init__(self, kept: Kept) -> None:
        self._kept = kept

    async def load(self, directory: Directory) -> None:
        self._kept.load(directory)


class JournalAgainstTree(TreeAgainstDirectory):
    """Every restart is a checkpoint, with which a journal begins; a crash plays back all journals since."""

    @initialize()
    def begin(self) -> None:
        self.journals = FilePath(tempfile.mkdtemp(prefix="outputd-journal-"))
        self.count = 0
        super().begin()

    def teardown(self) -> None:
        super().teardown()
        for path in self.journals.iterdir():
            path.unlink()
        self.journals.rmdir()

    @rule(compare=st.booleans())
    def restart(self, compare: bool) -> None:
        super().restart(compare)
        self.row = encode_leftover(
            b"", self.volume.root, self.volume.root.digest or b"", self.volume.root.record or b""
        )
        self.chain: list[str] = []
        self.begin_journal()

    def begin_journal(self) -> None:
        self.count += 1
        path = str(self.journals / str(self.count))
        self.chain.append(path)
        facts: dict[str, Any] = {"count": self.count}
        self.volume.log = Journal(path, self.count, RealDisk(), BOOT, lambda: facts)

    @rule()
    def crash(self) -> None:
        self.reap()
        self.volume.log.settle()
        tree = Tree(uid=1000, gid=1000, now=1)
        self.restarts += 1
        volume = tree.add_volume(1 + self.restarts, b"base", 1)
        _, root = Reader(self.row).leftover(volume)
        assert isinstance(root, Directory)
        for name in ("ino", "mode", "mtime", "ctime", "extra", "children", "digest", "record"):
            setattr(volume.root, name, getattr(root, name))
        replay = Replay(tree, volume, Loading(KeptLoader(self.kept)))
        for path in filter(os.path.exists, self.chain):
            asyncio.run(replay.run(read_journal(path, BOOT)))
        assert replay.replayed.left_out == 0
        for each, top in ((self.tree, self.volume), (tree, volume)):
            self.kept.load_all(top.root)  # then the links of what was removed unseen are known on both sides
            while (lacking := each.lacking(top)) is not None:
                self.kept.load(lacking)
        assert picture(self.kept, tree, volume.root) == picture(self.kept, self.tree, self.volume.root)
        here, there = volume.root, self.volume.root
        assert (here.mode, here.mtime, here.ctime) == (there.mode, there.mtime, there.ctime)
        self.reap()
        self.tree, self.volume = tree, volume
        self.old_keys = self.keys
        self.freed.clear()  # what was freed before is not remembered, and may be freed again
        self.begin_journal()


TestJournalAgainstTree = JournalAgainstTree.TestCase
TestJournalAgainstTree.settings = settings(
    max_examples=300 if NIGHTLY else 30, stateful_step_count=100 if NIGHTLY else 40, deadline=None
)
