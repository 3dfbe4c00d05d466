"""The tree against a real directory: random operations on both, the same outcome and the same picture after every step.

`OUTPUTD_NIGHTLY=1` runs it for thousands of steps.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from typing import Final

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from outputd._proto import remote_execution_pb2 as reapi
from outputd.digest import Digest
from outputd.tree.identity import remember_all
from outputd.tree.merkle import Sealed, seal
from outputd.tree.node import (
    EXECUTABLE_MODE,
    FILE_MODE,
    GRANULE,
    Child,
    Directory,
    File,
    Local,
    Node,
    Special,
    Symlink,
    pack,
    packable,
    packed_attributes,
    packed_content,
    packed_ino,
)
from outputd.tree.rules import RENAME_EXCHANGE, RENAME_NOREPLACE
from outputd.tree.status import Status
from outputd.tree.tree import Tree
from tests.unit.tree import real
from tests.unit.tree.kept import SHA256, Kept, check, collapsed, picture

NIGHTLY = "OUTPUTD_NIGHTLY" in os.environ

NAMES = st.sampled_from([b"a", b"b", b"c"])
MODES = st.sampled_from([0o755, 0o700, 0o644, 0o600, 0o555])
FLAGS = st.sampled_from([0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE])

Path = tuple[bytes, ...]


def taken(machine: TreeAgainstDirectory) -> st.SearchStrategy[Path]:
    return st.sampled_from(machine.existing() or [(b"a",)])


def within(machine: TreeAgainstDirectory) -> st.SearchStrategy[Path]:
    directories = [p for p in machine.existing() if len(p) < 4 and os.path.isdir(machine.path(p))]
    return st.tuples(st.sampled_from([(), *directories]), NAMES).map(lambda place: (*place[0], place[1]))


ANY: st.SearchStrategy[Path] = st.lists(NAMES, min_size=1, max_size=3).map(tuple)
TAKEN: st.SearchStrategy[Path] = st.runner().flatmap(taken)
"""Where something stands."""
WITHIN: st.SearchStrategy[Path] = st.runner().flatmap(within)
"""A name in a directory that is there."""
OLD = TAKEN | TAKEN | ANY
NEW = WITHIN | WITHIN | ANY

STAGED: Final = {b"a": b"staged a", b"b": b"staged b"}
"""What a directory staged by digest holds."""


class TreeAgainstDirectory(RuleBasedStateMachine):
    """`tree` and the directory `base` hold the same. Real files hold a label; in the tree a label is a blob or a local file."""

    @initialize()
    def begin(self) -> None:
        self.base = tempfile.mkdtemp(prefix="outputd-model-").encode()
        self.subdirectories_count = real.counts_subdirectories(self.base)
        self.tree = Tree(uid=1000, gid=1000, now=1)
        self.volume = self.tree.add_volume(1, b"base", 1)
        self.kept = Kept()
        self.now = 1
        self.restarts = 0
        self.keys = 0
        self.old_keys = 0
        """Local files up to this one were there at the last restart."""
        self.labels: dict[int, bytes] = {}
        """Of local files, by key."""
        self.blobs: dict[Digest, bytes] = {}
        self.freed: set[int] = set()
        # Something to begin with, sealed, so that not every example has to find it first.
        self.stage((b"a", b"c"), b"x")
        self.stage((b"b", b"a"), b"y")
        self.link((b"a", b"c"), (b"b", b"c"))
        self.stage_directory((b"c", b"a"))
        self.restart(compare=True)

    def teardown(self) -> None:
        if not hasattr(self, "base"):
            return
        try:
            self.compare_all()
        finally:
            shutil.rmtree(self.base)

    # both sides

    def tick(self) -> int:
        self.now += GRANULE // 4 + 1
        return self.now

    def existing(self) -> list[Path]:
        """All paths at which something stands."""
        skip = len(self.base) + 1
        return sorted(
            tuple(os.path.join(directory, name)[skip:].split(b"/"))
            for directory, directories, files in os.walk(self.base)
            for name in (*directories, *files)
        )

    def path(self, path: Path) -> bytes:
        return b"/".join((self.base, *path))

    def both(self, operation: Callable[[], Status], expected: Status) -> bool:
        """Whether it was done; it was on either side or on none."""
        status = self.kept.run(operation)
        assert status is expected
        return status is Status.OK

    def directory(self, path: Path) -> Directory | Status:
        """Where a name is to be looked up (path_resolution(7)); all symlinks dangle."""
        directory = self.volume.root
        for name in path:
            node = self.lookup(directory, name)
            if node is None or isinstance(node, Symlink):
                return Status.ABSENT
            if not isinstance(node, Directory):
                return Status.NOT_DIRECTORY
            directory = node
        return directory

    def lookup(self, directory: Directory, name: bytes) -> Node | None:
        return self.kept.run(lambda: self.tree.lookup(directory, name))

    def find(self, path: Path) -> tuple[Directory, Node] | None:
        directory = self.directory(path[:-1])
        if isinstance(directory, Status):
            return None
        node = self.lookup(directory, path[-1])
        return None if node is None else (directory, node)

    def at(self, path: Path, operation: Callable[[Directory, bytes], Status]) -> Callable[[], Status]:
        """The operation on the parent directory and the name, or why there is no such directory."""

        def located() -> Status:
            directory = self.directory(path[:-1])
            return directory if isinstance(directory, Status) else operation(directory, path[-1])

        return located

    def blob(self, label: bytes) -> Digest:
        digest = Digest.of(SHA256, label)
        self.blobs[digest] = label
        return digest

    def local(self) -> Local:
        self.keys += 1
        local = Local(self.keys)
        self.labels[local.key] = b"local %d" % local.key
        local.size = len(self.labels[local.key])
        return local

    # names

    @rule(path=NEW)
    def mkdir(self, path: Path) -> None:
        def make(directory: Directory, name: bytes) -> Status:
            made = self.tree.make_directory(directory, name, 0o755, uid=1000, gid=1000, now=self.tick())
            return made if isinstance(made, Status) else Status.OK

        self.both(self.at(path, make), real.make_directory(self.path(path)))

    @rule(path=NEW)
    def create(self, path: Path) -> None:
        local = self.local()
        there = real.create(self.path(path), self.labels[local.key])
        if not self.enter(path, File(FILE_MODE, self.tick(), local), there):
            del self.labels[local.key]

    @rule(path=NEW, to=st.sampled_from([b"nowhere", b"/no/where", b"\xff"]))
    def symlink(self, path: Path, to: bytes) -> None:
        self.enter(path, Symlink(to, self.tick()), real.attempt(lambda: os.symlink(to, self.path(path))))

    @rule(path=NEW)
    def mkfifo(self, path: Path) -> None:
        def make() -> None:
            os.mkfifo(self.path(path))
            os.chmod(self.path(path), 0o644)

        self.enter(path, Special(stat.S_IFIFO | 0o644, self.tick(), 0), real.attempt(make))

    def enter(self, path: Path, node: Node, expected: Status) -> bool:
        return self.both(
            self.at(
                path, lambda d, name: self.tree.create(d, name, node, uid=1000, gid=1000, now=self.tick())
            ),
            expected,
        )

    @rule(old=OLD, new=NEW)
    def link(self, old: Path, new: Path) -> None:
        def link() -> Status:
            parent = self.directory(old[:-1])
            if isinstance(parent, Status):
                return parent
            node = self.lookup(parent, old[-1])
            if node is None:
                return Status.ABSENT
            return self.at(new, lambda d, name: self.tree.link(node, d, name, self.tick()))()

        self.both(link, real.link(self.path(old), self.path(new)))

    @rule(old=OLD, new=NEW, flags=FLAGS)
    def rename(self, old: Path, new: Path, flags: int) -> None:
        def rename() -> Status:
            source = self.directory(old[:-1])
            if isinstance(source, Status):
                return source
            target = self.directory(new[:-1])
            if isinstance(target, Status):
                return target
            return self.tree.rename(source, old[-1], target, new[-1], flags, self.tick())

        self.both(rename, real.rename(self.path(old), self.path(new), flags))

    @rule(path=OLD)
    def unlink(self, path: Path) -> None:
        expected = real.attempt(lambda: os.unlink(self.path(path)))
        self.both(self.at(path, lambda d, name: self.tree.unlink(d, name, self.tick())), expected)

    @rule(path=OLD)
    def rmdir(self, path: Path) -> None:
        expected = real.attempt(lambda: os.rmdir(self.path(path)))
        self.both(self.at(path, lambda d, name: self.tree.remove_directory(d, name, self.tick())), expected)

    # what protocols do

    def parents(self, path: Path) -> Directory:
        """The creating walk on both sides."""
        directory = self.volume.root
        for depth, name in enumerate(path[:-1], 1):
            directory = self.kept.run(lambda d=directory, n=name: self.tree.descend(d, n, self.tick()))  # type: ignore[misc]
            there = self.path(path[:depth])
            if not os.path.isdir(there):
                real.remove(there)
                real.make_directory(there)
        return directory

    def place(self, path: Path, node: Child) -> bytes:
        """Put a node at a path; what stood there in the real directory is gone, and its path returned."""
        directory = self.parents(path)
        self.kept.run(lambda: self.tree.place(directory, path[-1], node, self.tick()))
        real.remove(self.path(path))
        return self.path(path)

    @rule(path=NEW, label=st.sampled_from([b"x", b"y"]))
    def stage(self, path: Path, label: bytes) -> None:
        staged = pack(EXECUTABLE_MODE, packable(self.tick()), self.blob(label))
        assert staged is not None
        there = self.place(path, staged)
        real.create(there, label)
        os.chmod(there, 0o755)

    @rule(path=NEW)
    def stage_directory(self, path: Path) -> None:
        message = reapi.Directory()
        for name, label in STAGED.items():
            digest = self.blob(label)
            node = message.files.add(name=name.decode(), is_executable=True)
            node.digest.hash, node.digest.size_bytes = digest.hash_hex, digest.size
        encoded = message.SerializeToString(deterministic=True)
        digest = Digest.of(SHA256, encoded)
        self.kept.directories[digest] = encoded
        there = self.place(path, collapsed(self.volume, digest, now=packable(self.tick())))
        real.make_directory(there)
        for name, label in STAGED.items():
            real.create(there + b"/" + name, label)
            os.chmod(there + b"/" + name, 0o755)

    @rule(path=OLD)
    def withdraw(self, path: Path) -> None:
        directory = self.directory(path[:-1])
        if isinstance(directory, Directory):
            self.kept.run(lambda: self.tree.withdraw(directory, path[-1], self.tick()))
            real.remove(self.path(path))

    @rule(path=OLD | st.just(()))
    def clear(self, path: Path) -> None:
        directory = self.directory(path)
        if isinstance(directory, Directory):
            self.tree.clear(directory, self.tick())
            for name in os.listdir(self.path(path)):
                real.remove(self.path((*path, name)))

    # content and attributes

    @rule(path=OLD, mode=MODES)
    def chmod(self, path: Path, mode: int) -> None:
        found = self.find(path)
        if found is None or isinstance(found[1], Symlink):
            return
        node = found[1]
        if isinstance(node, Directory):
            mode |= 0o700
        executable = node.mode & 0o100
        node.mode = stat.S_IFMT(node.mode) | mode
        node.ctime = self.tick()
        if isinstance(node, File) and node.mode & 0o100 != executable:
            self.tree.set_content(node, node.content)
        self.tree.outdate_attributes(node)
        os.chmod(self.path(path), mode)

    @rule(path=OLD, as_blob=st.booleans())
    def write(self, path: Path, as_blob: bool) -> None:
        found = self.find(path)
        if found is None or not isinstance(found[1], File):
            return
        node = found[1]
        old = node.content
        new: Digest | Local
        if as_blob:  # what ingest does with a local file
            new = self.blob(self.label(node))
        else:
            new = self.local()
            with open(self.path(path), "r+b") as file:
                file.write(self.labels[new.key])
                file.truncate()
            node.mtime = node.ctime = self.tick()
        self.tree.set_content(node, new)
        if isinstance(old, Local):
            self.freed.add(old.key)  # by whoever replaced it

    @rule(path=OLD)
    def renew(self, path: Path) -> None:
        """What comes before a write in place to a blob that the kernel reads itself; but for the inode number, nobody sees it."""
        found = self.find(path)
        if found is not None and isinstance(file := found[1], File) and isinstance(file.content, Digest):
            assert self.kept.run(lambda: self.tree.renew(file)) is Status.OK

    @rule(path=OLD | st.just(()), mtime=st.integers(-(1 << 62), 1 << 62))
    def utimens(self, path: Path, mtime: int) -> None:
        if path:
            found = self.find(path)
            if found is None:
                return
            node = found[1]
        else:
            node = self.volume.root
        if isinstance(node, Directory):
            self.kept.run(lambda: self.tree.children(node))
        node.mtime = mtime
        self.tree.outdate_attributes(node)

    @rule(path=OLD)
    def remember(self, path: Path) -> None:
        found = self.find(path)
        if found is not None:
            self.tree.remember(found[1], found[0])

    @rule(path=OLD | st.just(()))
    def list(self, path: Path) -> None:
        """What a READDIRPLUS does."""
        directory = self.directory(path)
        if isinstance(directory, Directory):
            names = self.kept.run(lambda: sorted(self.tree.children(directory)))
            inos, found = remember_all(directory, names)
            assert [packed_ino(c) if isinstance(c, bytes) else c.ino for c in found] == inos
            assert [self.tree.children(directory)[name] for name in names] == found

    @precondition(lambda self: self.tree.inodes.listed)
    @rule(data=st.data(), ask=st.booleans())
    def forget_or_ask_for_what_was_listed(self, data: st.DataObject, ask: bool) -> None:
        listed = self.tree.inodes.listed
        ino = data.draw(st.sampled_from(sorted(listed)))
        if ask:
            node = self.tree.inodes[ino]
            assert (node.ino, node.lookups) == (ino, 1)
        else:
            self.tree.forget(ino, 1)
        assert ino not in listed

    @precondition(lambda self: len(self.tree.inodes) > 1)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        ino = data.draw(st.sampled_from(sorted(self.tree.inodes)[1:]))
        self.tree.forget(ino, self.tree.inodes[ino].lookups)

    # sealing

    @rule()
    def seal(self) -> None:
        """And seal again from nothing: what was known must have been true."""
        self.reap()
        sealed = self.kept.seal(self.tree, self.volume)
        stack = [self.volume.root]
        while stack:
            directory = stack.pop()
            if directory.children is not None:
                directory.digest = directory.record = None
                stack.extend(node for node in directory.children.values() if isinstance(node, Directory))
        assert self.kept.seal(self.tree, self.volume) == sealed

    @rule(changed=NEW, after=st.integers(1, 6))
    def seal_while_something_changes(self, changed: Path, after: int) -> None:
        self.reap()
        while (lacking := self.tree.lacking(self.volume)) is not None:
            self.kept.load(lacking)
        result: Sealed | None = None
        for number, step in enumerate(seal(self.volume.root, SHA256, self.kept), 1):
            if isinstance(step, Sealed):
                result = step
            elif number == after:
                self.stage(changed, b"meanwhile")
                self.reap()
        assert result is not None
        tree, again = self.kept.reopen(self.volume, result, 10_000 + self.now)
        changes = self.volume.changes
        # Otherwise the change was to a name of a node that has others nobody looked at: for the next seal.
        if self.tree.lacking(self.volume) is None and self.volume.changes == changes:
            assert picture(self.kept, tree, again.root) == picture(self.kept, self.tree, self.volume.root)

    @rule(compare=st.booleans())
    def restart(self, compare: bool) -> None:
        """Collapse everything through a seal, to be loaded again as it is needed."""
        self.reap()
        sealed = self.kept.seal(self.tree, self.volume)
        self.restarts += 1
        tree, again = self.kept.reopen(self.volume, sealed, 1 + self.restarts)
        if compare:
            beside, copy = self.kept.reopen(self.volume, sealed, 20_000 + self.restarts)
            assert picture(self.kept, beside, copy.root) == picture(self.kept, self.tree, self.volume.root)
        self.tree, self.volume = tree, again
        self.old_keys = self.keys

    # what must always hold

    @rule()
    def compare_all(self) -> None:
        """Everything, loaded or not, and that nothing local is leaked."""
        self.reap()
        self.kept.load_all(self.volume.root)
        while (lacking := self.tree.lacking(self.volume)) is not None:
            self.kept.load(lacking)
        self.reap()
        self.compare(exact=True)
        # A restart forgets what only the kernel knew, and older ones may go unseen with a collapsed directory.
        new = {key for key in self.labels if key > self.old_keys}
        assert self.locals_in_use() & new == new - self.freed

    @invariant()
    def same(self) -> None:
        self.reap()
        if self.volume.root.children is not None:
            check(self.volume)
            self.compare(exact=False)
        for ino, node in self.tree.inodes.items():
            assert node.ino == ino and node.lookups > 0
        for ino, page in self.tree.inodes.listed.items():
            child = self.tree.children(page.directory)[page.names[page.inos.index(ino)]]
            assert isinstance(child, bytes) and packed_ino(child) == ino and ino not in self.tree.inodes

    def compare(self, *, exact: bool) -> None:
        """What is loaded; link counts only if `exact`, for names that went unseen are not noticed at once."""
        stack: list[tuple[Directory, bytes]] = [(self.volume.root, self.base)]
        inodes: dict[int, Node] = {}
        while stack:
            directory, path = stack.pop()
            if directory.children is None:
                assert not exact
                continue
            assert sorted(directory.children) == sorted(os.listdir(path))
            for name, node in directory.children.items():
                there = path + b"/" + name
                found = os.lstat(there)
                if isinstance(node, Directory):
                    stack.append((node, there))
                    assert node.mode == found.st_mode
                    if self.subdirectories_count and node.children is not None:
                        assert node.nlink == found.st_nlink
                    continue
                if isinstance(node, bytes):
                    assert (packed_ino(node) or -1) not in self.tree.inodes
                    assert packed_attributes(node)[0] == found.st_mode
                    assert real.content(there) == self.label(node)
                    assert not exact or found.st_nlink == 1
                    continue
                assert stat.S_IFMT(node.mode) == stat.S_IFMT(found.st_mode)
                assert inodes.setdefault(found.st_ino, node) is node
                assert node.nlink >= found.st_nlink
                if exact:
                    assert node.nlink == found.st_nlink
                if not isinstance(node, Symlink):
                    assert node.mode == found.st_mode
                if not isinstance(node, Special):
                    expected = node.target if isinstance(node, Symlink) else self.label(node)
                    assert real.content(there) == expected
        assert len(set(inodes.values())) == len(inodes)

    def label(self, node: Child) -> bytes:
        if isinstance(node, bytes):
            return self.blobs[packed_content(node)]
        assert isinstance(node, File)
        if isinstance(node.content, Local):
            assert node.content.key not in self.freed
            return self.labels[node.content.key]
        return self.blobs[node.content]

    def reap(self) -> None:
        """What drive does with the tree's leavings."""
        dropped, self.tree.dropped = self.tree.dropped, []
        for top in dropped:
            for file in self.tree.dismantle(top):
                if file is not None:
                    assert isinstance(file.content, Local)
                    assert file.nlink == file.lookups == 0
                    assert file.content.key not in self.freed
                    self.freed.add(file.content.key)

    def locals_in_use(self) -> set[int]:
        """Keys of local files with a name, or known to the kernel."""
        found = {
            node.content.key
            for node in self.tree.inodes.values()
            if isinstance(node, File) and isinstance(node.content, Local)
        }
        stack = [self.volume.root]
        while stack:
            directory = stack.pop()
            for node in (directory.children or {}).values():
                if isinstance(node, Directory):
                    stack.append(node)
                elif isinstance(node, File) and isinstance(node.content, Local):
                    found.add(node.content.key)
        return found


TreeAgainstDirectory.TestCase.settings = settings(
    max_examples=600 if NIGHTLY else 80,
    stateful_step_count=100 if NIGHTLY else 40,
    deadline=None,
)
TestTree = pytest.mark.timeout(1800 if NIGHTLY else 300)(TreeAgainstDirectory.TestCase)
