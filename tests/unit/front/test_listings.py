"""Listings: every name once, in pages, whatever went or came meanwhile and whoever goes on with another's cookie."""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TypeVar

import pytest

from outputd.front.fuse.answers import Answers, Timeouts
from outputd.front.fuse.listings import Listings
from outputd.tree.node import EXECUTABLE_MODE, File
from outputd.wire.fuse_abi import FOPEN_KEEP_CACHE, Opcode
from tests import fake_kernel as kernel
from tests.unit.drive.world import SHA256, World, world
from tests.unit.tree.world import EMPTY

Answer = TypeVar("Answer")
Entries = list[tuple[bytes, int]]
"""Names with the cookies behind them."""


class Reader:
    """What the kernel does with a directory."""

    def __init__(self, w: World) -> None:
        self.world = w
        tree = w.tree
        tree.remember(w.root, tree.outputs)
        self.listings = Listings(tree, Answers(tree, w.content, Timeouts(1, 1, 1)))

    def put(self, *names: bytes) -> None:
        for name in names:
            self.world.tree.place(self.world.root, name, File(EXECUTABLE_MODE, 5, EMPTY), 5)

    def open(self) -> tuple[int, int]:
        """Handle and flags."""
        reply = self._ask(self.listings.opendir, Opcode.OPENDIR, kernel.open_in())
        out = kernel.open_out.from_buffer_copy(reply, ctypes.sizeof(kernel.out_header))
        return out.fh, out.open_flags

    async def page(self, fh: int, cookie: int, size: int = 4096, *, plus: bool = False) -> Entries:
        handler = self.listings.readdirplus if plus else self.listings.readdir
        body = kernel.read_in(fh=fh, offset=cookie, size=size)
        answer = self._ask(handler, Opcode.READDIR, body)
        reply = answer if isinstance(answer, bytes) else await answer
        record = kernel.direntplus if plus else kernel.dirent
        at, found = ctypes.sizeof(kernel.out_header), []
        assert len(reply) - at <= size
        while at < len(reply):
            entry = record.from_buffer_copy(reply, at)
            entry = entry.dirent if plus else entry
            start = at + ctypes.sizeof(record)
            found.append((reply[start : start + entry.namelen], entry.off))
            at = start + (entry.namelen + 7 & ~7)
        return found

    async def rest(self, fh: int, cookie: int = 0, *, plus: bool = False) -> list[bytes]:
        names = []
        while page := await self.page(fh, cookie, plus=plus):
            names += [name for name, _ in page]
            cookie = page[-1][1]
        return names

    def _ask(self, handler: Callable[..., Answer], opcode: int, body: object) -> Answer:
        message = kernel.request(opcode, body)
        return handler(2, self.world.root.ino, 0, 0, memoryview(message), len(message))


def run(work: Callable[[Reader], Coroutine[None, None, None]], path: Path) -> None:
    async def run() -> None:
        async with world(path) as w:
            await work(Reader(w))

    asyncio.run(run())


def names_of(count: int) -> list[bytes]:
    return [b"name %d" % number for number in range(count)]


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("count", [0, 1, 300, 10_000])
def test_every_name_is_listed_once(tmp_path: Path, count: int, plus: bool) -> None:
    async def work(reader: Reader) -> None:
        reader.put(*names_of(count))
        fh, _ = reader.open()
        listed = await reader.rest(fh, plus=plus)
        assert listed[:2] == [b".", b".."]
        assert sorted(listed[2:]) == sorted(names_of(count))
        assert await reader.rest(fh, plus=plus) == listed

    run(work, tmp_path)


def test_cookies_rise_and_each_leads_back_to_its_place(tmp_path: Path) -> None:
    async def work(reader: Reader) -> None:
        reader.put(*names_of(1000))
        fh, _ = reader.open()
        entries = await reader.page(fh, 0, 1 << 20)
        cookies = [cookie for _, cookie in entries]
        assert cookies == sorted(set(cookies))
        names = [name for name, _ in entries]
        for index in (0, 1, 2, 500, 1000):
            assert await reader.rest(fh, cookies[index]) == names[index + 1 :]

    run(work, tmp_path)


@pytest.mark.parametrize("count", [1000, 6000])
def test_another_handle_goes_on_where_the_first_was_after_what_was_read_is_gone(
    tmp_path: Path, count: int
) -> None:
    """As the kernel does when the listing it had cached has become stale."""

    async def work(reader: Reader) -> None:
        reader.put(*names_of(count))
        first, _ = reader.open()
        page = await reader.page(first, 0, 8000)
        read = [name for name, _ in page]
        for name in read[2:]:
            reader.world.tree.unlink(reader.world.root, name, 6)
        second, _ = reader.open()
        rest = await reader.rest(second, page[-1][1])
        assert sorted(read[2:] + rest) == sorted(names_of(count))
        assert await reader.rest(first, page[-1][1]) == rest

    run(work, tmp_path)


def test_a_reader_may_go_back(tmp_path: Path) -> None:
    async def work(reader: Reader) -> None:
        reader.put(*names_of(3000))
        fh, _ = reader.open()
        entries = await reader.page(fh, 0, 1 << 20)
        other, _ = reader.open()
        for index in (2900, 1500, 10):
            assert await reader.rest(other, entries[index][1]) == [name for name, _ in entries[index + 1 :]]

    run(work, tmp_path)


def test_names_that_come_are_seen_after_rewinding(tmp_path: Path) -> None:
    async def work(reader: Reader) -> None:
        reader.put(b"old")
        fh, _ = reader.open()
        await reader.rest(fh)
        reader.put(b"new")
        assert sorted(await reader.rest(fh, 2)) == [b"old"]
        assert sorted((await reader.rest(fh))[2:]) == [b"new", b"old"]

    run(work, tmp_path)


def test_the_kernel_may_keep_a_listing_until_something_changes(tmp_path: Path) -> None:
    async def work(reader: Reader) -> None:
        def kept() -> bool:
            return bool(reader.open()[1] & FOPEN_KEEP_CACHE)

        reader.put(b"a")
        assert [kept(), kept()] == [False, True]
        reader.world.tree.place(reader.world.root, b"b", File(EXECUTABLE_MODE, 9, EMPTY), 9)
        assert [kept(), kept()] == [False, True]
        reader.world.root.mtime = 5  # utimens(2) can bring back a time, and then changes the ctime
        reader.world.root.ctime = 10
        assert [kept(), kept()] == [False, True]
        reader.world.tree.forget(reader.world.root.ino, reader.world.root.lookups)
        reader.world.tree.remember(reader.world.root, reader.world.tree.outputs)
        assert not kept()

    run(work, tmp_path)


def test_listing_with_attributes_counts_references_but_for_dot_and_dot_dot(tmp_path: Path) -> None:
    async def work(reader: Reader) -> None:
        reader.put(b"a", b"b")
        root = reader.world.root
        before = root.lookups
        fh, _ = reader.open()
        await reader.rest(fh)
        assert not reader.world.tree.inodes.listed
        await reader.rest(fh, plus=True)
        a, b = (reader.world.tree.lookup(root, name) for name in (b"a", b"b"))
        assert a is not None and b is not None and (a.lookups, b.lookups) == (1, 1)
        assert root.lookups == before

    run(work, tmp_path)


def test_local_files_show_the_room_they_take(tmp_path: Path) -> None:
    async def work(reader: Reader) -> None:
        file = reader.world.written(b"sparse", b"x")
        reader.world.content.truncate(file, 1 << 20)
        fh, _ = reader.open()
        message = kernel.request(Opcode.READDIRPLUS, kernel.read_in(fh=fh, offset=2, size=4096))
        reply = reader.listings.readdirplus(2, reader.world.root.ino, 0, 0, memoryview(message), len(message))
        assert isinstance(reply, bytes)
        attributes = kernel.direntplus.from_buffer_copy(
            reply, ctypes.sizeof(kernel.out_header)
        ).entry_out.attr
        assert (attributes.size, attributes.blocks) == (1 << 20, 8)
        await reader.world.ingest.digest_of(file, SHA256)

    run(work, tmp_path)
