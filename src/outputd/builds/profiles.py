"""The profiles that are kept, and those being recorded: a directory of text files. Never brings a file (prefetch.py does).

`NAME.profile` is a profile (drive/profile.py has the form). `NAME.recording` is one in the making, to which lines are added once a
second, the last one for a path counting: a SIGKILL takes the last second from it, and the next start goes on with it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from dataclasses import dataclass, replace
from typing import Final

from outputd.disk.atomic import make_directories, replace_file, sync_directory
from outputd.disk.disk import Disk
from outputd.drive.disk_error import disk_error
from outputd.drive.profile import (
    MOST_BYTES,
    Profile,
    check_name,
    decode,
    encode,
    head_of,
    line_of,
    salvage,
)
from outputd.drive.recording import Recording, Recordings
from outputd.errors import Exhausted, Invalid, NotFound, OutputdError, Precondition
from outputd.store.waiting import in_thread

_log = logging.getLogger(__name__)

_FLUSH: Final = 1.0
"""Seconds between two looks at what was read."""
_LONGEST: Final = 24 * 3600
"""Seconds after which a recording ends by itself: while it lasts, large files are read more slowly."""
_AGAIN: Final = 60.0
"""Seconds after which is tried again what the disk refused."""
_MOST: Final = 1000
"""Profiles."""
_PROFILE: Final = ".profile"
_RECORDING: Final = ".recording"


@dataclass(frozen=True, slots=True)
class About:
    """What a list tells of a profile."""

    name: str
    output_base_id: str = ""
    """Whose files were read."""
    recorded: int = 0
    """When that began, in seconds since 1970."""
    files: int = 0
    in_part: int = 0
    """Those of which not all was read."""
    complete: bool = True
    """False: more files were read than a profile takes."""
    recording: bool = False
    """It is being made."""
    error: str = ""
    """Why it cannot be read."""


@dataclass(slots=True)
class _UnderWay:
    """A recording and its file."""

    recording: Recording
    fd: int
    length: int
    """Bytes of the file that count."""
    later: float = 0.0
    """When to try again what failed, by time.monotonic()."""


class Profiles:
    """For one event loop. Everything raises Exhausted or Unavailable when the disk does not let us."""

    def __init__(self, directory: str, disk: Disk, recordings: Recordings) -> None:
        """Make it if need be, and go on with what was being recorded."""
        self._directory = directory
        self._disk = disk
        self._recordings = recordings
        self._under_way: dict[str, _UnderWay] = {}
        self._changing = asyncio.Lock()
        """Held by what changes the directory."""
        try:
            make_directories(disk, directory)
            for name in self._names(_RECORDING):
                self._resume(name)
        except OSError as error:
            raise disk_error(error, directory) from error

    async def run(self) -> None:
        """Keep what is recorded, until cancelled."""
        while True:
            await asyncio.sleep(_FLUSH)
            for name, under_way in list(self._under_way.items()):
                self._flush(name, under_way)
                profile = under_way.recording.profile
                if time.time() - profile.recorded > _LONGEST and time.monotonic() > under_way.later:
                    _log.warning("profile %s: recorded for a day, which is enough; it ends here", name)
                    try:
                        await self.stop(name)
                    except OutputdError as error:
                        under_way.later = time.monotonic() + _AGAIN
                        _log.warning("profile %s: cannot be kept yet: %s", name, error)

    def close(self) -> None:
        """What is being recorded is left for the next start to go on with."""
        for name, under_way in self._under_way.items():
            self._flush(name, under_way)
            self._recordings.end(under_way.recording)
            os.close(under_way.fd)
        self._under_way.clear()

    async def start(self, name: str, output_base_id: str) -> None:
        """Record from now on; a profile of this name stays until the recording is stopped. Raises Invalid, or Precondition when
        it is being recorded."""
        check_name(name)
        if not output_base_id:
            raise Invalid("output_base_id: empty, expected the id of an output base")
        async with self._changing:
            if name in self._under_way:
                raise Precondition(
                    f"profile {name}: is being recorded already; `outputd profile stop {name}` ends that"
                )
            self._check_room(name)
            profile = Profile(output_base_id, int(time.time()))
            head = head_of(profile)
            path = self._path(name, _RECORDING)
            try:
                await in_thread(replace_file, self._disk, path, head)
                fd = self._disk.open(path, os.O_WRONLY | os.O_APPEND)
            except OSError as error:
                raise disk_error(error, path) from error
            self._begin(name, _UnderWay(Recording(profile), fd, len(head)))

    async def stop(self, name: str, *, discard: bool = False) -> About:
        """Keep what was recorded, in place of an earlier profile of this name, or discard it. Raises NotFound when nothing is being
        recorded; where the disk refuses, the recording goes on."""
        async with self._changing:
            under_way = self._under_way.get(name)
            if under_way is None:
                raise NotFound(f"profile {name}: is not being recorded")
            self._recordings.end(under_way.recording)
            profile = under_way.recording.profile
            try:
                if not discard:
                    await self._write(name, profile)
                await self._remove(name, _RECORDING)
            except BaseException:
                self._recordings.begin(under_way.recording)
                raise
            os.close(under_way.fd)
            del self._under_way[name]
            return _about(name, profile)

    async def all(self) -> list[About]:
        """All of them by name; one that is recorded anew comes twice."""
        kept = await in_thread(self._read_all)
        making = [
            replace(_about(name, one.recording.profile), recording=True)
            for name, one in self._under_way.items()
        ]
        return sorted([*kept, *making], key=lambda about: (about.name, about.recording))

    async def text(self, name: str) -> bytes:
        """A profile as it is shared; of one that is recorded for the first time, what there is. Raises NotFound."""
        check_name(name)
        path = self._path(name, _PROFILE)
        try:
            return await in_thread(_read, path)
        except FileNotFoundError:
            if name in self._under_way:
                return encode(self._under_way[name].recording.profile)
            raise NotFound(f"profile {name}: there is none") from None
        except OSError as error:
            raise disk_error(error, path) from error

    async def get(self, name: str) -> Profile:
        """The same, read. Raises NotFound, or Invalid when somebody has spoilt it."""
        return await in_thread(decode, await self.text(name), self._path(name, _PROFILE))

    async def put(self, name: str, text: bytes) -> About:
        """Keep a profile that comes from elsewhere, in place of an earlier one. Raises Invalid."""
        check_name(name)
        profile = await in_thread(decode, text, f"profile {name}")
        async with self._changing:
            self._check_room(name)
            await self._write(name, profile)
        return _about(name, profile)

    async def delete(self, name: str) -> None:
        """Forget a profile, or what is being recorded of it. Raises NotFound."""
        check_name(name)
        async with self._changing:
            under_way = self._under_way.pop(name, None)
            if under_way is not None:
                self._recordings.end(under_way.recording)
                os.close(under_way.fd)
            elif name not in self._names(_PROFILE):
                raise NotFound(f"profile {name}: there is none")
            for suffix in (_RECORDING, _PROFILE):
                await self._remove(name, suffix)

    # files

    async def _write(self, name: str, profile: Profile) -> None:
        # A copy: what is read meanwhile must not change it under the thread that writes.
        text = await in_thread(encode, replace(profile, files=dict(profile.files)))
        path = self._path(name, _PROFILE)
        try:
            await in_thread(replace_file, self._disk, path, text)
        except OSError as error:
            raise disk_error(error, path) from error

    async def _remove(self, name: str, suffix: str) -> None:
        path = self._path(name, suffix)

        def remove() -> None:
            try:
                self._disk.unlink(path)
            except FileNotFoundError:
                return  # a profile that was never stopped, or one that was not recorded here
            sync_directory(self._disk, self._directory)

        try:
            await in_thread(remove)
        except OSError as error:
            raise disk_error(error, path) from error

    def _flush(self, name: str, under_way: _UnderWay) -> None:
        """Add what was read since the last time to the file."""
        recording = under_way.recording
        if not recording.changed or time.monotonic() < under_way.later:
            return
        files = recording.profile.files
        lines = b"".join(line_of(path, files[path]) for path in recording.changed)
        if under_way.length + len(lines) > MOST_BYTES:
            recording.full, recording.profile.complete = True, False
            recording.changed.clear()
            return
        try:
            self._disk.write(under_way.fd, lines)
        except OSError as error:
            _log.warning(
                "profile %s: what was read lately would be lost in a crash: %s", name, error.strerror
            )
            under_way.later = time.monotonic() + _AGAIN
            os.ftruncate(under_way.fd, under_way.length)  # no half line in the middle
        else:
            under_way.length += len(lines)
            recording.changed.clear()

    def _resume(self, name: str) -> None:
        """Go on with what an earlier run was recording. Raises OSError."""
        path = self._path(name, _RECORDING)
        text = _read(path)
        try:
            profile, good = salvage(text, path)
        except Invalid as error:
            _log.warning("%s; it is left alone", error)
            return
        if not profile.output_base_id:
            _log.warning("%s: does not say of which output base; it is left alone", path)
            return
        fd = self._disk.open(path, os.O_WRONLY | os.O_APPEND)
        os.ftruncate(fd, good)
        self._begin(name, _UnderWay(Recording(profile), fd, good))
        _log.info("profile %s is being recorded still: %d files so far", name, len(profile.files))

    def _begin(self, name: str, under_way: _UnderWay) -> None:
        self._under_way[name] = under_way
        self._recordings.begin(under_way.recording)

    def _read_all(self) -> list[About]:
        found = []
        for name in self._names(_PROFILE):
            path = self._path(name, _PROFILE)
            try:
                found.append(_about(name, decode(_read(path), path)))
            except FileNotFoundError:
                continue  # deleted meanwhile
            except OSError as error:
                found.append(About(name, error=f"{path}: {error.strerror}"))
            except Invalid as error:
                found.append(About(name, error=str(error)))
        return found

    def _names(self, suffix: str) -> list[str]:
        try:
            names = self._disk.list(self._directory)
        except OSError as error:
            raise disk_error(error, self._directory) from error
        return sorted(name.removesuffix(suffix) for name in names if name.endswith(suffix))

    def _check_room(self, name: str) -> None:
        names = {*self._names(_PROFILE), *self._under_way}
        if name not in names and len(names) >= _MOST:
            raise Exhausted(f"there are {_MOST} profiles, which is as many as are kept; delete some")

    def _path(self, name: str, suffix: str) -> str:
        return f"{self._directory}/{name}{suffix}"


def _about(name: str, profile: Profile) -> About:
    return About(
        name,
        profile.output_base_id,
        profile.recorded,
        len(profile.files),
        profile.in_part,
        profile.complete,
    )


def _read(path: str) -> bytes:
    """Raises OSError."""
    with open(path, "rb") as file:
        return file.read(MOST_BYTES + 1)
