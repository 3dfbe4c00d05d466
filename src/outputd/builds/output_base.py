"""One workspace of a client and its builds, as data; the verbs are in builds.py and the modules it uses."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from outputd.builds.finalized import Finalized
from outputd.builds.unfinished import Unfinished
from outputd.digest import DigestFunction
from outputd.errors import Precondition
from outputd.tree.node import Volume
from outputd.tree.resolve import VirtualRoot


class OutputBase:
    """An output path and what is known of it. At most one build runs on it."""

    __slots__ = (
        "build",
        "created",
        "finalized",
        "id",
        "last_build_id",
        "last_build_time",
        "lock",
        "removed",
        "save_error",
        "saved_changes",
        "unreclaimed",
        "volume",
    )

    def __init__(self, output_base_id: str, volume: Volume, instance_name: str, created: int) -> None:
        self.id = output_base_id
        """Also the name of the output path below `outputs`."""
        self.volume = volume
        volume.instance_name = instance_name
        self.created = created
        """Nanoseconds since 1970."""
        self.build: Build | None = None
        """The build that runs."""
        self.last_build_id = ""
        """The last build that ended; empty while none did."""
        self.last_build_time = 0
        """When it ended, in nanoseconds since 1970."""
        self.lock = asyncio.Lock()
        """Held by what works on the whole output path: making ready for a build, saving. Clean does not ask for it."""
        self.removed = False
        """Clean has taken it away: what still works on it is to stop."""
        self.saved_changes = -1
        """`volume.changes` when it was saved last."""
        self.save_error = ""
        """Why it could not be saved the last time; empty when it could."""
        self.finalized: Finalized | None = None
        """Paths finalized by its builds; None where they were not tracked all along."""
        self.unreclaimed: list[Unfinished] = []
        """Local files of an earlier run that could not be looked at yet."""

    @property
    def instance_name(self) -> str:
        """All digests below belong to it, and to `volume.function`."""
        return self.volume.instance_name

    @property
    def dirty(self) -> bool:
        """Whether a restart would not find the output path as it is."""
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

    def __repr__(self) -> str:
        return f"<Build {self.id}>"

    def check(self) -> None:
        """Raises Precondition once the build was ended, to be called after every `await`."""
        if self.ended:
            raise Precondition(
                f"build {self.id}: it was ended, by FinalizeBuild, Clean or the next build of output base {self.base.id}"
            )


@dataclass(frozen=True, slots=True)
class Modified:
    """How the contents of an output path differ from what builds finalized."""

    build_id: str
    """The last build that ended."""
    prefixes: list[str]
    """Every finalized path that is, or begins with, one of them may have changed."""
