"""outputd.rpc.passing with several remotes and with credentials: who is asked, as whom, and what of a refusal is passed on."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from outputd._proto import remote_execution_pb2 as reapi
from outputd.errors import Invalid
from outputd.rpc.passing import Passing
from outputd.store.remote import RemoteOptions, RemoteStore
from outputd.store.remote.relay import Refusal
from outputd.store.remote.relays import Relays
from outputd.store.routing import Route, Routes
from tests.unit.rpc.played_remote import PlayedRemote, Refused
from tests.unit.store.remote.test_credential_helper import runs, telling
from tests.unit.store.worlds import run

_GET = reapi.DESCRIPTOR.services_by_name["ActionCache"].methods_by_name["GetActionResult"]


@asynccontextmanager
async def serving(played: PlayedRemote) -> AsyncIterator[str]:
    with tempfile.TemporaryDirectory(prefix="outputd-rpc-") as directory:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers(tuple(played.handlers()))
        server.add_insecure_port(f"unix:{directory}/remote")
        await server.start()
        try:
            yield f"unix:{directory}/remote"
        finally:
            await server.stop(None)


async def get(passing: Passing, instance: str) -> reapi.ActionResult:
    request = reapi.GetActionResultRequest(instance_name=passing.instance(instance))
    return await passing.call(_GET, request, reapi.ActionResult, None, 5, instance)


def playing(**answers: object) -> PlayedRemote:
    played = PlayedRemote()
    played.answers = answers
    return played


def test_each_instance_name_goes_to_its_own_remote() -> None:
    async def test() -> None:
        one, two = (playing(GetActionResult=reapi.ActionResult(exit_code=code)) for code in (1, 2))
        async with serving(one) as first, serving(two) as second:
            stores = [RemoteStore(first, "usual"), RemoteStore(second, "main")]
            routes = Routes([Route("", stores[0], None), Route("team", stores[1], "main")])
            relays = Relays(routes, {"": stores[0].relay(), "team": stores[1].relay()})
            passing = Passing(relays)
            assert [(await get(passing, name)).exit_code for name in ("", "other", "team", "team/x")] == [
                1,
                1,
                2,
                2,
            ]
            assert [request.instance_name for request in one.requests] == ["usual", "other"]
            assert [request.instance_name for request in two.requests] == ["main", "main/x"]
            await relays.close()
            await routes.close()

    run(test)


def test_a_name_of_nobody() -> None:
    async def test() -> None:
        store = RemoteStore("unix:/nobody")
        relays = Relays(Routes([Route("team", store, "")]), {"team": store.relay()})
        with pytest.raises(Invalid, match="names that begin with 'team'"):
            await get(Passing(relays), "other")

    run(test)


def test_a_token_that_has_ended_is_renewed_and_no_token_is_quoted(tmp_path: Path) -> None:
    async def test() -> None:
        good = "Bearer token2"
        played = PlayedRemote()

        def answer(_: object) -> reapi.ActionResult | Refused:
            shown = played.metadata[-1].get("authorization")
            if shown == good:
                return reapi.ActionResult(exit_code=7)
            return Refused(grpc.StatusCode.UNAUTHENTICATED, f"not you: {shown!r}")

        played.answers = {"GetActionResult": answer}
        async with serving(played) as url:
            store = RemoteStore(url, options=RemoteOptions(credential_helpers=[("", telling(tmp_path))]))
            relay = store.relay()
            assert (await get(Passing(relay), "")).exit_code == 7
            assert (runs(tmp_path), len(played.requests)) == (2, 2)
            good = "Bearer nobody"
            with pytest.raises(Refusal, match=r"not you: .*\*{8}") as refused:
                await get(Passing(relay), "")
            assert refused.value.__cause__ is None
            await relay.close()
            await store.close()

    run(test)
