"""One workspace of a client and its builds, as data; the verbs are in builds.py and the modules it uses."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from outputd.builds.finalized import Finalized
from outputd.builds.journal import Journal
from outputd.builds.leases import Lease
from outputd.builds.unfinished import Unfinished
from outputd.digest import Digest, DigestFunction
from outputd.errors import Precondition
from outputd.tree.merkle import Sealed
from outputd.tree.node import Volume
from outputd.tree.resolve import VirtualRoot


class OutputBase:
    """An output path and what is known of it. At most one build runs on it."""

    __slots__ = (
        "aliases",
        "build",
        "created",
        "finalized",
        "id",
        "journal",
        "journals",
        "last_build_id",
        "last_build_time",
        "lock",
        "obtainable",
        "removed",
        "save_error",
        "saved_changes",
        "saved_time",
        "saving",
        "sealed",
        "unreclaimed",
        "upload",
        "volume",
    )

    def __init__(
        self, output_base_id: str, volume: Volume, instance_name: str, created: int, *, now: float
    ) -> None:
        """`created` in nanoseconds since 1970, `now` in seconds of time.monotonic()."""
        self.id = output_base_id
        """Also the name of the output path below `outputs`."""
        self.volume = volume
        volume.instance_name = instance_name
        self.created = created
        self.build: Build | None = None
        """The build that runs."""
        self.aliases: tuple[str, ...] = ()
        """Paths of the client that lead here, as its last build said; they tell where its workspace is. None after a stop."""
        self.last_build_id = ""
        """The last build that ended; empty while none did."""
        self.last_build_time = 0
        """When it ended, in nanoseconds since 1970."""
        self.lock = asyncio.Lock()
        """Held by what works on the whole output path: making ready for a build, sealing. Clean does not ask for it."""
        self.saving = asyncio.Lock()
        """Held while a checkpoint is made, the writing included; taken before `lock`."""
        self.removed = False
        """Clean has taken it away: what still works on it is to stop."""
        self.saved_changes = -1
        """`volume.changes` when it was saved last."""
        self.saved_time = now
        """When that was, by time.monotonic()."""
        self.save_error = ""
        """Why it could not be saved the last time; empty when it could."""
        self.sealed: Sealed | None = None
        """What names the state that was saved last; None: there is none."""
        self.upload = Upload()
        self.finalized: Finalized | None = None
        """Paths finalized by its builds; None where they were not tracked all along."""
        self.obtainable = Obtainable()
        self.unreclaimed: list[Unfinished] = []
        """Local files of an earlier run that could not be looked at yet."""
        self.journal: Journal | None = None
        """What is told of every change; also the volume's `log`. None only while the base is being made."""
        self.journals: list[str] = []
        """Paths of the earlier journals that its saved state still needs, the oldest first."""

    @property
    def instance_name(self) -> str:
        """All digests below belong to it, and to `volume.function`."""
        return self.volume.instance_name

    def keep(self, journal: Journal) -> None:
        """From here on changes go to this journal."""
        self.journal = journal
        self.volume.log = journal

    def facts(self) -> dict[str, Any]:
        """What a journal begins with: all that a restart must know of the base beside its tree."""
        return {
            "base": self.id,
            "created": self.created,
            "number": self.volume.number,
            "instance_name": self.instance_name,
            "digest_function": int(self.volume.function),
            "last_build_id": self.last_build_id,
            "last_build_time": self.last_build_time,
            "aliases": list(self.aliases),
            "build": None if self.build is None else self.build.facts(),
        }

    def take_facts(self, facts: Mapping[str, Any]) -> None:
        """Become what `facts` say; the build comes back as it was. Raises KeyError, ValueError or TypeError."""
        self.volume.instance_name = facts["instance_name"]
        self.volume.function = DigestFunction(facts["digest_function"])
        self.last_build_id = facts["last_build_id"]
        self.last_build_time = facts["last_build_time"]
        self.aliases = tuple(facts["aliases"])
        build = facts["build"]
        self.build = None if build is None else Build.of_facts(build, self)

    def note(self) -> None:
        """Something of `facts` has changed."""
        if self.journal is not None:
            self.journal.note(self.facts())

    @property
    def dirty(self) -> bool:
        """Whether the last checkpoint does not have the output path as it is: it takes the journal to find it so."""
        return self.volume.changes != self.saved_changes


class Build:
    """A build that was started."""

    __slots__ = ("base", "ended", "function", "id", "instance_name", "modified", "ready", "virtual_root")

    def __init__(
        self,
        build_id: str,
        base: OutputBase,
        instance_name: str,
        function: DigestFunction,
        virtual_root: VirtualRoot,
    ) -> None:
        self.id = build_id
        self.base = base
        self.instance_name = instance_name
        self.function = function
        self.virtual_root = virtual_root
        self.ready = False
        """The output path holds nothing that the CAS has lost: StartBuild succeeded once."""
        self.modified: Modified | None = None
        """What StartBuild tells of the output path's contents, if anything."""
        self.ended = False

    def facts(self) -> dict[str, Any]:
        """For the journal."""
        root = self.virtual_root
        return {
            "id": self.id,
            "instance_name": self.instance_name,
            "digest_function": int(self.function),
            "prefix": root.prefix,
            "aliases": dict(root.aliases),
            "ready": self.ready,
        }

    @classmethod
    def of_facts(cls, facts: Mapping[str, Any], base: OutputBase) -> Build:
        """From the journal. Raises KeyError, ValueError or Invalid."""
        virtual_root = VirtualRoot(facts["prefix"], base.id, facts["aliases"])
        function = DigestFunction(facts["digest_function"])
        made = cls(facts["id"], base, facts["instance_name"], function, virtual_root)
        made.ready = facts["ready"]
        return made

    def __repr__(self) -> str:
        return f"<Build {self.id}>"

    def check(self) -> None:
        """Raises Precondition once the build was ended, to be called after every `await`."""
        if self.ended:
            raise Precondition(
                f"build {self.id}: it was ended, by FinalizeBuild, Clean or the next build of output base {self.base.id}"
            )


class Obtainable:
    """What is known of the blobs of an output path, for people and for who asks next. All times in nanoseconds since 1970."""

    __slots__ = ("dropped_directories", "dropped_files", "dropped_time", "due", "lease", "missing", "next")

    def __init__(self) -> None:
        self.lease: Lease | None = None
        """Of everything below; None while not all of it was asked for, or something is nowhere."""
        self.due: int | None = None
        """When it is asked for again, unless a build does it before; None: whenever its lease says."""
        self.next = 0
        """When it is asked for again, as shown to people; 0: not known, or never."""
        self.missing = 0
        """Blobs and directories found to be nowhere since the last build started: the next one takes them away."""
        self.dropped_files = 0
        """What was taken away the last time that something was, because it was nowhere."""
        self.dropped_directories = 0
        self.dropped_time = 0
        """0: nothing was yet."""

    def note(self, lease: Lease | None, withdrawn: tuple[int, int], *, in_time: bool, now: int) -> None:
        """A build has asked; what it did not get to is due."""
        self.lease = lease
        self.due = None if in_time else now
        self.missing = 0
        if withdrawn != (0, 0):
            self.dropped_files, self.dropped_directories = withdrawn
            self.dropped_time = now


class Upload:
    """How far an output path is in the remote, since the daemon was started; for people."""

    __slots__ = ("blobs", "bytes", "error", "root", "running", "waiting")

    def __init__(self) -> None:
        self.running = False
        self.blobs = 0
        """Uploaded so far, Directory messages included."""
        self.bytes = 0
        self.waiting = 0
        """Blobs that the remote is known to lack and is about to get."""
        self.root: Digest | None = None
        """The digest of the root Directory of which it was last seen to have everything."""
        self.error = ""
        """Why it lacks something; empty when it does not, or nobody tried."""


@dataclass(frozen=True, slots=True)
class Modified:
    """How the contents of an output path differ from what builds finalized."""

    build_id: str
    """The last build that ended."""
    prefixes: list[str]
    """Every finalized path that is, or begins with, one of them may have changed."""
