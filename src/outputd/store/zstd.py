"""Zstandard as REv2 uses it, whole or piece by piece, with a limit on what may come out; never touches a store or a message.

Source: REv2, Compressor.ZSTD, and RFC 8878. A stream may be several frames one after the other (RFC 8878, section 3), and a few
bytes may stand for gigabytes: what a client sends is never unpacked further than the size that its digest tells.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Final

from outputd.errors import Invalid

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

# Of a shared library: 310 MB/s and 46 % of its size. The usual level 3: 120 MB/s, a Gigabit line, and 40 %.
_LEVEL: Final = 1
# What one step gives at most.
_PIECE: Final = 512 << 10


def compressed(data: bytes) -> bytes:
    """One frame."""
    return zstd.compress(data, _LEVEL)


def decompressed(data: bytes, size: int) -> bytes:
    """The `size` bytes that the frames in `data` stand for. Raises Invalid when they stand for anything else."""
    frames = Decompressing(size)
    pieces = list(frames.push(data))
    frames.end()
    return b"".join(pieces)


class Compressing:
    """One frame in pieces."""

    __slots__ = ("_frame",)

    def __init__(self) -> None:
        self._frame = zstd.ZstdCompressor(_LEVEL)

    def push(self, data: bytes | memoryview) -> bytes:
        """What there is to send so far, possibly nothing."""
        return self._frame.compress(data)

    def end(self) -> bytes:
        """The rest."""
        return self._frame.flush()


class Decompressing:
    """Frames that come in pieces. No more than `size` bytes ever come out."""

    __slots__ = ("_began", "_frame", "_left", "_size")

    def __init__(self, size: int) -> None:
        self._size = size
        self._left = size
        self._frame = zstd.ZstdDecompressor()
        self._began = False
        """Whether the frame has got any byte."""

    def push(self, data: bytes | memoryview) -> Iterator[bytes]:
        """The next bytes that came, unpacked. Raises Invalid for what is no Zstandard, or is more than `size`.

        To be gone through to its end before the next push.
        """
        while data or not self._frame.needs_input:
            if self._frame.eof:
                if not data:
                    return
                self._frame = zstd.ZstdDecompressor()
            self._began = True
            try:
                piece = self._frame.decompress(data, min(_PIECE, self._left + 1))
            except zstd.ZstdError as error:
                raise Invalid(f"the bytes that came are not Zstandard: {error}") from error
            data = self._frame.unused_data if self._frame.eof else b""
            if len(piece) > self._left:
                raise Invalid(f"the compressed bytes stand for more than the {self._size} of the blob")
            self._left -= len(piece)
            if piece:
                yield piece

    def end(self) -> None:
        """No more comes. Raises Invalid when less than `size` came out, or when a frame is cut off."""
        if self._began and not self._frame.eof:
            raise Invalid("the compressed bytes end within a frame")
        if self._left:
            raise Invalid(
                f"the compressed bytes stand for {self._size - self._left} bytes; expected {self._size}"
            )
