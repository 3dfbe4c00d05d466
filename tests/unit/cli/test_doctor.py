"""outputd.cli.doctor and outputd.cli.checks: each verdict can be reached, and each bad one says what to do."""

from __future__ import annotations

import base64
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from outputd._proto.admin_pb2 import GetStatusResponse
from outputd.cli.checks import daemon as daemon_checks
from outputd.cli.checks import directories, host
from outputd.cli.checks.finding import Finding, Verdict, passed
from outputd.cli.checks.remote import configured, credential, fit, no_remote, remote_server
from outputd.cli.doctor import _within_time
from outputd.config import TcpAddress, UnixAddress, load
from outputd.digest import DigestFunction
from outputd.errors import Unavailable
from outputd.store.base import RemoteAbilities
from outputd.store.remote.credential_facts import facts_of
from tests.unit.cli.conftest import Commands


def verdicts(findings: list[Finding] | Iterator[Finding]) -> list[tuple[str, str]]:
    findings = list(findings)
    for finding in findings:
        assert (finding.fix is None) == (finding.verdict is Verdict.PASS), finding
    return [(finding.check, str(finding.verdict)) for finding in findings]


class TestVerb:
    def test_people(self, outputd: Commands, tmp_path: Path) -> None:
        spoken = outputd("doctor")
        lines = spoken.out.splitlines()
        assert lines[0] == "pass  settings: no file; defaults, environment and flags"
        assert f"pass  mount: {tmp_path}/outputd does not exist yet; `outputd serve` makes it" in lines
        assert "warn  daemon: no daemon runs here" in lines
        assert "      fix: outputd serve" in lines
        assert lines[-1].endswith(" fail")

    def test_programs_and_exit_code(self, outputd: Commands, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        spoken = outputd("doctor", "--json", "--mount", f"{tmp_path}/file")
        findings = {finding["check"]: finding for finding in json.loads(spoken.out)["findings"]}
        assert findings["mount"]["verdict"] == "fail"
        assert findings["mount"]["reason"] == f"{tmp_path}/file is not a directory"
        assert "--mount" in findings["mount"]["fix"]
        assert spoken.code == 1

    def test_settings_that_cannot_be_read_are_findings(self, outputd: Commands) -> None:
        spoken = outputd("doctor", "--log-level", "loud")
        assert spoken.code == 1
        assert "fail  settings: --log-level: [log] level: 'loud' is not one of" in spoken.out
        assert "fuse: " in spoken.out  # the machine is examined all the same
        assert "mount: " not in spoken.out


class TestWithinTime:
    def test_a_check_that_does_not_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("outputd.cli.doctor._CHECK_SECONDS", 0.05)
        released = threading.Event()

        def hang() -> list[Finding]:
            released.wait()
            return [passed("x", "too late")]

        (finding,) = _within_time("x", hang)
        released.set()
        assert (finding.verdict, finding.reason) == (Verdict.FAIL, "no answer within 0.05 s")

    def test_a_check_that_meets_an_error(self) -> None:
        def refuse() -> Iterator[Finding]:
            yield passed("x", "so far")
            raise PermissionError(13, "Permission denied", "/proc/x")

        (finding,) = _within_time("x", refuse)
        assert finding.verdict is Verdict.FAIL
        assert "Permission denied: '/proc/x'" in finding.reason

    def test_a_bug_in_a_check_is_seen(self) -> None:
        def wrong() -> list[Finding]:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            _within_time("x", wrong)


class TestFuse:
    def test_it_opens(self) -> None:
        assert host.fuse_device("/dev/null").verdict is Verdict.PASS

    def test_absent(self, tmp_path: Path) -> None:
        finding = host.fuse_device(f"{tmp_path}/fuse")
        assert finding.verdict is Verdict.FAIL
        assert finding.reason.endswith("cannot be opened: No such file or directory")
        assert finding.fix is not None
        assert "modprobe fuse" in finding.fix

    @pytest.mark.parametrize(
        ("code", "fix"), [(1, "--device /dev/fuse"), (13, "chmod 0666"), (19, "modprobe fuse"), (5, "dmesg")]
    )
    def test_refused(self, monkeypatch: pytest.MonkeyPatch, code: int, fix: str) -> None:
        def refuse(path: str, flags: int) -> int:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr("outputd.cli.checks.host.os.open", refuse)
        finding = host.fuse_device("/dev/fuse")
        assert finding.verdict is Verdict.FAIL
        assert finding.fix is not None
        assert fix in finding.fix


class TestRightToMount:
    def test_capability(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(host, "may_mount", lambda: True)
        assert host.right_to_mount({}).verdict is Verdict.PASS
        assert host.right_to_allow_other("/none").verdict is Verdict.PASS

    def test_fusermount3(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(host, "may_mount", lambda: False)
        environ = {"PATH": str(tmp_path)}
        lacking = host.right_to_mount(environ)
        assert lacking.verdict is Verdict.FAIL
        assert "apt-get install fuse3" in str(lacking.fix)
        program = tmp_path / "fusermount3"
        program.touch(mode=0o755)
        assert "is not setuid root" in host.right_to_mount(environ).reason
        program.chmod(0o4755)
        if os.getuid() == 0:
            assert host.right_to_mount(environ).verdict is Verdict.PASS

    def test_allow_other(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(host, "may_mount", lambda: False)
        conf = tmp_path / "fuse.conf"
        assert host.right_to_allow_other(str(conf)).verdict is Verdict.FAIL
        conf.write_text("#user_allow_other\n")
        assert host.right_to_allow_other(str(conf)).verdict is Verdict.FAIL
        conf.write_text("# comment\nuser_allow_other\n")
        assert host.right_to_allow_other(str(conf)).verdict is Verdict.PASS


class TestDirectories:
    def test_mount_point(self, tmp_path: Path) -> None:
        assert directories.mount_point(f"{tmp_path}/new/er").verdict is Verdict.PASS
        (tmp_path / "empty").mkdir()
        assert directories.mount_point(f"{tmp_path}/empty").verdict is Verdict.PASS
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "x").touch()
        finding = directories.mount_point(f"{tmp_path}/full")
        assert finding.verdict is Verdict.FAIL
        assert "holds 1 names, 'x' for one" in finding.reason

    def test_store_directory(self, tmp_path: Path) -> None:
        uid = os.getuid()
        found = directories.store_directory("cache", f"{tmp_path}/new", "--cache-dir", uid)
        assert [check for check, _ in verdicts(found)] == ["cache", "cache room"]
        (tmp_path / "file").touch()
        assert verdicts(directories.store_directory("cache", f"{tmp_path}/file", "--cache-dir", uid)) == [
            ("cache", "fail")
        ]
        foreign = directories.store_directory("cache", str(tmp_path), "--cache-dir", uid + 1)
        assert verdicts(foreign)[0] == ("cache", "fail")

    @pytest.mark.parametrize(
        ("free", "inodes", "verdict"), [(1, 10**9, "fail"), (1 << 30, 10**9, "warn"), (1 << 40, 5, "warn")]
    )
    def test_room(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: int, inodes: int, verdict: str
    ) -> None:
        full = os.statvfs_result((4096, 1, free, free, free, inodes, inodes, inodes, 0, 255))
        monkeypatch.setattr("outputd.cli.checks.directories.os.statvfs", lambda path: full)
        assert verdicts(directories.store_directory("state", str(tmp_path), "--state-dir", os.getuid()))[
            1
        ] == ("state room", verdict)


class TestDaemon:
    def at(self, path: Path | str) -> list[tuple[str, str]]:
        environ = {"HOME": "/home/ed"}
        return verdicts(daemon_checks.daemon_at(UnixAddress(str(path)), "/mnt/out", environ))

    def test_free(self, tmp_path: Path) -> None:
        assert self.at(tmp_path / "s") == [("socket", "pass"), ("daemon", "warn")]

    def test_no_directory(self, tmp_path: Path) -> None:
        assert self.at(tmp_path / "none" / "s") == [("socket", "fail")]

    def test_left_behind(self, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(f"{tmp_path}/s")
        assert self.at(tmp_path / "s") == [("socket", "pass"), ("daemon", "warn")]

    def test_not_a_socket(self, tmp_path: Path) -> None:
        (tmp_path / "s").touch()
        assert self.at(tmp_path / "s") == [("socket", "fail")]

    def test_running(self, daemon: GetStatusResponse, tmp_path: Path) -> None:
        daemon.version = "0.0.1"
        assert self.at(tmp_path / "outputd.sock") == [("daemon", "pass"), ("version", "warn")]

    def test_running_with_another_mount(self, daemon: GetStatusResponse, tmp_path: Path) -> None:
        daemon.mount.path = "/elsewhere"
        assert ("mount path", "warn") in self.at(tmp_path / "outputd.sock")

    def test_tcp(self) -> None:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            port = closed.getsockname()[1]
        assert verdicts(daemon_checks.daemon_at(TcpAddress("127.0.0.1", port), "/m", {})) == [
            ("daemon", "warn")
        ]

    def test_tcp_for_everybody(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def away(address: object, environ: object) -> GetStatusResponse:
            raise Unavailable("away")

        monkeypatch.setattr(daemon_checks, "status_at", away)
        assert verdicts(daemon_checks.daemon_at(TcpAddress("0.0.0.0", 1), "/m", {}))[0] == ("listen", "warn")


def test_uploads_that_wait_for_long_or_are_refused() -> None:
    def told(now: float) -> list[tuple[str, str]]:
        return [(found.reason, found.verdict.value) for found in daemon_checks.offline_queues(status, now)]

    status = GetStatusResponse()
    assert told(0) == []
    queue = status.remotes.add(name="team", url="grpc://t").offline_queue
    queue.blobs, queue.results, queue.last_error = 3, 1, "away"
    queue.oldest.FromSeconds(1_800_000_000)
    assert told(1_800_000_000 + 23 * 3600) == []
    assert told(1_800_000_000 + 25 * 3600) == [
        ("4 uploads have waited for grpc://t for up to 25 hours: away", "warn")
    ]
    queue.ClearField("oldest")
    queue.refused.add(error="read only")
    assert told(0) == [("1 uploads were set aside, grpc://t refuses them: read only", "warn")]


class TestRemote:
    def check(self, **variables: str) -> list[Finding]:
        environ = {"HOME": "/home/ed"} | {
            f"OUTPUTD_REMOTE_{name.upper()}": text for name, text in variables.items()
        }
        return [finding for one in configured(load({}, environ).config) for finding in remote_server(one)]

    def test_none(self) -> None:
        assert self.check() == []
        assert verdicts(no_remote()) == [("remote", "pass")]

    def test_away(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr("outputd.cli.checks.remote._RETRY_SECONDS", 0.0)
        (finding,) = self.check(url=f"unix:{tmp_path}/none")
        assert finding.verdict is Verdict.FAIL
        assert f"unix:{tmp_path}/none" in finding.reason

    def test_a_header_file_that_is_absent(self) -> None:
        (finding,) = self.check(url="grpc://h:1", headers="authorization=@/none")
        assert "remote header 'authorization': /none cannot be read" in finding.reason

    def test_whose_token_and_until_when_but_not_the_token(self, tmp_path: Path) -> None:
        claims = (
            base64.urlsafe_b64encode(b'{"sub": "ed@example.com", "exp": 1800000000}').decode().rstrip("=")
        )
        token = f"aaaaaaaa.{claims}.cccccccc"
        (one,) = configured(load({"remote.url": "grpcs://h:1"}, {"HOME": "/h"}).config)
        finding = credential(facts_of((("authorization", f"Bearer {token}"),), "/run/token"), one)
        assert finding.reason == (
            "[remote] authorization from /run/token, of ed@example.com, until 2027-01-15T08:00:00Z"
        )

    @pytest.mark.parametrize(
        ("functions", "verdict"),
        [({1, 9}, "pass"), ({9}, "warn"), (set(), "fail")],
        ids=["sha256", "blake3", "none"],
    )
    def test_digest_functions(self, functions: set[int], verdict: str) -> None:
        abilities = RemoteAbilities(
            frozenset(map(DigestFunction, functions)),
            1 << 20,
            frozenset(),
            frozenset(),
            "2.0-2.3",
            splits=False,
        )
        assert verdicts(fit(abilities)) == [("digest function", verdict)]
