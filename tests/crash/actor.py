"""Who works on one output base, with RPCs and through the mount, until the daemon is killed under it; and then goes on.

Each step is one call of the operating system or of the protocol. What was acknowledged is kept in an Expected; the one change that
was in flight when the daemon died is remembered, and settled by what is found afterwards.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import grpc

from outputd._proto import bazel_output_service_rev2_pb2 as rev2
from tests.crash.changes import Change, Stage, TreeFiles, Whole, nothing
from tests.crash.expected import Expected, Seen, Thing
from tests.rev2_tree import Entry, Program, Rev2Tree
from tests.service_client import BuildClient, Cas, Locator, digest_of

T = TypeVar("T")

_DEATH_SECONDS: Final = 10.0
"""A call may fail a moment before the killer says that it has killed."""


class Killed(Exception):
    """The daemon is dead; the call in flight was not acknowledged."""


class Actor:
    """One output base, its builds and what it must hold. `local.py` has what it does through the mount."""

    def __init__(self, base: str, seed: str, outputs: Path, dead: threading.Event) -> None:
        """`dead` is set when the daemon has been killed."""
        self.base: Final = base
        self.random: Final = random.Random(f"{seed} {base}")
        self.top: Final = outputs / base
        self.expected = Expected()
        self.in_flight: Change | None = None
        self.steps = 0
        """Calls that were acknowledged."""
        self._history: deque[str] = deque(maxlen=2000)
        self._outputs = outputs
        self._dead = dead
        self._serial = 0
        self._client: BuildClient | None = None
        self._cas: Cas | None = None
        self._build_id = ""
        self._pending: Callable[[], None] | None = None
        """The RPC in flight, to be sent again as a client does."""
        self._staged: list[bytes] = []
        """Contents of which the blobs are uploaded."""

    # steps

    def step(self, change: Change, call: Callable[[], T]) -> T:
        """Make one call. Raises Killed, and what it raises when the daemon lives."""
        self.in_flight = change
        try:
            result = call()
        except (OSError, grpc.RpcError) as error:
            if not self._dead.wait(_DEATH_SECONDS):
                raise AssertionError(f"{self.base}: {error!r}, and nobody has killed the daemon") from error
            raise Killed from error
        change.apply(self.expected)
        self.in_flight = None
        self._note_step(f"{change!r:.300}")
        return result

    def rpc(self, change: Change, call: Callable[[], T]) -> T:
        """The same for a call that a client sends again after the daemon came back."""

        def again() -> None:
            # Some of it may be there already: to do it twice is to do it once.
            call()
            change.apply(self.expected)

        self._pending = again
        result = self.step(change, call)
        self._pending = None
        return result

    def serial(self) -> int:
        """A number not used before."""
        self._serial += 1
        return self._serial

    # the life of a daemon

    def go_on(self, channel: grpc.Channel) -> None:
        """A daemon runs on the same directories. What was acknowledged is there; the call in flight succeeds now."""
        self._cas = Cas(channel)
        client = self._client = BuildClient(channel, self._outputs, self.base)
        client.build_id = self._build_id
        self._settle()
        pending, self._pending = self._pending, None
        if pending is not None:
            pending()
        if self.running:
            self.check_digests()

    @property
    def client(self) -> BuildClient:
        """Of the daemon that runs."""
        assert self._client is not None
        return self._client

    @property
    def cas(self) -> Cas:
        assert self._cas is not None
        return self._cas

    @property
    def running(self) -> bool:
        """Whether a build runs, by what was acknowledged."""
        return bool(self._build_id) and self._pending is None

    def check_digests(self) -> None:
        """BatchStat knows every regular file by its digest."""
        files = self.expected.digests_needed()
        for (path, content), found in zip(files.items(), self.client.digests(*files), strict=True):
            assert found == digest_of(content), f"{self.base}/{path}: BatchStat tells {found}"

    def _settle(self) -> None:
        """Find out which of the allowed things has become of the change in flight."""
        change = self.in_flight or nothing("at rest")
        self._note_step(f"killed, in flight: {change!r:.300}")
        first: list[str] = []
        for outcome in change.outcomes(self.expected, self.top):
            wrong = _differences(outcome, self.top)
            if not wrong:
                self.expected, self.in_flight = outcome, None
                return
            if not first or len(wrong) < len(first):
                first = wrong
        words = {step for text in first for step in text.partition(":")[0].split("/")[-1:]}
        kills = [number for number, step in enumerate(self._history) if "killed" in step]
        last_round = kills[-2] if len(kills) > 1 else 0
        story = [
            step
            for number, step in enumerate(self._history)
            if number >= last_round or any(word in step for word in words)
        ]
        shown = "\n".join([*first[:20], "what was done:", *story[-300:]])
        raise AssertionError(
            f"{self.base}, {self.steps} steps, {change!r:.300}: {len(first)} differences\n{shown}"
        )

    def _note_step(self, what: str) -> None:
        self.steps += 1
        self._history.append(f"{time.time_ns()} {what}")

    # builds

    def start_build(self) -> None:
        """StartBuild with a new id; a build that runs is ended by it, as when its client was killed."""
        build_id = f"{self.base}-{self.serial()}"
        self._build_id = build_id
        self.rpc(nothing("StartBuild"), lambda: self.client.start(build_id))

    def finalize_build(self) -> None:
        def finish() -> None:
            self.client.build_id = build_id
            self.client.finish()

        build_id, self._build_id = self._build_id, ""
        self.rpc(nothing("FinalizeBuild"), finish)

    def clean(self) -> None:
        """An orderly Clean, and a new build."""
        self._build_id = ""
        self.rpc(Whole("Clean", Expected.clear), lambda: self.client.clean())
        self.start_build()

    def finalize_artifacts(self) -> None:
        files = self.expected.digests_needed()
        some = self.random.sample(sorted(files), min(len(files), 20))
        artifacts: dict[str, Locator] = {path: digest_of(files[path]) for path in some}
        self.rpc(nothing("FinalizeArtifacts"), lambda: self.client.finalize_artifacts(artifacts))

    def stage_files(self) -> None:
        """New paths in one request; or one artifact in place of whatever is there."""
        count = self.random.choice((1, 1, 2, 10, 50, 120, 300))
        contents = self._uploaded(min(count, 40))
        if count == 1 and self.expected.things and self.random.random() < 0.6:
            paths = [self.random.choice(sorted(self.expected.things))]
            old = self.expected.things[paths[0]]
            if not old.untouched:
                # Whether that is another file then depends on what was done to it.
                contents = [content for content in contents if content != old.content]
        else:
            top = self.random.choice(("", *self.expected.paths("directory"), f"s{self.serial()}/deep/er"))
            names = [f"d{self.random.randrange(3)}-{self.serial()}/" if count > 50 else "" for _ in range(4)]
            paths = [
                f"{top}/{self.random.choice(names)}staged-{self.serial()}".lstrip("/") for _ in range(count)
            ]
        self._stage({path: self.random.choice(contents) for path in paths})

    def stage_trees(self) -> None:
        """Directories by the digest of a Tree."""
        artifacts: dict[str, bytes | TreeFiles] = {}
        messages: list[bytes] = []
        locators: dict[str, Locator] = {}
        for _ in range(self.random.choice((1, 3))):
            contents = self._uploaded(4)
            files: TreeFiles = {
                name: (content, self.random.random() < 0.5)
                for name, content in zip(("a", "b", "sub/c", "sub/sub/d"), contents, strict=False)
            }
            tree = Rev2Tree(_entries(files))
            messages += [tree.message, *tree.directories]
            path = f"tree-{self.serial()}"
            artifacts[path] = files
            locators[path] = rev2.TreeArtifactLocator(tree_digest=tree.digest)
        self.step(nothing("upload"), lambda: self.cas.put_all(messages))
        self._send_stage(artifacts, locators)

    def _stage(self, files: dict[str, bytes]) -> None:
        locators: dict[str, Locator] = {path: digest_of(content) for path, content in files.items()}
        self._send_stage(dict(files), locators)

    def _send_stage(self, artifacts: dict[str, bytes | TreeFiles], locators: dict[str, Locator]) -> None:
        self.rpc(Stage(artifacts), lambda: self.client.stage(locators))

    def _uploaded(self, count: int) -> list[bytes]:
        """Contents that the CAS has, some of them new."""
        new = [f"{self.base} {self.serial()} ".encode() * self.random.randrange(1, 40) for _ in range(count)]
        self.step(nothing("upload"), lambda: self.cas.put_all(new))
        self._staged = (self._staged + new)[-200:]
        return [*new, *self.random.sample(self._staged, min(len(self._staged), count))][: count * 2]

    # looking

    def look(self) -> None:
        """lstat(2) some paths; what it tells is to be so after a crash as well."""
        paths = sorted(self.expected.things)
        for path in self.random.sample(paths, min(len(paths), 10)):
            status = self.step(nothing(f"lstat {path}"), partial(os.lstat, self.top / path))
            self._note(self.expected.things[path], status)

    def list_directory(self) -> None:
        """readdir(3) and lstat(2) of everything in a directory."""
        path = self.random.choice(("", *self.expected.paths("directory")))
        with self.step(nothing("opendir"), lambda: os.scandir(self.top / path)) as entries:
            for entry in self.step(nothing("readdir"), lambda: list(entries)):
                name = f"{path}/{entry.name}".lstrip("/")
                status = self.step(nothing(f"lstat {name}"), partial(os.lstat, self.top / name))
                self._note(self.expected.things[name], status)

    @staticmethod
    def _note(thing: Thing, status: os.stat_result) -> None:
        assert thing.ino in (0, status.st_ino), "an inode number has changed while the daemon lived"
        thing.ino = status.st_ino
        thing.seen = Seen.of(status)


def _differences(outcome: Expected, top: Path) -> list[str]:
    if not os.path.isdir(top):
        return [] if not outcome.things else ["the output path is not there"]
    return outcome.differences(top)


def _entries(files: TreeFiles) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    inner: dict[str, TreeFiles] = {}
    for path, (content, executable) in files.items():
        head, _, rest = path.partition("/")
        if rest:
            inner.setdefault(head, {})[rest] = content, executable
        else:
            entries[head] = Program(content) if executable else content
    return entries | {name: _entries(below) for name, below in inner.items()}
