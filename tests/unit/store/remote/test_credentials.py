"""Whose headers a call carries: settings, files, helpers, clients; what happens when a server does not take them any more."""

from __future__ import annotations

import asyncio
import base64
import logging
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from outputd.errors import Denied, Invalid
from outputd.store.remote import RemoteOptions, RemoteStore, parse_endpoint, watched
from outputd.store.remote.caller import Caller, caller, caller_of
from outputd.store.remote.credential_facts import facts_of, guessed
from outputd.store.remote.credentials import Credentials
from tests.unit.store.fake_remote import Fault
from tests.unit.store.remote.test_credential_helper import Clock, program, runs, telling
from tests.unit.store.worlds import PATIENT, remote_world, run

ENDPOINT = parse_endpoint("grpcs://h")
OLD, NEW = "Bearer canary-old-77", "Bearer canary-new-88"


@pytest.fixture(autouse=True)
def looks_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are looked at whenever they are asked for."""
    monkeypatch.setattr(watched, "LOOK_SECONDS", 0.0)


def options(**changed: object) -> RemoteOptions:
    return replace(PATIENT, **changed)  # type: ignore[arg-type]


class TestSources:
    def test_the_first_that_has_a_header_counts(self, tmp_path: Path) -> None:
        async def test() -> None:
            (tmp_path / "b").write_text("file\n")
            helper = program(
                tmp_path, """echo '{"headers": {"a": ["helper"], "b": ["helper"], "c": ["helper"]}}'"""
            )
            credentials = Credentials(
                ENDPOINT,
                options(
                    headers={"A": "settings"},
                    header_files={"b": f"{tmp_path}/b"},
                    credential_helpers=[("", helper)],
                ),
            )
            assert await credentials.prepare() is None
            assert credentials.headers((("authorization", "client"),)) == (
                ("a", "settings"),
                ("b", "file"),
                ("c", "helper"),
                ("authorization", "client"),
            )
            assert [facts.source for facts in credentials.facts()] == [
                "settings",
                f"{tmp_path}/b",
                f"credential helper {helper}",
            ]

        run(test)

    def test_a_file_is_read_again_when_it_changes(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = tmp_path / "token"
        path.write_text(OLD)
        credentials = Credentials(ENDPOINT, options(header_files={"authorization": str(path)}))
        assert credentials.headers() == (("authorization", OLD),)
        path.write_text(NEW)
        assert credentials.headers() == (("authorization", NEW),)
        (tmp_path / "next").write_text(OLD)
        (tmp_path / "next").rename(path)
        assert credentials.headers() == (("authorization", OLD),)
        for broken in ("", "two\nlines", "caf\xe9"):
            path.write_text(broken)
            assert credentials.headers() == (("authorization", OLD),)
        assert "does not hold one line" in credentials.facts()[0].error
        path.unlink()
        assert credentials.headers() == (("authorization", OLD),)
        path.write_text(NEW)
        assert credentials.headers() == (("authorization", NEW),)
        assert credentials.facts()[0].error == ""
        assert "what it held before stays in use" in caplog.text

    def test_a_file_is_looked_at_every_few_seconds_only(self, tmp_path: Path) -> None:
        path = tmp_path / "token"
        path.write_text("one")
        now = 0.0
        watch = watched.Watch([str(path)], lambda: now)
        path.write_text("two")
        watched_seconds = 2.0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(watched, "LOOK_SECONDS", watched_seconds)
            now = 5.0
            assert watch.changed()
            path.write_text("three")
            now = 6.9
            assert not watch.changed()
            assert watch.changed(at_once=True)
            now = 9.0
            assert watch.changed()

    @pytest.mark.parametrize("content", ["", "two\nlines", "caf\xe9"])
    def test_a_file_that_will_not_do(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "token").write_bytes(content.encode("latin-1"))
        with pytest.raises(Invalid, match=r"header 'a': .*/token does not hold one line"):
            Credentials(ENDPOINT, options(header_files={"a": f"{tmp_path}/token"}))

    def test_a_file_that_is_absent(self, tmp_path: Path) -> None:
        with pytest.raises(Invalid, match=r"header 'a': .*/token cannot be read: No such file"):
            Credentials(ENDPOINT, options(header_files={"a": f"{tmp_path}/token"}))

    def test_what_a_client_has_shown_serves_for_a_while(self) -> None:
        clock = Clock()
        credentials = Credentials(ENDPOINT, options(remember_authorization=60), clock)
        assert credentials.headers() == ()
        assert credentials.headers((("authorization", OLD),)) == (("authorization", OLD),)
        assert credentials.headers() == (("authorization", OLD),)
        (facts,) = credentials.facts()
        assert (facts.source, facts.expires) == ("a client's call", clock.now + 60)
        clock.now += 61
        assert credentials.headers() == () and credentials.facts() == []

    def test_it_does_not_serve_where_that_was_not_asked_for(self) -> None:
        credentials = Credentials(ENDPOINT, options(remember_authorization=0))
        assert credentials.headers((("authorization", OLD),)) == (("authorization", OLD),)
        assert credentials.headers() == ()

    def test_it_does_not_displace_what_is_configured(self) -> None:
        credentials = Credentials(
            ENDPOINT, options(remember_authorization=60, headers={"authorization": NEW})
        )
        assert credentials.headers((("authorization", OLD),)) == (("authorization", NEW),)
        assert [facts.source for facts in credentials.facts()] == ["settings"]

    def test_headers_of_clients_by_name(self) -> None:
        clock = Clock()
        chosen = options(
            remember_authorization=60, client_headers=("authorization", "x-key"), headers={"x-fixed": "1"}
        )
        credentials = Credentials(ENDPOINT, chosen, clock)
        shown = (("user-agent", "bazel"), ("x-key", OLD), ("x-other", "no"), ("x-fixed", "2"), ("x-key", NEW))
        assert credentials.headers(shown) == (("x-fixed", "1"), ("x-key", OLD), ("x-key", NEW))
        clock.now += 30
        token = ("authorization", "Bearer t")
        assert credentials.headers((token,)) == (("x-fixed", "1"), token, ("x-key", OLD), ("x-key", NEW))
        assert [facts.names for facts in credentials.facts()] == [
            *(("x-fixed",), ("x-key",), ("authorization",))
        ]
        clock.now += 40
        assert credentials.headers() == (("x-fixed", "1"), token)

    def test_none_of_a_client(self) -> None:
        credentials = Credentials(ENDPOINT, options(client_headers=(), remember_authorization=60))
        assert credentials.headers((("authorization", OLD),)) == ()


class TestNetrc:
    def test_it_comes_last_and_changes(self, tmp_path: Path) -> None:
        path = tmp_path / "netrc"
        credentials = Credentials(ENDPOINT, options(netrc=str(path), remember_authorization=60))
        assert credentials.headers() == () and credentials.facts() == []
        path.write_text("machine h login ed password canary-pw-1")
        value = "Basic " + base64.b64encode(b"ed:canary-pw-1").decode()
        assert credentials.headers() == (("authorization", value),)
        (facts,) = credentials.facts()
        assert (facts.source, facts.names, facts.subject) == (str(path), ("authorization",), "")
        assert credentials.headers((("authorization", OLD),)) == (("authorization", OLD),)
        assert credentials.headers() == (("authorization", OLD),)
        assert credentials.scrubbed("who is ed:canary-pw-1, canary-pw-1?") == "who is ********, ********?"
        path.unlink()
        assert Credentials(ENDPOINT, options(netrc=str(path))).headers() == ()

    def test_what_a_client_has_shown_and_nobody_takes_gives_way_to_it(self, tmp_path: Path) -> None:
        async def test() -> None:
            path = tmp_path / "netrc"
            path.write_text("default login ed password secret")
            value = "Basic " + base64.b64encode(b"ed:secret").decode()
            credentials = Credentials(ENDPOINT, options(netrc=str(path), remember_authorization=60))
            refused = credentials.headers((("authorization", OLD),))
            assert await credentials.renew(refused)
            assert credentials.headers() == (("authorization", value),)
            assert not await credentials.renew(credentials.headers())
            path.write_text("default login ed password better")
            assert await credentials.renew((("authorization", value),))

        run(test)

    def test_who_has_a_helper_or_no_host_does_without(self, tmp_path: Path) -> None:
        (tmp_path / "netrc").write_text("default login ed password secret")
        chosen = options(netrc=f"{tmp_path}/netrc")
        assert Credentials(parse_endpoint("unix:/s"), chosen).headers() == ()
        helped = replace(chosen, credential_helpers=[("", program(tmp_path, "exit 1"))])
        assert Credentials(ENDPOINT, helped).headers() == ()
        other = replace(chosen, credential_helpers=[("other.example.com", "/nowhere")])
        assert len(Credentials(ENDPOINT, other).headers()) == 1

    def test_what_cannot_be_read_leaves_what_was(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = tmp_path / "netrc"
        path.write_text("machine h login ed password secret-7")
        credentials = Credentials(ENDPOINT, options(netrc=str(path)))
        before = credentials.headers()
        path.write_text("machine h login ed\npassword canary-pw canary-word\n")
        assert credentials.headers() == before
        (facts,) = credentials.facts()
        assert facts.error == f"{path}: line 2 has what no .netrc has there"
        assert caplog.text.count("stays in use") == 1
        credentials.headers()
        assert caplog.text.count("stays in use") == 1
        assert "canary" not in caplog.text
        path.write_text("machine other login ed password secret-7")
        assert credentials.headers() == ()


class TestRefused:
    def test_a_token_that_ends_midway_of_a_large_read(self, tmp_path: Path) -> None:
        async def test() -> None:
            chosen = options(credential_helpers=[("", telling(tmp_path))], retry_seconds=0)
            async with remote_world(chosen) as (fake, client):
                data = bytes(range(256)) * 4000
                digest = fake.add(data)
                fake.accepts = {"Bearer token1"}
                came = b""
                async with aclosing(client.read_stream(digest)) as pieces:
                    fake.fail("Read", Fault(code=grpc.StatusCode.UNAUTHENTICATED, after=500_000))
                    async for piece in pieces:
                        came += piece
                        fake.accepts = {"Bearer token2"}
                assert came == data
                assert fake.calls.count("Read") == 2
                assert runs(tmp_path) == 2

        run(test)

    def test_many_calls_at_once_ask_once(self, tmp_path: Path) -> None:
        async def test() -> None:
            chosen = options(credential_helpers=[("", telling(tmp_path))], retry_seconds=0)
            async with remote_world(chosen) as (fake, client):
                digests = [fake.add(bytes([number])) for number in range(30)]
                fake.accepts = {"Bearer token1"}
                await client.find_missing(digests)
                fake.accepts = {"Bearer token2"}
                async with asyncio.TaskGroup() as group:
                    for digest in digests:
                        group.create_task(client.find_missing([digest]))
                assert runs(tmp_path) == 2

        run(test)

    def test_one_retry_and_no_more(self, tmp_path: Path) -> None:
        async def test() -> None:
            async with remote_world(options(credential_helpers=[("", telling(tmp_path))])) as (fake, client):
                fake.accepts = set()
                with pytest.raises(Denied, match="UNAUTHENTICATED"):
                    await client.abilities()
                assert fake.calls == ["GetCapabilities"] * 2
                with pytest.raises(Denied):
                    await client.abilities()
                assert runs(tmp_path) == 2

        run(test)

    def test_a_new_file_is_noticed_at_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(watched, "LOOK_SECONDS", 1000.0)

        async def test() -> None:
            path = tmp_path / "token"
            path.write_text(OLD)
            chosen = options(header_files={"authorization": str(path)}, retry_seconds=0)
            async with remote_world(chosen) as (fake, client):
                fake.accepts = {NEW}
                path.write_text(NEW)
                await client.abilities()

        run(test)

    def test_what_a_client_has_shown_is_forgotten(self) -> None:
        async def test() -> None:
            async with remote_world(options(remember_authorization=1000)) as (fake, client):
                fake.accepts = {NEW}
                token = caller.set(caller_of([("authorization", OLD)]))
                with pytest.raises(Denied):
                    await client.abilities()
                caller.reset(token)
                assert client.credentials.facts() == []

        run(test)

    def test_no_headers_no_call(self, tmp_path: Path) -> None:
        async def test() -> None:
            helper = program(tmp_path, "exit 1")
            async with remote_world(options(credential_helpers=[("", helper)])) as (fake, client):
                with pytest.raises(
                    Denied, match=r"cannot get capabilities at .*helper ended with exit code 1"
                ):
                    await client.abilities()
                assert fake.calls == []
                assert "exit code 1" in client.contact.last_error

        run(test)


class TestSecrets:
    def test_a_server_that_quotes_them_is_not_quoted(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)

        async def test() -> None:
            (tmp_path / "token").write_text(OLD)
            chosen = options(header_files={"authorization": f"{tmp_path}/token"})
            async with remote_world(chosen) as (fake, client):
                fake.accepts = set()
                with pytest.raises(Denied, match=r"token '\*{8}' is not good") as caught:
                    await client.abilities()
                error: BaseException | None = caught.value
                while error is not None:
                    assert "canary" not in repr(error) + str(error)
                    error = error.__cause__ or error.__context__
                assert "canary" not in client.contact.last_error + repr(chosen) + repr(client.credentials)

        run(test)
        assert "canary" not in caplog.text

    def test_what_stands_in_a_context_is_not_shown(self) -> None:
        assert "canary" not in repr(caller_of([("authorization", OLD)]))
        assert repr(Caller(None, (("a", "b"),))) == "Caller(headers=['a'])"

    def test_subject_and_end_of_a_token(self) -> None:
        value = "Bearer e30.eyJzdWIiOiJlZCIsImV4cCI6MTgwMDAwMDAwMH0.c2ln"
        facts = facts_of((("authorization", value),), "settings")
        assert (facts.subject, facts.expires) == ("ed", 1_800_000_000)

    @pytest.mark.parametrize(
        "value", ["", "a.b", "Bearer a.b.c", "a.e30.c", "a.W10.c", "a.eyJzdWIiOjF9.c", "a.eyJleHAiOnRydWV9.c"]
    )
    def test_what_is_no_token_says_nothing(self, value: str) -> None:
        facts = facts_of((("authorization", value),), "settings")
        assert (facts.subject, facts.expires) == ("", None)

    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("log in first, to cache.example.com", "log in first, to cache.example.com"),
            ("cannot read /home/ed/.config/x1/credentials.json", None),
            ("Authorization: Bearer abc.def", "Authorization: Bearer ********"),
            ("password=hunter2 is wrong", "password=******** is wrong"),
            ('{"token": "hunter2"}', '{"token": "********"}'),
            ("refused eyJhbGciOiJIUzI1NiJ9.e30.c2ln", "refused ********"),
        ],
    )
    def test_words_of_programs(self, text: str, shown: str | None) -> None:
        assert guessed(text) == (text if shown is None else shown)


def test_wrong_names_are_refused_when_it_is_made() -> None:
    with pytest.raises(Invalid, match="'grpc-timeout'"):
        RemoteStore("grpc://cache:80", options=RemoteOptions(header_files={"grpc-timeout": "/dev/null"}))
