"""Every setting there is: one table, from which reading, checking, showing and the reference page are made. Never reads anything.

A section is a class, a key is an annotated field: its type for the rest of the program, and a `Key` with its kind, default and
one sentence for users.
"""

from __future__ import annotations

import functools
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Final

from outputd.config.address import Address
from outputd.config.key import Key
from outputd.config.kinds import (
    Addresses,
    Boolean,
    Choice,
    Count,
    FilePath,
    Optional,
    Room,
    Seconds,
    Size,
    Texts,
    Wishes,
)
from outputd.config.remote_settings import NamedRemote, Remote
from outputd.drive.profile import Wish
from outputd.store.limits import Amount

REMOTES: Final = "remotes"
"""The table of tables: `[remotes.NAME]`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """The file system."""

    path: Annotated[
        str,
        Key(
            FilePath(),
            "~/outputd",
            "Directory where the file system appears; output trees are below its `outputs` directory.",
            "--mount",
            "DIR",
        ),
    ]
    allow_other: Annotated[
        bool,
        Key(
            Boolean(),
            False,
            "Let other users of this machine look into the mount; unprivileged, this needs `user_allow_other` in /etc/fuse.conf.",
            "--allow-other",
        ),
    ]
    entry_timeout: Annotated[
        float,
        Key(
            Seconds(),
            3600,
            "How long the kernel may remember that a name exists; changes by RPC are told to the kernel at once.",
        ),
    ]
    attr_timeout: Annotated[
        float,
        Key(
            Seconds(),
            3600,
            "How long the kernel may remember a file's attributes; changes by RPC are told at once.",
        ),
    ]
    negative_timeout: Annotated[
        float,
        Key(
            Seconds(),
            3600,
            "How long the kernel may remember that a name does not exist; names that RPCs bring are told at once.",
        ),
    ]

    passthrough: Annotated[
        bool,
        Key(
            Boolean(),
            True,
            "Let the kernel itself read and write local files that are open, where it offers that (Linux 6.9, root): native speed.",
        ),
    ]

    xattrs: Annotated[
        bool,
        Key(
            Boolean(),
            False,
            "Extended attributes in the namespace `user.`, and `user.outputd.digest` (Linux 5.11). Small files then take a sixth "
            "longer to write: the kernel asks for `security.capability` first.",
        ),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    """The gRPC server."""

    addresses: Annotated[
        tuple[Address, ...],
        Key(
            Addresses(),
            ["unix:$XDG_RUNTIME_DIR/outputd.sock"],
            "Where build clients connect: `unix:PATH` or `HOST:PORT`; TCP has neither login nor encryption, so loopback only.",
            "--listen",
            "unix:PATH|HOST:PORT",
        ),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What outputd must remember."""

    dir: Annotated[
        str,
        Key(
            FilePath(),
            "$XDG_STATE_HOME/outputd",
            "Directory of what must survive a restart: the trees of finished builds.",
            "--state-dir",
            "DIR",
        ),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """The local store."""

    dir: Annotated[
        str,
        Key(
            FilePath(),
            "$XDG_CACHE_HOME/outputd",
            "Directory of the local store: bytes by digest, files written by local actions included.",
            "--cache-dir",
            "DIR",
        ),
    ]
    keep_free: Annotated[
        Amount | None,
        Key(
            Optional(Room()),
            None,
            "Room to leave on the file system: below it, what was not used for longest goes, but never what is only here and an "
            "output tree needs; not set: a tenth of the file system, at most 10 GiB.",
        ),
    ]
    high_mark: Annotated[
        Amount | None,
        Key(
            Optional(Room()),
            None,
            "Sizes of all blobs together (of those that are here in part, what is here) above which what was not used for longest "
            "goes; not set: as much as `keep_free` leaves.",
        ),
    ]
    low_mark: Annotated[
        Amount | None,
        Key(Optional(Room()), None, "What to come down to then; not set: nine tenths of `high_mark`."),
    ]
    max_blobs: Annotated[
        int | None,
        Key(
            Optional(Count(1, 1_000_000_000)),
            None,
            "Number of blobs, each an inode, above which some go; not set: as many as leave a twentieth of all inodes.",
        ),
    ]
    garbage_age: Annotated[
        float,
        Key(
            Seconds(least=0.0),
            10800,
            "How long a blob that is only here and belongs to no output tree stays after its last use; longer than a client may "
            "take between uploading it and saying what it is for.",
        ),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """Output trees."""

    initial_contents: Annotated[
        bool,
        Key(
            Boolean(),
            False,
            "Tell a starting build which paths changed since it ended; off, for today's Bazel gains nothing from it and a wrong "
            "guess of its last build makes it take every output for deleted.",
        ),
    ]
    read_timeout: Annotated[
        float,
        Key(
            Seconds(least=0.1),
            60,
            "How long a reader waits for bytes that are not here yet before the read fails (ETIMEDOUT); a later read tries anew.",
        ),
    ]
    verify: Annotated[
        str,
        Key(
            Choice(("when-complete", "whole-blob")),
            "when-complete",
            "Whether of blobs from 4 MiB on only what is read is fetched, verified chunk by chunk where the remote tells chunks "
            "and else once all of it is here, or nobody sees a byte of any blob before all of it was fetched and verified "
            "(`whole-blob`).",
        ),
    ]
    lease_seconds: Annotated[
        float,
        Key(
            Seconds(),
            7200,
            "How long the remote is believed to have a blob that it said it has; it is asked again in the background before that. "
            "Bazel believes it for 3 h (--experimental_remote_cache_ttl), so this leaves an hour for a build; 0: not at all.",
        ),
    ]
    always_asked: Annotated[
        int,
        Key(
            Count(0, 100_000_000),
            20_000,
            "How many blobs a starting build asks for although the remote is still believed to have them, those asked for longest "
            "ago first: in trees up to this size nothing is shown that the remote has just lost.",
        ),
    ]
    start_timeout: Annotated[
        float,
        Key(
            Seconds(least=0.1),
            30,
            "How long a starting build waits for the remote to tell what it has lost; the rest is asked for while the build runs, "
            "and taken away when the next one starts.",
        ),
    ]
    heal: Annotated[
        bool,
        Key(
            Boolean(),
            True,
            "Upload what the remote has lost and the local store still holds, in the background; never what was made here.",
        ),
    ]
    max_tree_bytes: Annotated[
        int,
        Key(
            Size(1 << 10, 1 << 31),
            "64 MiB",
            "Largest REv2 Tree message that is accepted for a staged directory.",
        ),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Crawl:
    """Programs that read everything: indexers, searches, backups. Only what must be fetched counts."""

    mode: Annotated[
        str,
        Key(
            Choice(("off", "warn", "limit")),
            "warn",
            "What to do about a job that goes over the bounds: nothing, log one line, or also fail its reads of what is not here "
            "(EPERM) until it has been quiet for a window.",
        ),
    ]
    files: Annotated[
        int,
        Key(
            Count(1, 1_000_000_000),
            5000,
            "How many files one job (a process group) may have fetched in a window.",
        ),
    ]
    bytes: Annotated[
        int,
        Key(
            Size(1 << 10, 1 << 50),
            "16 GiB",
            "How many bytes one job may have fetched in a window.",
        ),
    ]
    window: Annotated[float, Key(Seconds(least=1), 300, "The length of that window.")]
    allow: Annotated[
        tuple[str, ...],
        Key(
            Texts(),
            ["bazel*", "linux-sandbox", "process-wrapper", "ninja", "make", "ctest"],
            "Programs that may read everything, with all that they start: patterns of names as `ps -o comm` shows them; or of "
            "cgroups, beginning with a slash.",
        ),
    ]
    deny: Annotated[
        tuple[str, ...],
        Key(
            Texts(),
            [
                "updatedb*",
                "mlocate",
                "plocate*",
                "tracker-*",
                "localsearch*",
                "baloo_file*",
                "recollindex",
            ],
            "Programs that are over the bounds with the first file.",
        ),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefetch:
    """What is brought before anybody reads it, without being asked for by `outputd prefetch` or `outputd pin`."""

    profiles: Annotated[
        tuple[Wish, ...],
        Key(
            Wishes(),
            [],
            "Profiles (`outputd profile`) that are replayed in the background after each build; with `NAME@PATTERN` only in output "
            "bases whose id matches.",
        ),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """The log, on standard error."""

    level: Annotated[
        str,
        Key(
            Choice(("debug", "info", "warning", "error")),
            "info",
            "The least important message to write.",
            "--log-level",
            "debug|info|warning|error",
        ),
    ]
    format: Annotated[
        str,
        Key(
            Choice(("text", "json")),
            "text",
            "Lines for people, or one JSON object a line.",
            "--log-format",
            "text|json",
        ),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All settings, complete and checked. `outputd.config.load` makes it."""

    mount: Mount
    listen: Listen
    state: State
    cache: Cache
    remote: Remote
    remotes: Mapping[str, NamedRemote]
    outputs: Outputs
    crawl: Crawl
    prefetch: Prefetch
    log: Log


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of the table."""

    section: str
    name: str
    key: Key

    @property
    def full(self) -> str:
        """`section.name`, as origins and flags are filed under."""
        return f"{self.section}.{self.name}"

    @property
    def variable(self) -> str:
        """The environment variable that sets it; those of `[remotes.NAME]` have none."""
        return f"OUTPUTD_{self.section}_{self.name}".upper()


@functools.cache
def sections() -> Mapping[str, type]:
    """The sections in order, by name; `[remotes.NAME]` is not among them, for there may be any number."""
    hints = typing.get_type_hints(Config)
    return {name: cls for name, cls in hints.items() if name != REMOTES}


@functools.cache
def table() -> Mapping[str, Entry]:
    """Every key of these in order, by `section.name`."""
    return {entry.full: entry for section, cls in sections().items() for entry in _entries(section, cls)}


def remote_table(names: Iterable[str]) -> Mapping[str, Entry]:
    """The same for the remotes of these names: `remotes.NAME.key`."""
    return {entry.full: entry for name in names for entry in _entries(f"{REMOTES}.{name}", NamedRemote)}


def value_of(config: Config, entry: Entry) -> object:
    section, _, name = entry.section.partition(".")
    found = getattr(config, section)
    return getattr(found[name] if name else found, entry.name)


def _entries(section: str, cls: type) -> Iterator[Entry]:
    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
        yield Entry(section, name, hint.__metadata__[0])
