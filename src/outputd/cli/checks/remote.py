"""Does the REv2 server of the settings answer, accept us, and fit. Never uploads or downloads a blob."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from outputd.cli.checks.finding import Finding, failed, passed, warned
from outputd.config import Config
from outputd.config.remote_options import ConfiguredRemote, configured_remotes, remote_options
from outputd.digest import Digest, DigestFunction
from outputd.errors import Denied, Invalid, OutputdError
from outputd.store.base import RemoteAbilities
from outputd.store.remote.caller import AUTHORIZATION
from outputd.store.remote.credential_facts import CredentialFacts

_CALL_SECONDS: Final = 5.0
_RETRY_SECONDS: Final = 1.0
_WAYS: Final = "headers, credential_helper, or client_cert and client_key"


def configured(settings: Config) -> list[ConfiguredRemote]:
    """Those to be looked at, each on its own."""
    return list(configured_remotes(settings))


def no_remote() -> Iterator[Finding]:
    """Without any there is nothing to look at."""
    yield passed("remote", "none; the local store alone")


def remote_server(remote: ConfiguredRemote) -> Iterator[Finding]:
    """Capabilities, then a FindMissingBlobs of one made-up digest: many servers tell anybody what they can do."""
    name, started = remote.section, time.monotonic()
    known: list[CredentialFacts] = []
    try:
        abilities = asyncio.run(_ask(remote, known))
    except Denied as wrong:
        yield failed(name, str(wrong), f"put valid credentials into [{name}]: {_WAYS}")
    except Invalid as wrong:
        yield failed(name, str(wrong), "put the setting right that the reason names")
    except OutputdError as wrong:
        yield failed(name, str(wrong), "check the URL, that the server runs, and the network between")
    else:
        milliseconds = (time.monotonic() - started) * 1000
        yield passed(name, f"{remote.url} answers and accepts us ({milliseconds:.0f} ms for two calls)")
        yield from fit(abilities)
    for facts in known:
        yield credential(facts, remote)


def credential(facts: CredentialFacts, remote: ConfiguredRemote) -> Finding:
    """Whose token, from where, until when; never the token."""
    text = f"[{remote.section}] {', '.join(facts.names) or 'no headers'} from {facts.source}"
    if facts.subject:
        text += f", of {facts.subject}"
    if facts.expires is not None:
        text += f", until {datetime.fromtimestamp(facts.expires, UTC):%Y-%m-%dT%H:%M:%SZ}"
    if facts.error:
        return failed(
            "credentials", f"{text}; {facts.error}", "run the helper, or look at the file, yourself"
        )
    if facts.expires is not None and facts.expires <= time.time():
        return failed("credentials", f"{text}, which is over", "get a new one")
    if AUTHORIZATION in facts.names and remote.url.startswith("grpc://"):
        return warned("credentials", f"{text}; it travels without encryption", "use a server with grpcs://")
    return passed("credentials", text)


async def _ask(remote: ConfiguredRemote, known: list[CredentialFacts]) -> RemoteAbilities:
    options = remote_options(remote.settings)
    options = replace(options, timeout=min(options.timeout, _CALL_SECONDS), retry_seconds=_RETRY_SECONDS)
    store = remote.store(options)
    try:
        abilities = await store.abilities()
        function = min(abilities.digest_functions, default=DigestFunction.SHA256)
        await store.find_missing({Digest.of(function, b"outputd doctor")})
    finally:
        known += store.credentials.facts()
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
