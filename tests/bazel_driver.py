"""Plays one Bazel server against the daemon: its documented order of RPCs and of system calls through the mount, threads included.

A build is a list of actions whose outputs are known beforehand. What is played: the `bazel-out` symlink, the `_tmp/actions` dance,
removing old outputs, staging of cache hits, sandboxed and local actions, symlinks, chmod 0555, single BatchStats for digests,
FinalizeArtifacts, the batched BatchStat of an incremental build, retries of passing errors, Clean. Never looks into the daemon.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import subprocess
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

import grpc
from google.protobuf.message import Message

from outputd._proto import any_pb2
from outputd._proto import bazel_output_service_pb2 as service
from outputd._proto import bazel_output_service_rev2_pb2 as rev2
from outputd._proto import remote_execution_pb2 as reapi
from tests.service_client import Cas, call, digest_of, locator_in, pack

M = TypeVar("M", bound=Message)

JOBS: Final = 8
_SERVICE: Final = "/bazel_output_service.BazelOutputService/"
_RETRIED: Final = (
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.CANCELLED,
)
_RETRIES: Final = 5
_DIRECTORIES: Final = ("_tmp", "_actions", "k8-fastbuild", "k8-fastbuild/bin", "k8-fastbuild/testlogs")


class BuildError(Exception):
    """Where Bazel would end the build."""


@dataclass(frozen=True)
class Action:
    """What makes some outputs. Paths are relative to `bazel-out`."""

    name: str
    files: Mapping[str, bytes] = field(default_factory=dict)
    trees: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict)
    """Tree artifacts: a directory and the files in it."""
    links: Mapping[str, str] = field(default_factory=dict)
    """Outputs that are symlinks, and their targets. `{execroot}` in a target stands for what its name says."""
    where: str = "cache"
    """`cache`: a remote hit, staged by digest. `sandbox`: runs elsewhere, outputs are copied in. `local`: runs in the mount."""

    def contents(self) -> dict[str, bytes]:
        """All regular files."""
        return {
            **self.files,
            **{f"{top}/{path}": data for top, files in self.trees.items() for path, data in files.items()},
        }


@dataclass
class Report:
    """What a build did."""

    executed: list[str] = field(default_factory=list)
    fell_back: list[str] = field(default_factory=list)
    """Cache hits that could not be staged, so that their actions ran locally."""
    calls: Counter[str] = field(default_factory=Counter)
    unlocated: list[str] = field(default_factory=list)
    """Files that BatchStat told no digest of, so that Bazel had to read them."""
    digests: dict[str, reapi.Digest] = field(default_factory=dict)
    """Of every regular output, as BatchStat told it."""


class BazelServer:
    """A Bazel server process and its workspace. A new one on the same output base is Bazel started anew: it remembers nothing."""

    def __init__(self, channel: grpc.Channel, prefix: Path, output_base: Path, cas: Cas) -> None:
        """`prefix` is `--experimental_remote_output_service_output_path_prefix`; `cas` holds what cache hits need."""
        self._channel = channel
        self._prefix = prefix
        self._cas = cas
        self.execroot: Final = output_base / "execroot" / "ws"
        self.bazel_out: Final = self.execroot / "bazel-out"
        self._sandbox = output_base / "sandbox"
        self.base_id: Final = hashlib.md5(str(output_base).encode(), usedforsecurity=False).hexdigest()
        self._known: dict[str, Action] = {}
        """Actions that are up to date as far as this server remembers."""
        self._digests: dict[str, reapi.Digest] = {}
        self._build_id = ""
        self._report = Report()
        self._lock = threading.Lock()
        self.execroot.mkdir(parents=True, exist_ok=True)

    def build(self, actions: Sequence[Action], *, killed: bool = False) -> Report:
        """One `bazel build`. `killed`: the server dies before FinalizeBuild."""
        self._report = Report()
        self._start()
        successful = False
        try:
            self._prepare()
            dirty = self._dirty(actions) if self._known else {action.name for action in actions}
            stale = [action for action in actions if action.name in dirty]
            with ThreadPoolExecutor(JOBS) as pool:
                list(pool.map(self._execute, stale))
            self._report.digests = dict(self._digests)
            successful = True
        finally:
            if not killed:
                self._call(
                    "FinalizeBuild",
                    service.FinalizeBuildRequest(build_id=self._build_id, build_successful=successful),
                    service.FinalizeBuildResponse,
                )
        return self._report

    def clean(self) -> None:
        """`bazel clean`: the RPC, then Bazel removes its own symlink."""
        self._call("Clean", service.CleanRequest(output_base_id=self.base_id), service.CleanResponse)
        self.bazel_out.unlink(missing_ok=True)
        self._known.clear()
        self._digests.clear()

    # the start of a build

    def _start(self) -> None:
        self._build_id = str(uuid.uuid4())
        args = any_pb2.Any()
        args.Pack(
            rev2.StartBuildArgs(
                remote_cache="grpc://cache.example.com", digest_function=reapi.DigestFunction.SHA256
            )
        )
        request = service.StartBuildRequest(
            version=1,
            output_base_id=self.base_id,
            build_id=self._build_id,
            args=args,
            output_path_prefix=str(self._prefix),
            output_path_aliases={str(self.bazel_out): "."},
        )
        suffix = self._call("StartBuild", request, service.StartBuildResponse).output_path_suffix
        if not suffix or suffix.startswith("/") or ".." in suffix.split("/"):
            raise BuildError(f"output_path_suffix {suffix!r} is not relative")
        target = f"{self._prefix}/{suffix}"
        if not (self.bazel_out.is_symlink() and os.readlink(self.bazel_out) == target):
            self.bazel_out.unlink(missing_ok=True)
            self.bazel_out.symlink_to(target)

    def _prepare(self) -> None:
        """What Bazel does in bazel-out before the first action."""
        for name in _DIRECTORIES:
            self._make_directories(name)
        with suppress(FileNotFoundError):
            os.rmdir(self._path("_tmp/actions"))
        os.mkdir(self._path("_tmp/actions"))
        for name in ("stable-status.txt", "volatile-status.txt"):
            self._write(name, f"BUILD_ID {self._build_id}\n".encode())

    def _dirty(self, actions: Sequence[Action]) -> set[str]:
        """Names of the actions that must run: changed ones, and those of whose outputs one is not what it was."""
        groups = [
            (action, [*action.contents(), *action.links]) for action in actions if self._is_known(action)
        ]
        with ThreadPoolExecutor(JOBS * 4) as pool:
            changed = list(pool.map(lambda group: self._outputs_changed(*group), groups))
        clean = {action.name for (action, _), differs in zip(groups, changed, strict=True) if not differs}
        return {action.name for action in actions} - clean

    def _is_known(self, action: Action) -> bool:
        return self._known.get(action.name) == action

    def _outputs_changed(self, action: Action, paths: list[str]) -> bool:
        for top, files in action.trees.items():
            if self._names_below(top) != set(files):
                return True
        for path, found in zip(paths, self._stat(paths), strict=True):
            if path in action.links:
                if not found.stat.HasField("symlink") or os.readlink(self._path(path)) != self._target(
                    action.links[path]
                ):
                    return True
            elif not found.HasField("stat"):
                with suppress(FileNotFoundError, NotADirectoryError):
                    os.lstat(self._path(path))
                    raise BuildError(f"{path}: lstat shows it and BatchStat does not")
                return True
            elif (locator_in(found) or self._digest(path)) != self._digests[path]:
                return True
        return False

    # one action

    def _execute(self, action: Action) -> None:
        outputs = [*action.files, *action.links]
        for path in (*outputs, *action.trees):
            self._remove(path)
        for path in outputs:
            self._make_directories(os.path.dirname(path))
        for top in action.trees:
            self._make_directories(top)
        self._write(f"_actions/{action.name}.params", b"--out\n")
        self._write(f"_tmp/actions/stdout-{action.name}", b"")
        if action.where != "cache" or not self._stage(action):
            self._run(action)
        os.unlink(self._path(f"_tmp/actions/stdout-{action.name}"))
        for path, target in action.links.items():
            with suppress(FileExistsError):  # the action has made it itself
                os.symlink(self._target(target), self._path(path))
        digests = self._take_stock(action)
        self._finalize(digests)
        with self._lock:
            self._known[action.name] = action
            self._digests |= digests
            self._report.executed.append(action.name)

    def _stage(self, action: Action) -> bool:
        """A cache hit. False, after a warning, where Bazel would run the action instead."""
        contents = action.contents()
        request = service.StageArtifactsRequest(build_id=self._build_id)
        for path, data in contents.items():
            request.artifacts.add(path=path, locator=pack(digest_of(data)))
        try:
            reply = self._call("StageArtifacts", request, service.StageArtifactsResponse)
        except grpc.RpcError:
            refused = True
        else:
            refused = len(reply.responses) != len(contents) or any(
                response.status.code for response in reply.responses
            )
        if refused:
            with self._lock:
                self._report.fell_back.append(action.name)
        return not refused

    def _run(self, action: Action) -> None:
        if action.where == "sandbox":
            for path, data in action.contents().items():
                self._copy_in(path, data)
            return
        # Processes of the action work in the mount: they truncate what is there, rename into place, make directories.
        for path, data in action.contents().items():
            where = str(self._path(path))
            script = 'mkdir -p "$(dirname "$1")"; cat > "$1"; cat "$1" > "$1.tmp"; mv "$1.tmp" "$1"'
            subprocess.run(["sh", "-ec", script, "action", where], input=data, check=True, cwd=self.execroot)

    def _copy_in(self, path: str, data: bytes) -> None:
        """An output of a sandboxed action, moved by the Bazel server."""
        made = self._sandbox / action_file(path)
        made.parent.mkdir(parents=True, exist_ok=True)
        made.write_bytes(data)
        self._make_directories(os.path.dirname(path))
        target = self._path(path)
        with suppress(FileNotFoundError):
            os.unlink(target)
        try:
            os.rename(made, target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
        else:
            raise BuildError("the sandbox lies in the mount")
        self._write(path, data)
        os.utime(target, ns=(os.lstat(target).st_atime_ns, int(time.time()) * 10**9))
        os.chmod(target, 0o666)
        made.unlink()
        for _ in range(2):  # once to hash it, once to send it
            if target.read_bytes() != data:
                raise BuildError(f"{path}: reads other bytes than were written")

    def _take_stock(self, action: Action) -> dict[str, reapi.Digest]:
        """The metadata of an action's outputs, one after the other: lstat, chmod, one BatchStat each."""
        for top, files in action.trees.items():
            found = self._names_below(top)
            if found != set(files):
                raise BuildError(f"{top}: holds {sorted(found)}, expected {sorted(files)}")
            for directory, _, _ in os.walk(self._path(top)):
                os.chmod(directory, 0o555)
        digests: dict[str, reapi.Digest] = {}
        for path in action.contents():
            where = self._path(path)
            try:
                mode = os.lstat(where).st_mode
            except FileNotFoundError:
                raise BuildError(f"{path}: output was not created") from None
            if not stat.S_ISREG(mode):
                raise BuildError(f"{path}: is no regular file")
            if stat.S_IMODE(mode) != 0o555:
                os.chmod(where, 0o555)
                if stat.S_IMODE(os.lstat(where).st_mode) != 0o555:
                    raise BuildError(f"{path}: chmod did nothing")
            digests[path] = self._digest(path)
        for path, target in action.links.items():
            if os.readlink(self._path(path)) != self._target(target):
                raise BuildError(f"{path}: is another link")
            behind = self._path(path).resolve(strict=True)
            if behind.is_file() and behind.is_relative_to(self.bazel_out.resolve()):
                # Links are resolved before Bazel asks, and the digest given for one is its target's.
                digests[path] = self._digest(str(behind.relative_to(self.bazel_out.resolve())))
        return digests

    def _digest(self, path: str) -> reapi.Digest:
        """By a single-path BatchStat; by reading the file where that tells none."""
        (found,) = self._stat([path])
        if not found.HasField("stat"):
            raise BuildError(
                f"{path}: inconsistent file system operations, lstat shows it and BatchStat does not"
            )
        digest = locator_in(found)
        if digest is None:
            with self._lock:
                self._report.unlocated.append(path)
            digest = digest_of(self._path(path).read_bytes())
        return digest

    def _finalize(self, digests: Mapping[str, reapi.Digest]) -> None:
        request = service.FinalizeArtifactsRequest(build_id=self._build_id)
        for path, digest in digests.items():
            request.artifacts.add(path=path, locator=pack(digest))
        self._call("FinalizeArtifacts", request, service.FinalizeArtifactsResponse)

    # the file system

    def _path(self, path: str) -> Path:
        return self.bazel_out / path

    def _target(self, target: str) -> str:
        return target.format(execroot=self.execroot)

    def _write(self, path: str, data: bytes) -> None:
        fd = os.open(self._path(path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            os.write(fd, data)
        finally:
            os.close(fd)

    def _make_directories(self, path: str) -> None:
        """As Bazel does it: lstat first, mkdir where there is nothing."""
        if not path:
            return
        try:
            mode = os.lstat(self._path(path)).st_mode
        except FileNotFoundError:
            self._make_directories(os.path.dirname(path))
            with suppress(FileExistsError):
                os.mkdir(self._path(path))
        else:
            if not stat.S_ISDIR(mode):
                raise BuildError(f"{path}: is in the way")

    def _remove(self, path: str) -> None:
        """An old output: unlink, and a tree where that is refused."""
        where = self._path(path)
        try:
            os.unlink(where)
        except FileNotFoundError:
            pass
        except NotADirectoryError:
            pass
        except IsADirectoryError:
            self._remove_tree(where)

    def _remove_tree(self, where: Path) -> None:
        os.chmod(where, 0o755)  # its directories are read-only
        for entry in os.scandir(where):
            if entry.is_dir(follow_symlinks=False):
                self._remove_tree(Path(entry.path))
            else:
                os.unlink(entry.path)
        os.rmdir(where)

    def _names_below(self, top: str) -> set[str]:
        where = self._path(top)
        return {
            str((Path(directory) / name).relative_to(where))
            for directory, _, names in os.walk(where)
            for name in names
        }

    # the calls

    def _stat(self, paths: Iterable[str]) -> Sequence[service.BatchStatResponse.StatResponse]:
        request = service.BatchStatRequest(build_id=self._build_id, paths=paths)
        responses = self._call("BatchStat", request, service.BatchStatResponse).responses
        if len(responses) != len(request.paths):
            raise BuildError(f"BatchStat: {len(responses)} replies to {len(request.paths)} paths")
        return responses

    def _call(self, method: str, request: Message, reply: type[M]) -> M:
        with self._lock:
            self._report.calls[method] += 1
        return retried(lambda: call(self._channel, _SERVICE + method, request, reply))


def retried(attempt: Callable[[], M]) -> M:
    """As Bazel's retrier: five more tries on codes that may pass, 100 ms and doubling between them."""
    pause = 0.1
    for _ in range(_RETRIES):
        try:
            return attempt()
        except grpc.RpcError as error:
            if error.code() not in _RETRIED:
                raise
        time.sleep(pause)
        pause *= 2
    return attempt()


def action_file(path: str) -> str:
    """Where a sandboxed action writes an output: a place of its own for each path."""
    return hashlib.sha256(path.encode()).hexdigest()
