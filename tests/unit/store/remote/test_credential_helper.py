"""Credential helpers: the protocol with real programs, good and bad; what is kept, for how long, and who asks again."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path

import pytest

from outputd.errors import Denied, OutputdError, TimedOut
from outputd.store.remote import parse_endpoint
from outputd.store.remote.cached_helper import CachedHelper
from outputd.store.remote.credential_helper import ask, helper_for, parse
from tests.unit.store.worlds import run, until

SECRET = "Zq8canaryZq8canary"


def program(directory: Path, body: str, name: str = "helper") -> str:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o700)
    return str(path)


def telling(directory: Path, *, expires: str = "") -> str:
    """A helper that counts how often it ran, in the token that it tells."""
    ends = f', \\"expires\\": \\"{expires}\\"' if expires else ""
    return program(
        directory,
        f"echo x >> {directory}/runs; n=$(wc -l < {directory}/runs); [ -e {directory}/broken ] && exit 3; cat > {directory}/uri\n"
        f'echo "{{\\"headers\\": {{\\"Authorization\\": [\\"Bearer token$n\\"]}}{ends}}}"',
    )


def runs(directory: Path) -> int:
    path = directory / "runs"
    return len(path.read_text().split()) if path.exists() else 0


class TestAsk:
    def test_what_is_asked_and_told(self, tmp_path: Path) -> None:
        async def test() -> None:
            path = program(
                tmp_path,
                f'echo "$@" > {tmp_path}/arguments; cat > {tmp_path}/request\n'
                """echo '{"headers": {"Authorization": ["Bearer a"], "x-two": ["1", "2"]},'"""
                """ '"expires": "2027-01-15T10:00:00.25+02:00"}'""",
            )
            told = await ask(path, "https://cache:1", 10)
            assert told.headers == (("authorization", "Bearer a"), ("x-two", "1"), ("x-two", "2"))
            assert told.expires == 1_800_000_000
            assert (tmp_path / "arguments").read_text() == "get\n"
            assert json.loads((tmp_path / "request").read_text()) == {"uri": "https://cache:1"}
            assert "Bearer" not in repr(told)

        run(test)

    @pytest.mark.parametrize(
        ("body", "wrong"),
        [
            ("exit 7", r"ended with exit code 7$"),
            ("echo first >&2; echo log in first >&2; exit 1", r"exit code 1 and said: log in first$"),
            (f"echo token: {SECRET} is bad >&2; exit 1", r"exit code 1 and said: token: \*{8} is bad$"),
            (f"echo refused {SECRET} >&2; exit 1", r"said: refused \*{8}$"),
            ("kill -9 $$", r"was ended by SIGKILL$"),
            (f"echo {SECRET}", r"printed 19 bytes that are not JSON$"),
            (f"echo '[\"{SECRET}\"]'", r"JSON that is no object$"),
            (f"""echo '{{"headers": {{"a": "{SECRET}"}}}}'""", r'"headers" that are not lists of text'),
            (
                f"""echo '{{"headers": {{"grpc-a": ["{SECRET}"]}}}}'""",
                r"a header that cannot be sent: .*'grpc-a'",
            ),
            (f"""echo '{{"headers": {{"a": ["{SECRET}\\u0001"]}}}}'""", r"holds more than printable ASCII"),
            ("""echo '{"expires": "tomorrow"}'""", r'an "expires" that is no time'),
            ("""echo '{"expires": "2027-13-41T10:00:00Z"}'""", r'an "expires" that is no time'),
            ("head -c 2000000 /dev/zero", r"more than 1048576 bytes$"),
        ],
    )
    def test_what_fails_is_said_without_secrets(self, tmp_path: Path, body: str, wrong: str) -> None:
        async def test() -> None:
            with pytest.raises(Denied, match=wrong) as caught:
                await ask(program(tmp_path, body), "https://cache", 20)
            assert SECRET not in repr(caught.value) + repr(caught.value.__cause__)

        run(test)

    def test_one_that_is_not_there(self) -> None:
        async def test() -> None:
            with pytest.raises(Denied, match="/none/helper cannot be run: No such file"):
                await ask("/none/helper", "https://cache", 5)

        run(test)

    def test_one_that_hangs_is_ended_with_its_children(self, tmp_path: Path) -> None:
        async def test() -> None:
            body = f"sleep 1000 & echo $! > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/child; wait"
            path = program(tmp_path, body)
            seconds = 0.5
            while not (tmp_path / "child").exists():  # on a machine that stands still it may not come so far
                with pytest.raises(TimedOut, match=rf"did not end within {seconds:g} s"):
                    await ask(path, "https://cache", seconds)
                seconds *= 2
            child = int((tmp_path / "child").read_text())
            await until(lambda: not alive(child))

        run(test)

    def test_one_that_talks_on_standard_error_without_end(self, tmp_path: Path) -> None:
        async def test() -> None:
            path = program(tmp_path, "head -c 3000000 /dev/zero >&2; echo '{}'")
            assert (await ask(path, "https://cache", 20)).headers == ()

        run(test)

    def test_nothing_told_is_an_answer(self) -> None:
        assert parse(b"{}", "h").headers == ()


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("host", "found"),
    [
        ("a.b.example.com", "deep"),
        ("b.example.com", "deep"),
        ("x.example.com", "wide"),
        ("exact.example.com", "exact"),
        ("badexample.com", "rest"),
        ("other", "rest"),
    ],
)
def test_the_closest_pattern_counts(host: str, found: str) -> None:
    helpers = [
        ("", "rest"),
        ("exact.example.com", "exact"),
        ("*.b.example.com", "deep"),
        ("*.example.com", "wide"),
    ]
    assert helper_for(parse_endpoint(f"grpcs://{host}"), helpers) == found
    assert helper_for(parse_endpoint(f"grpcs://{host}"), [("none", "x")]) is None


@pytest.mark.parametrize(
    ("url", "uri"),
    [
        ("grpcs://h", "https://h"),
        ("h:443", "https://h"),
        ("grpc://h:80", "https://h:80"),
        ("grpcs://[::1]:1", "https://[::1]:1"),
        ("unix:/s", "unix:/s"),
    ],
)
def test_how_a_server_is_called(url: str, uri: str) -> None:
    assert parse_endpoint(url).uri == uri


class Clock:
    """The time of day, moved by the test."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


class TestCached:
    def test_one_question_for_all_who_wait(self, tmp_path: Path) -> None:
        async def test() -> None:
            helper = CachedHelper(telling(tmp_path), "https://h", 10, 1800)
            assert helper.headers() == ()
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(helper.prepare()) for _ in range(20)]
            assert [task.result() for task in tasks] == [None] * 20
            assert runs(tmp_path) == 1
            assert helper.headers() == (("authorization", "Bearer token1"),)
            assert helper.facts().expires is None  # nobody said; the duration is ours

        run(test)

    def test_asked_again_when_it_has_ended(self, tmp_path: Path) -> None:
        async def test() -> None:
            clock = Clock()
            helper = CachedHelper(telling(tmp_path), "https://h", 10, 1800, clock)
            await helper.prepare()
            clock.now += 1799
            await helper.prepare()
            assert runs(tmp_path) == 1
            clock.now += 2
            assert helper.headers() == ()
            await helper.prepare()
            assert helper.headers() == (("authorization", "Bearer token2"),)

        run(test)

    def test_asked_again_in_the_background_before_that_if_it_is_used(self, tmp_path: Path) -> None:
        async def test() -> None:
            clock = Clock()
            helper = CachedHelper(telling(tmp_path), "https://h", 10, 1800, clock)
            await helper.prepare()
            clock.now += 1745  # within the last minute
            running = asyncio.create_task(helper.run())
            await asyncio.sleep(0.05)
            assert runs(tmp_path) == 1  # nobody uses it
            assert helper.headers() == (("authorization", "Bearer token1"),)
            await until(lambda: helper.headers() == (("authorization", "Bearer token2"),))
            running.cancel()

        run(test)

    def test_a_failure_leaves_what_there_is_until_it_ends(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def test() -> None:
            clock = Clock()
            helper = CachedHelper(telling(tmp_path), "https://h", 10, 1800, clock)
            await helper.prepare()
            (tmp_path / "broken").touch()
            clock.now += 1745
            running = asyncio.create_task(helper.run())
            assert helper.headers() == (("authorization", "Bearer token1"),)
            await until(lambda: helper.facts().error != "")
            assert "exit code 3" in helper.facts().error
            assert helper.headers() == (("authorization", "Bearer token1"),)
            assert await helper.prepare() is None
            clock.now += 60
            running.cancel()
            refusals = [await helper.prepare() for _ in range(5)]
            assert all(isinstance(refusal, Denied) for refusal in refusals)
            assert runs(tmp_path) <= 3  # it rests after a failure
            (tmp_path / "broken").unlink()
            clock.now += 20
            assert await helper.prepare() is None
            assert helper.facts().error == ""

        run(test)
        (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
        assert "exit code 3; what it told before serves until" in record.message

    def test_what_has_ended_already_is_refused(self, tmp_path: Path) -> None:
        async def test() -> None:
            helper = CachedHelper(telling(tmp_path, expires="2001-01-01T00:00:00Z"), "https://h", 10, 1800)
            refusal = await helper.prepare()
            assert isinstance(refusal, OutputdError) and "headers that have ended" in str(refusal)

        run(test)

    def test_a_refusal_by_the_server_asks_once(self, tmp_path: Path) -> None:
        async def test() -> None:
            helper = CachedHelper(telling(tmp_path), "https://h", 10, 1800)
            await helper.prepare()
            sent = helper.headers()
            async with asyncio.TaskGroup() as group:
                for _ in range(10):
                    group.create_task(helper.renew(sent))
            assert runs(tmp_path) == 2
            await helper.renew(helper.headers())
            assert runs(tmp_path) == 2  # not for each call of a server that takes nothing

        run(test)

    def test_one_who_gives_up_waiting_does_not_spoil_it(self, tmp_path: Path) -> None:
        async def test() -> None:
            os.mkfifo(tmp_path / "gate")
            path = program(tmp_path, f"read line < {tmp_path}/gate; echo '{{}}'")
            helper = CachedHelper(path, "https://h", 10, 1800)
            first = asyncio.create_task(helper.prepare())
            await asyncio.sleep(0.05)
            second = asyncio.create_task(helper.prepare())
            first.cancel()
            await asyncio.sleep(0.05)
            gate = os.open(tmp_path / "gate", os.O_RDWR)
            os.write(gate, b"go\n")
            assert await second is None
            os.close(gate)

        run(test)
