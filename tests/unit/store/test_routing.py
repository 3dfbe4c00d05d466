"""outputd.store.routing: which remote has an instance name, and what it calls it."""

from __future__ import annotations

from contextlib import aclosing

import pytest

from outputd.digest import Digest, DigestFunction
from outputd.errors import Invalid, NotFound
from outputd.store.cached import CachedStore
from outputd.store.remote import RemoteStore
from outputd.store.routing import Route, Routes
from tests.unit.store.fake_remote import FakeRemote
from tests.unit.store.worlds import local_world, remote_world, run

BLOB = Digest.of(DigestFunction.SHA256, b"blob")


def asked(fake: FakeRemote) -> str:
    """The instance name of the last request."""
    name = fake.requests[-1].instance_name  # type: ignore[attr-defined]
    assert isinstance(name, str)
    return name


def prefixes(name: str, *known: str) -> str | None:
    routes = Routes([Route(prefix, RemoteStore("unix:/nobody"), "") for prefix in known])
    found = routes.route(name)
    return None if found is None else found.prefix


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("a", "a"),
        ("a/b", "a/b"),
        ("a/b/c/d", "a/b"),
        ("a/bc", "a"),
        ("ab", None),
        ("", None),
        ("b/a", None),
    ],
)
def test_the_longest_prefix_of_whole_words_counts(name: str, prefix: str | None) -> None:
    assert prefixes(name, "a", "a/b") == prefix


def test_the_rest_has_what_nobody_else_has() -> None:
    assert prefixes("x/y", "a", "") == ""
    assert prefixes("", "a", "") == ""
    assert prefixes("a/x", "a", "") == "a"


def test_what_the_remotes_are_asked_for() -> None:
    async def test() -> None:
        async with remote_world() as (one, first), remote_world() as (two, second):
            routes = Routes([Route("", first, None), Route("team/x", second, "main")])
            for name, fake, called in (
                ("", one, ""),
                ("other", one, "other"),
                ("team", one, "team"),
                ("team/x", two, "main"),
                ("team/x/deep/er", two, "main/deep/er"),
            ):
                await routes.of_instance(name).find_missing({BLOB})
                assert asked(fake) == called

    run(test)


def test_stores_read_from_the_remote_that_has_the_name() -> None:
    async def test() -> None:
        async with remote_world() as (one, first), remote_world() as (two, second), local_world() as local:
            here, there = one.add(b"here"), two.add(b"there")
            routes = Routes([Route("", first, None), Route("team", second, "")])
            async with CachedStore(local, routes) as store:
                assert await store.of_instance("other").read(here) == b"here"
                assert await store.of_instance("team").read(there) == b"there"
                with pytest.raises(NotFound):
                    await store.of_instance("team").fetch(one.add(b"elsewhere"))

    run(test)


def test_a_name_that_nobody_serves_says_which_are_served() -> None:
    async def test() -> None:
        routes = Routes([Route("team", RemoteStore("unix:/nobody"), "")])
        other = routes.of_instance("other/x")
        text = "instance name 'other/x': no remote is configured for it; .* begin with 'team'"
        with pytest.raises(Invalid, match=text):
            await other.find_missing({BLOB})
        with pytest.raises(Invalid, match=text):
            async with aclosing(other.read_stream(BLOB)) as pieces:
                await anext(pieces)
        assert isinstance((await other.read_batch([BLOB]))[BLOB], Invalid)
        assert isinstance((await other.write_batch({BLOB: b"blob"}))[BLOB], Invalid)
        with pytest.raises(Invalid, match="a call without instance name"):
            await routes.abilities()
        await routes.close()

    run(test)


def test_a_place_is_the_server_and_what_it_calls_the_instance() -> None:
    store = RemoteStore("unix:/nobody", "main")
    routes = Routes(
        [
            Route("", store, None, "grpc://one", "main"),
            Route("a", store, "", "grpc://two"),
            Route("b", store, "", "grpc://two"),
        ]
    )
    assert routes.place("") == routes.place("main") == "grpc://one\nmain"
    assert routes.place("a/main") == routes.place("b/main") == "grpc://two\nmain"
    assert len({routes.place(name) for name in ("", "other", "a", "a/main", "a/other")}) == 5
    assert [routes.prefix(name) for name in ("", "main", "a", "a/main", "b/x")] == ["", "", "a", "a", "b"]
    alone = Routes([Route("a", store, "", "grpc://two")])
    assert alone.prefix("other") is None
    assert alone.place("other") not in {alone.place("a/other"), alone.place("")}
