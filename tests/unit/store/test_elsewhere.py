"""Looking for a blob in the other instances of the remote: only when its own has lost it, and only for who reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping

import pytest

from outputd.digest import Digest, DigestFunction
from outputd.errors import NotFound, OutputdError, Unavailable
from outputd.store.base import BlobStore, LocalStore, Ranges
from outputd.store.elsewhere import Elsewhere

A, B = (Digest.of(DigestFunction.SHA256, data) for data in (b"a", b"b"))


class Remote:
    """A BlobStore whose instances hold different blobs, and that writes down who was asked."""

    def __init__(
        self, blobs: dict[str, set[Digest]], asked: list[str], down: dict[str, OutputdError], name: str = ""
    ) -> None:
        self._blobs, self._asked, self._down, self._name = blobs, asked, down, name

    @property
    def local(self) -> LocalStore:
        raise AssertionError("not asked here")

    def of_instance(self, name: str) -> BlobStore:
        return Remote(self._blobs, self._asked, self._down, name)

    async def fetch(self, digest: Digest) -> None:
        self._asked.append(self._name)
        if self._name in self._down:
            raise self._down[self._name]
        if digest not in self._blobs.get(self._name, set()):
            raise NotFound(f"blob {digest} is not in {self._name!r}")

    async def fetch_many(self, digests: Collection[Digest]) -> dict[Digest, Exception]:
        failures: dict[Digest, Exception] = {}
        for digest in digests:
            try:
                await self.fetch(digest)
            except OutputdError as error:
                failures[digest] = error
        return failures

    async def read(self, digest: Digest) -> bytes:
        return b"read"

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        return set(digests) - self._blobs.get(self._name, set())

    def ranges(self, digest: Digest) -> Ranges | None:
        return None

    async def missing_remotely(self, digests: Collection[Digest]) -> set[Digest]:
        return await self.find_missing(digests)

    async def write(self, digest: Digest, data: AsyncIterator[bytes]) -> None:
        self._blobs.setdefault(self._name, set()).add(digest)

    async def write_many(self, blobs: Mapping[Digest, bytes]) -> dict[Digest, OutputdError]:
        self._blobs.setdefault(self._name, set()).update(blobs)
        return {}


def test_its_own_first_and_the_others_only_if_it_is_lost() -> None:
    async def run() -> None:
        asked: list[str] = []
        store = Elsewhere(Remote({"one": {A}, "two": {A, B}}, asked, {}), lambda: {"one", "two", "three"})
        await store.of_instance("one").fetch(A)
        assert asked == ["one"]
        asked.clear()
        await store.of_instance("one").fetch(B)
        assert asked == ["one", "three", "two"]
        assert await store.of_instance("one").read(B) == b"read"
        assert await store.of_instance("three").fetch_many([A, B]) == {}
        assert await store.of_instance("one").find_missing([A, B]) == {B}
        assert await store.of_instance("one").missing_remotely([A, B]) == {B}

    asyncio.run(run())


def test_what_is_nowhere_and_what_cannot_be_told() -> None:
    async def run() -> None:
        asked: list[str] = []
        down: dict[str, OutputdError] = {"two": Unavailable("two is away")}
        store = Elsewhere(Remote({"one": {A}, "two": {B}}, asked, down), lambda: {"one", "two"})
        with pytest.raises(NotFound, match="'one'"):
            await store.of_instance("one").fetch(B)
        asked.clear()
        with pytest.raises(Unavailable):
            await store.of_instance("two").fetch(A)
        assert asked == ["two"]  # it may have it
        failures = await store.of_instance("one").fetch_many([A, B])
        assert list(failures) == [B]

    asyncio.run(run())
