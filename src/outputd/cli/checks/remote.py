"""Does the REv2 server of the settings answer, accept us, and fit. Never uploads or downloads a blob."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from outputd.cli.checks.finding import Finding, failed, passed, warned
from outputd.config import Remote
from outputd.config.remote_options import remote_options
from outputd.digest import Digest, DigestFunction
from outputd.errors import Denied, Invalid, OutputdError
from outputd.store.base import RemoteAbilities
from outputd.store.remote import RemoteStore

_CALL_SECONDS: Final = 5.0
_RETRY_SECONDS: Final = 1.0


def remote_server(settings: Remote) -> Iterator[Finding]:
    """Capabilities, then a FindMissingBlobs of one made-up digest: many servers tell anybody what they can do."""
    if settings.url is None:
        yield passed("remote", "none; the local store alone")
        return
    url, started = settings.url, time.monotonic()
    try:
        abilities = asyncio.run(_ask(settings, url))
    except Denied as wrong:
        yield failed(
            "remote", str(wrong), "put valid credentials into [remote] headers, or client_cert and client_key"
        )
    except Invalid as wrong:
        yield failed("remote", str(wrong), "put the setting right that the reason names")
    except OutputdError as wrong:
        yield failed("remote", str(wrong), "check the URL, that the server runs, and the network between")
    else:
        milliseconds = (time.monotonic() - started) * 1000
        yield passed("remote", f"{url} answers and accepts us ({milliseconds:.0f} ms for two calls)")
        yield from fit(abilities)


async def _ask(settings: Remote, url: str) -> RemoteAbilities:
    options = remote_options(settings)
    options = replace(options, timeout=min(options.timeout, _CALL_SECONDS), retry_seconds=_RETRY_SECONDS)
    store = RemoteStore(url, settings.instance_name, options)
    try:
        abilities = await store.abilities()
        function = min(abilities.digest_functions, default=DigestFunction.SHA256)
        await store.find_missing({Digest.of(function, b"outputd doctor")})
    finally:
        await store.close()
    return abilities


def fit(abilities: RemoteAbilities) -> Iterator[Finding]:
    """Whether builds can use what the server can do."""
    names = ", ".join(sorted(function.name for function in abilities.digest_functions))
    if DigestFunction.SHA256 in abilities.digest_functions:
        yield passed("digest function", names)
    elif names:
        fix = f"tell Bazel: build --digest_function={names.split(', ')[0].lower()}"
        yield warned(
            "digest function", f"the server has {names}, but not SHA256, which Bazel uses unless told", fix
        )
    else:
        yield failed(
            "digest function", "the server names none that outputd knows", "use a server with SHA256"
        )
