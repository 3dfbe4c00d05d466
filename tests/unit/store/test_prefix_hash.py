from __future__ import annotations

import os
from pathlib import Path

import pytest

from outputd.digest import Digest, DigestFunction
from outputd.store.prefix_hash import PrefixHash

DATA = os.urandom((3 << 20) + 17)


@pytest.mark.parametrize(
    "function", [DigestFunction.SHA256, DigestFunction.BLAKE3, DigestFunction.SHA256TREE]
)
@pytest.mark.parametrize("stops", [[], [1, 1, 1 << 20, 5], [len(DATA)], [len(DATA) + 5]])
def test_a_file_hashed_in_parts(tmp_path: Path, function: DigestFunction, stops: list[int]) -> None:
    (tmp_path / "file").write_bytes(DATA)
    with (tmp_path / "file").open("rb") as file:
        prefix = PrefixHash(function, file.fileno())
        for stop in stops:
            prefix.advance(stop)
        assert prefix.end == min(max(stops, default=0), len(DATA))
        assert prefix.digest(len(DATA)) == Digest.of(function, DATA)


def test_a_file_that_is_shorter_has_another_digest(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(DATA)
    with (tmp_path / "file").open("rb") as file:
        prefix = PrefixHash(DigestFunction.SHA256, file.fileno())
        assert prefix.digest(len(DATA) + 1).size == len(DATA)
