"""What every LocalStore must do, as one function: `check_local_store(make)`."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from outputd.digest import Digest, DigestFunction, empty_digest
from outputd.errors import Corrupt, Invalid
from outputd.store.base import LocalStore

SUPPORTED = [function for function in DigestFunction if function.supported]


def check_local_store(make: Callable[[], LocalStore], spare: str) -> None:
    """`make` gives a new, empty store; `spare` is a directory on its file system."""
    for function in SUPPORTED:
        _keeps_and_finds(make(), function)
        _has_the_empty_blob(make(), function)
    _refuses_wrong_bytes(make())
    _refuses_a_lie_about_the_size(make())
    _refuses_more_than_was_promised(make())
    _leaves_nothing_without_commit(make())
    _adopts(make(), spare)
    _lets_many_bring_the_same(make())
    _tells_true_numbers(make())
    with pytest.raises(Invalid, match="MURMUR3"):
        make().put(Digest.make(DigestFunction.MURMUR3, bytes(16), 1), b"x")


def content(fd: int | None) -> bytes:
    assert fd is not None
    try:
        return os.pread(fd, 1 << 20, 0)
    finally:
        os.close(fd)


def absent(store: LocalStore, digest: Digest) -> bool:
    """Whether every way of asking says so."""
    here = store.has(digest)
    fd = store.open(digest)
    assert (fd is not None) is here
    if fd is not None:
        os.close(fd)
    assert (store.read(digest) is not None) is here
    assert (store.missing([digest]) == set()) is here
    return not here


def _keeps_and_finds(store: LocalStore, function: DigestFunction) -> None:
    one, two, three = (Digest.of(function, data) for data in (b"one", b"two", b"three"))
    assert absent(store, one)
    store.put(one, b"one")
    with store.writer(two) as writer:
        writer.write(b"t")
        assert not store.has(two)
        writer.write(memoryview(b"wo"))
        writer.commit()
    assert content(store.open(one)) == b"one"
    assert store.read(two) == b"two"
    assert store.missing([one, two, three]) == {three}
    # Again, as when two clients upload the same.
    store.put(one, b"one")
    assert store.read(one) == b"one"
    fd = store.open(one)
    assert fd is not None
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(fd, b"x")
    assert not os.get_inheritable(fd)
    os.close(fd)


def _has_the_empty_blob(store: LocalStore, function: DigestFunction) -> None:
    empty = empty_digest(function)
    assert not absent(store, empty)
    assert content(store.open(empty)) == b""
    assert store.read(empty) == b""
    store.put(empty, b"")
    assert content(store.open(empty)) == b""
    assert absent(store, Digest.make(function, bytes(function.hash_length), 0))


def _refuses_wrong_bytes(store: LocalStore) -> None:
    digest = Digest.of(DigestFunction.SHA256, b"right")
    for wrong in (b"wrong", b"", b"righ", b"right and more"):
        with pytest.raises(Corrupt, match=digest.hash_hex):
            store.put(digest, wrong)
        assert absent(store, digest)


def _refuses_a_lie_about_the_size(store: LocalStore) -> None:
    digest = Digest.of(DigestFunction.SHA256, b"right")
    for size in (0, 4, 6, 1 << 40):
        lie = Digest.make(DigestFunction.SHA256, digest.hash, size)
        with pytest.raises(Corrupt):
            store.put(lie, b"right")
        store.put(digest, b"right")
        assert absent(store, lie)
        # Asking for a lie must not harm the truth.
        assert store.read(digest) == b"right"


def _refuses_more_than_was_promised(store: LocalStore) -> None:
    """At once: an endless upload must not fill the disk before somebody counts."""
    with store.writer(Digest.of(DigestFunction.SHA256, b"right")) as writer:
        writer.write(b"right")
        with pytest.raises(Corrupt, match="got 6 bytes or more; the digest says 5"):
            writer.write(b"!")


def _leaves_nothing_without_commit(store: LocalStore) -> None:
    digest = Digest.of(DigestFunction.SHA256, b"right")
    with store.writer(digest) as writer:
        writer.write(b"right")
    assert absent(store, digest)
    with pytest.raises(ZeroDivisionError), store.writer(digest) as writer:
        writer.write(b"right")
        raise ZeroDivisionError
    assert absent(store, digest)


def _adopts(store: LocalStore, spare: str) -> None:
    path = f"{spare}/local file"
    with open(path, "wb") as file:
        file.write(b"made here")
    digest = Digest.of(DigestFunction.BLAKE3, b"made here")
    store.adopt(path, digest)
    assert not os.path.exists(path)
    assert store.read(digest) == b"made here"
    fd = store.open(digest)
    assert fd is not None
    assert os.fstat(fd).st_mode & 0o777 == 0o444
    os.close(fd)


def _lets_many_bring_the_same(store: LocalStore) -> None:
    blobs = {Digest.of(DigestFunction.SHA256, data): data for data in (b"%d" % i * 1000 for i in range(10))}

    def bring(_: int) -> None:
        for digest, data in blobs.items():
            store.put(digest, data)
            assert store.read(digest) == data

    with ThreadPoolExecutor(8) as threads:
        for result in [threads.submit(bring, turn) for turn in range(8)]:
            result.result()
    assert store.missing(blobs) == set()


def _tells_true_numbers(store: LocalStore) -> None:
    usage = store.usage()
    assert 0 <= usage.available <= usage.free <= usage.total
    assert usage.total > 0
    assert 0 <= usage.files_free <= usage.files or usage.files == 0
