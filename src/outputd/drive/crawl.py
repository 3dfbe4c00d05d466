"""Tells jobs that read everything from those that read what they need, and refuses them, if the settings say so. Fetches nothing.

A job is a process group: what a shell started with one command line, or a service with its children. Only what must be fetched is
counted: a job may read what is here as often as it likes. Memory is bounded.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Final, NamedTuple

from outputd.digest import Digest
from outputd.drive.accounting import Accounting, Process
from outputd.errors import Refused

_log = logging.getLogger(__name__)

_JOBS: Final = 512
"""Jobs that are known at a time; the one that has been quiet for longest is forgotten first."""
_SAME_FILES: Final = 64
"""Blobs of a job that are not counted again: the kernel asks for parts of a file at the same time."""


class Mode(StrEnum):
    """What is done about a job that reads everything."""

    OFF = "off"
    WARN = "warn"
    LIMIT = "limit"


@dataclass(frozen=True, slots=True)
class CrawlOptions:
    """What the settings say."""

    mode: Mode
    files: int
    """Files that a job may have fetched in a window."""
    bytes: int
    window: float
    """Seconds."""
    allow: Sequence[str]
    """Patterns of names of programs, their own or an ancestor's, and of cgroups, which begin with a slash."""
    deny: Sequence[str]
    """The same, of programs alone; who matches may have nothing fetched."""


class Caller(NamedTuple):
    """Who asks."""

    process: Process
    group: int
    """Process group; 0: in a process namespace that we do not see."""
    ancestors: tuple[str, ...]
    """Names of the programs that started it, the nearest first."""
    cgroup: str
    """Path of its (version 2) control group; empty: not known."""


class Job:
    """A process group that had something fetched."""

    __slots__ = ("bytes", "files", "last", "over", "process", "reason", "refused", "seen", "since")

    def __init__(self, process: Process, now: float) -> None:
        self.process = process
        """Of it, which asked last, or went over the bound."""
        self.since = self.last = now
        self.files = self.bytes = 0
        """Since `since`."""
        self.seen: OrderedDict[Digest, None] = OrderedDict()
        self.over = False
        self.reason = ""
        self.refused = 0


class CrawlGuard:
    """For one event loop."""

    def __init__(
        self, options: CrawlOptions, accounting: Accounting, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._options = options
        self._accounting = accounting
        self._now = now
        self._jobs: OrderedDict[int, Job] = OrderedDict()
        self._ahead: set[Digest] = set()
        """What is under way for a job that had not asked for it, and was counted."""

    @property
    def idle(self) -> bool:
        """Nobody needs to be asked about."""
        return self._options.mode is Mode.OFF

    @property
    def crawlers(self) -> list[Job]:
        """Those it has spoken of, the last first."""
        return [job for job in reversed(self._jobs.values()) if job.over]

    def admit(self, caller: Caller, digest: Digest, size: int) -> None:
        """A job asks for `size` bytes of a blob that is not here. Raises Refused."""
        options = self._options
        if options.mode is Mode.OFF or digest in self._ahead or not caller.group or self._allowed(caller):
            return
        job = self._job(caller)
        if not job.over:
            job.process = caller.process
            job.bytes += size
            if digest not in job.seen:
                job.seen[digest] = None
                job.files += 1
                if len(job.seen) > _SAME_FILES:
                    job.seen.popitem(last=False)
            reason = self._reason(caller, job)
            if not reason:
                return
            job.over, job.reason = True, reason
            self._tell(job)
        if options.mode is Mode.LIMIT:
            job.refused += 1
            raise Refused(
                f"{caller.process.name} (process {caller.process.pid}) may have nothing fetched for now: {job.reason}"
            )

    def ahead(self, read: Digest, wanted: Sequence[Digest]) -> Sequence[Digest]:
        """Which of the blobs that are not here and may be read after `read` are to be brought, and count for who reads that.

        When they are here, or will not come, `came` must follow.
        """
        process, place = self._accounting.asker(read)
        wanted = [digest for digest in wanted if digest not in self._ahead]
        job = next((job for job in reversed(self._jobs.values()) if job.process == process), None)
        if job is not None:
            wanted = [digest for digest in wanted if digest not in job.seen]  # it waits for these
            if self._options.mode is Mode.LIMIT:
                wanted = self._allowance(job, wanted)
            job.files += len(wanted)
            job.bytes += sum(digest.size for digest in wanted)
        for digest in wanted:
            self._accounting.asked(process, place, digest)
        self._ahead.update(wanted)
        return wanted

    def came(self, digests: Sequence[Digest]) -> None:
        """Of what `ahead` let through nothing is under way any more: it is here, or whoever reads it is counted."""
        self._ahead.difference_update(digests)

    def _allowance(self, job: Job, wanted: Sequence[Digest]) -> list[Digest]:
        """As many of the first of these as the job may still have."""
        allowed: list[Digest] = []
        left = 0 if job.over else self._options.bytes - job.bytes
        for digest in wanted:
            left -= digest.size
            if left < 0 or job.files + len(allowed) >= self._options.files:
                break
            allowed.append(digest)
        return allowed

    def _job(self, caller: Caller) -> Job:
        now = self._now()
        job = self._jobs.get(caller.group)
        if job is None or now - job.last >= self._options.window:
            job = self._jobs[caller.group] = Job(caller.process, now)
        elif not job.over and now - job.since >= self._options.window:
            job.since, job.files, job.bytes = now, 0, 0
            job.seen.clear()
        job.last = now
        self._jobs.move_to_end(caller.group)
        if len(self._jobs) > _JOBS:
            self._jobs.popitem(last=False)
        return job

    def _allowed(self, caller: Caller) -> bool:
        return any(
            fnmatchcase(caller.cgroup, pattern) or fnmatchcase(caller.cgroup, pattern.rstrip("/") + "/*")
            if pattern.startswith("/")
            else any(fnmatchcase(name, pattern) for name in (caller.process.name, *caller.ancestors))
            for pattern in self._options.allow
        )

    def _reason(self, caller: Caller, job: Job) -> str:
        """Why it is a crawler; empty when it is none."""
        options = self._options
        denied = next(
            (pattern for pattern in options.deny if fnmatchcase(caller.process.name, pattern)), None
        )
        if denied is not None:
            return f"crawl.deny has {denied!r}"
        took = f"within {self._now() - job.since:.0f} s"
        if job.files > options.files:
            return f"{job.files} files {took}, crawl.files allows {options.files} in {options.window:g} s"
        if job.bytes > options.bytes:
            return f"{job.bytes} bytes {took}, crawl.bytes allows {options.bytes} in {options.window:g} s"
        return ""

    def _tell(self, job: Job) -> None:
        """The one line about it."""
        name, pid = job.process.name, job.process.pid
        limited = self._options.mode is Mode.LIMIT
        _log.warning(
            "%s (process %d) reads everything (%s): %s. If that is as it should be, add %r to crawl.allow%s",
            name,
            pid,
            job.reason,
            "its reads of what is not here fail with EPERM until it has been quiet for a while"
            if limited
            else "all of it is fetched",
            name,
            "" if limited else "; if not, set crawl.mode = 'limit'",
        )
