"""Stats: what each kind of path is answered with, digests of files written here, and what must not fail the others."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from outputd.builds.staging import TreeReference
from outputd.builds.stats import Known, Stat, Target
from outputd.digest import Digest, DigestFunction
from outputd.errors import Precondition, Unavailable
from tests.unit.builds.world import BASE, EXECROOT, PREFIX, SHA256, World, world

A = Digest.of(SHA256, b"a")


async def _stat(w: World, *paths: str, build_id: str = "b1") -> list[Stat]:
    return await w.builds.stats(build_id).of([path.encode() for path in paths])


async def _vectors(w: World) -> None:
    """The tree of the protocol's conformance vectors."""
    await w.start()
    await w.stage(("file", A), ("target", A), ("hello/x", A), ("directory/file", A))
    w.mkdir("nested")
    w.symlink("nested/rel_file", "../target")
    w.symlink("nested/rel_dir", "..")
    w.symlink("nested/abs", f"{PREFIX}/{BASE}/hello")
    w.symlink("nested/alias", f"{EXECROOT}/bazel-out/hello")
    w.symlink("nested/ext", "/etc/passwd")
    w.symlink("dangling", "nowhere")
    for index in range(41):
        w.symlink(f"chain{index}", f"chain{index + 1}")
    w.symlink("chain41", "file")


VECTORS: dict[str, Stat] = {
    "file": A,
    "directory": Known.DIRECTORY,
    "nested/rel_file": Target(b"../target"),
    "nested/rel_file/": Known.ABSENT,
    "nested/rel_dir": Target(b".."),
    "nested/rel_dir/file": A,
    "nested/abs": Target(f"{PREFIX}/{BASE}/hello".encode()),
    "nested/abs/x": A,
    "nested/alias/x": A,
    "nested/ext": Target(b"/etc/passwd"),
    "nested/ext/y": Known.OTHER,
    "../foo": Known.OTHER,
    "/etc/passwd": Known.OTHER,
    f"{PREFIX}/{BASE}/file": A,
    f"{EXECROOT}/bazel-out/nested/rel_file": Target(b"../target"),
    "nonexistent": Known.ABSENT,
    "nonexistent/x": Known.ABSENT,
    "file/x": Known.ABSENT,
    ".": Known.DIRECTORY,
    "": Known.DIRECTORY,
    "dangling": Target(b"nowhere"),
    "dangling/x": Known.ABSENT,
    "chain0": Target(b"chain1"),
    "chain0/": Known.OTHER,
    "chain2/": Known.ABSENT,
    "a\0b": Known.OTHER,
}


def test_every_vector(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await _vectors(w)
            for path, expected in VECTORS.items():
                # Between two others, whose answers it must not touch.
                stats = await _stat(w, "file", path, "hello/x")
                assert (path, stats) == (path, [A, expected, A])
                assert type(stats[1]) is type(expected)
            assert await _stat(w, *VECTORS) == list(VECTORS.values())
            assert w.cas.read_digests == []

    asyncio.run(run())


def test_a_file_written_here_gets_the_digest_of_the_builds_function(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.start(function=DigestFunction.BLAKE3)
            names = [f"f{index}" for index in range(100)]
            for name in names:
                w.write(name, name.encode())
            assert await _stat(w, *names) == [
                Digest.of(DigestFunction.BLAKE3, name.encode()) for name in names
            ]

    asyncio.run(run())


def test_a_file_open_for_writing_has_no_digest(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.start()
            file = w.write("out", b"begun", close=False)
            w.write("other", b"a")
            assert await _stat(w, "out", "other") == [Known.FILE, A]
            w.close(file)
            assert await _stat(w, "out") == [Digest.of(SHA256, b"begun")]

    asyncio.run(run())


def test_a_close_that_is_on_its_way_is_waited_for(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.start()
            file = w.write("out", b"a", close=False)
            # What the kernel sent is read in the next turn of the loop.
            asyncio.get_running_loop().call_soon(w.close, file)
            assert await _stat(w, "out") == [A]

    asyncio.run(run())


def test_a_file_removed_while_it_is_hashed_is_still_answered(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.start()
            w.write("out", b"x" * 100_000)
            asked = asyncio.create_task(_stat(w, "out"))
            await asyncio.sleep(0)
            w.unlink("out")
            assert (await asked)[0] in (Known.FILE, Digest.of(SHA256, b"x" * 100_000))

    asyncio.run(run())


def test_below_a_directory_that_cannot_be_loaded_nothing_is_known_and_it_is_asked_for_once(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            await w.start()
            await w.stage(("t", TreeReference(A, None)), ("file", A))
            w.cas.down = Unavailable("no route to the CAS")
            stats = w.builds.stats("b1")
            assert await stats.of([b"t/a", b"t/b", b"file", b"t"]) == [
                Known.OTHER,
                Known.OTHER,
                A,
                Known.DIRECTORY,
            ]
            assert await stats.of([b"t/c"]) == [Known.OTHER]
            assert len(w.cas.read_digests) == 1

    asyncio.run(run())


def test_an_unknown_build_is_refused_and_one_that_ended(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path) as w:
            with pytest.raises(Precondition, match="build_id 'nobody': no such build runs"):
                w.builds.stats("nobody")
            await w.start()
            stats = w.builds.stats("b1")
            await w.finalize("b1", successful=True)
            with pytest.raises(Precondition, match="it was ended"):
                await stats.of([b"x"])

    asyncio.run(run())
