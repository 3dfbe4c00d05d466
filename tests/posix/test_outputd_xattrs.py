"""The attributes with which outputd tells what it knows, and a mount without any."""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.posix.at import told
from tests.posix.mounted import Mounted, stage

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse"
)

DATA = b"staged elsewhere"
HASH = hashlib.sha256(DATA)


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    with Mounted(tmp_path_factory.mktemp("mounted"), xattrs=True) as served:
        yield served


def known(path: Path, what: str) -> object:
    return told(os.getxattr, path, f"user.outputd.{what}")


def test_a_blob_tells_its_digest_and_where_it_is(mounted: Mounted) -> None:
    stage(mounted.control, "blob", DATA, here=False)
    path = mounted.root / "blob"
    assert known(path, "digest") == f"sha256:{HASH.hexdigest()}/{len(DATA)}"
    assert os.getxattr(path, "user.outputd.hash") == HASH.digest()
    assert known(path, "local") == "0"
    path.read_bytes()
    assert known(path, "local") == "1"


def test_a_written_file_has_a_digest_once_it_was_hashed(mounted: Mounted) -> None:
    path = mounted.root / "written"
    with path.open("wb") as file:
        file.write(DATA)
        file.flush()
        assert (known(path, "digest"), known(path, "hash"), known(path, "local")) == (
            "ENODATA",
            "ENODATA",
            "1",
        )
    until = time.monotonic() + 30
    while known(path, "digest") == "ENODATA" and time.monotonic() < until:
        time.sleep(0.01)  # nothing but the attribute itself tells when
    assert known(path, "digest") == f"sha256:{HASH.hexdigest()}/{len(DATA)}"


def test_they_are_not_listed_and_not_set(mounted: Mounted) -> None:
    path = mounted.root / "listed"
    path.write_bytes(DATA)
    os.setxattr(path, "user.mine", b"1")
    assert os.listxattr(path) == ["user.mine"]
    assert told(os.setxattr, path, "user.outputd.digest", b"1") == "EPERM"
    assert told(os.removexattr, path, "user.outputd.local") == "EPERM"
    assert known(path, "unknown") == "ENODATA"
    assert known(mounted.root, "local") == "ENODATA"


def test_above_the_output_paths_nothing_is_set(mounted: Mounted) -> None:
    assert told(os.setxattr, mounted.root.parent, "user.x", b"1") == "EROFS"


def test_without_the_setting_there_are_none(tmp_path: Path) -> None:
    with Mounted(tmp_path) as served:
        path = served.root / "file"
        path.write_bytes(DATA)
        refused = errno.errorcode[errno.EOPNOTSUPP]
        assert told(os.setxattr, path, "user.x", b"1") == refused
        assert (known(path, "digest"), told(os.listxattr, path)) == (refused, refused)
