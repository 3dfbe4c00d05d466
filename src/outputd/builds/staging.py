"""Placing artifacts by digest into an output path, thousands in one request; never looks at a byte of them.

Rules: protocols "creating walk" and StageArtifacts (bazel_output_service.proto). Each item is placed as a whole or not at all, and
fails alone. What is staged of a request that the client gives up stays, as ordinary files that can be replaced and truncated: the
client may run the action instead, over them.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Final, NamedTuple, Self, TypeAlias

from outputd.builds.kernel import Changes
from outputd.builds.loading import Loading
from outputd.builds.output_base import Build
from outputd.digest import Digest
from outputd.drive.feed import Feed
from outputd.drive.loader import Objects
from outputd.errors import Invalid, NotFound, OutputdError
from outputd.store.base import BlobStore
from outputd.tree.node import (
    DIRECTORY_MODE,
    EXECUTABLE_MODE,
    MAX_NAME,
    NO_RECORD,
    Directory,
    File,
    PackedFile,
    packable,
    packed_attributes,
    packed_tail,
)
from outputd.tree.resolve import creating_path
from outputd.tree.status import NotLoaded

_KEPT_MODES: Final = (EXECUTABLE_MODE, EXECUTABLE_MODE & ~0o222)
"""Of a staged file that nobody touched, and of one that Bazel made read-only, as it does with every output."""


class TreeReference(NamedTuple):
    """A directory by digest; at least one of the two."""

    tree: Digest | None
    """Of a REv2 Tree message."""
    root: Digest | None
    """Of the REv2 Directory message at its top."""


Artifact: TypeAlias = "Digest | TreeReference | OutputdError"
"""A file by digest, a directory, or what was wrong with the item already."""


class Staging:
    """One request. The items may come in parts; on leaving, the kernel has been told of what was replaced."""

    def __init__(
        self,
        build: Build,
        changes: Changes,
        loading: Loading,
        objects: Objects,
        blobs: BlobStore,
        *,
        local_only: bool,
        max_tree_bytes: int,
        now: int,
        feed: Feed,
    ) -> None:
        """`local_only`: the local store is the whole CAS, so that a blob it lacks is known to be absent."""
        self._build = build
        self._changes = changes
        self._loading = loading
        self._objects = objects
        self._blobs = blobs
        self._local_only = local_only
        self._max_tree_bytes = max_tree_bytes
        self._now = packable(now)
        self._feed = feed
        self._tail = packed_tail(self._now, executable=True)
        self._parents: dict[bytes, Directory] = {}
        """Directories by the text of the paths that lead there, with the last slash. True only until the next `await`, or until
        a directory is replaced."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._changes.__aexit__(kind, error, traceback)

    async def place(self, items: Sequence[tuple[bytes, Artifact]]) -> list[OutputdError | None]:
        """Place each artifact at its path, in order; an error in its place for each that could not be. Raises Precondition."""
        absent = await self._absent(items) if self._local_only else frozenset()
        self._build.check()
        journal = self._build.base.journal
        assert journal is not None
        try:
            journal.check_room()
        except OutputdError as error:
            return [error] * len(items)
        results: list[OutputdError | None] = []
        parents = self._parents
        parents.clear()
        for path, artifact in items:
            cut = path.rfind(b"/") + 1
            directory = parents.get(path[:cut])
            name = path[cut:]
            if (
                directory is not None
                and type(artifact) is Digest
                and (not absent or artifact not in absent)
                and name not in (b"", b".", b"..")
                and len(name) <= MAX_NAME
                and b"\0" not in name
            ):
                self._place_file(directory, name, artifact)
                results.append(None)
            else:
                results.append(await self._place_any(path, artifact, absent))
        self._build.base.volume.log.settle()
        self._changes.note()
        if self._feed.watched:
            self._tell(items, results)
        return results

    def _tell(self, items: Sequence[tuple[bytes, Artifact]], results: Sequence[OutputdError | None]) -> None:
        build = self._build
        for (path, artifact), refused in zip(items, results, strict=True):
            if refused is None:
                size = artifact.size if isinstance(artifact, Digest) else 0
                self._feed.tell("staged", build.base.id, build_id=build.id, path=path, size=size)

    async def _place_any(
        self, path: bytes, artifact: Artifact, absent: frozenset[Digest]
    ) -> OutputdError | None:
        refused = artifact if isinstance(artifact, OutputdError) else self._refusal(artifact, absent)
        if refused is not None:
            return refused
        assert not isinstance(artifact, OutputdError)
        try:
            steps, name = creating_path(path)
        except Invalid as error:
            return error
        try:
            directory = self._enter(steps)
        except NotLoaded:
            self._parents.clear()
            entered = await self._loading.run(lambda: self._enter_noting(steps))
            self._build.check()
            if isinstance(entered, OutputdError):
                return entered
            directory = entered
        if b".." not in steps:
            self._parents[path[: path.rfind(b"/") + 1]] = directory
        if isinstance(artifact, Digest):
            self._place_file(directory, name, artifact)
        else:
            self._place_directory(directory, name, artifact)
        return None

    def _refusal(self, artifact: Digest | TreeReference, absent: frozenset[Digest]) -> OutputdError | None:
        needed = artifact if isinstance(artifact, Digest) else artifact.tree or artifact.root
        if needed in absent:
            return NotFound(f"blob {needed}: is not in the CAS")
        if isinstance(artifact, TreeReference):
            for digest in artifact:
                if digest is not None and digest.size > self._max_tree_bytes:
                    return Invalid(
                        f"tree {digest}: larger than outputs.max_tree_bytes allows, {self._max_tree_bytes} bytes"
                    )
        return None

    def _enter_noting(self, steps: Sequence[bytes]) -> Directory:
        """As `_enter`, where an `await` follows: `a/../lazy/b` has made `a` before it finds out that `lazy` must be loaded."""
        try:
            return self._enter(steps)
        finally:
            self._changes.note()

    def _enter(self, steps: Sequence[bytes]) -> Directory:
        """The directory that a path's steps lead to, made where it was missing. Raises NotLoaded."""
        root = self._build.base.volume.root
        tree = self._changes.tree
        stack = [root]
        for step in steps:
            if step == b"..":
                stack.pop()
            else:
                stack.append(tree.descend(stack[-1], step, self._now))
        if stack[-1].children is None:
            raise NotLoaded(stack[-1])
        return stack[-1]

    def _place_file(self, directory: Directory, name: bytes, digest: Digest) -> None:
        assert directory.children is not None
        old = directory.children.get(name)
        if old is not None:
            if isinstance(old, bytes):
                if old.startswith(digest) and packed_attributes(old)[0] == EXECUTABLE_MODE:
                    return  # as below
            elif (
                isinstance(old, File)
                and old.content == digest
                and old.mode in _KEPT_MODES
                and old.extra is None
            ):
                return  # the same file with the same times: for the client nothing has happened
            if isinstance(old, Directory):
                self._parents.clear()
        self._changes.tree.place(directory, name, PackedFile(digest + self._tail), self._now)

    def _place_directory(self, directory: Directory, name: bytes, reference: TreeReference) -> None:
        made = Directory(DIRECTORY_MODE, self._now, directory.volume)
        made.children = None
        made.tree, made.digest = reference
        made.record = NO_RECORD
        self._parents.clear()
        self._changes.tree.place(directory, name, made, self._now)

    async def _absent(self, items: Sequence[tuple[bytes, Artifact]]) -> frozenset[Digest]:
        """The blobs among `items` that are known to be nowhere."""
        wanted: set[Digest] = set()
        for _, artifact in items:
            if type(artifact) is Digest:
                wanted.add(artifact)
            elif isinstance(artifact, TreeReference):
                if artifact.tree is not None:
                    wanted.add(artifact.tree)
                elif artifact.root is not None and self._objects.directory(artifact.root) is None:
                    wanted.add(artifact.root)
        return frozenset(await self._blobs.find_missing(wanted)) if wanted else frozenset()
