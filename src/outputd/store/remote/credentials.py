"""The headers that prove to one remote who we are, from wherever they come: settings, files, a credential helper, and last what a
client of ours has shown. Never writes one down, neither to disk nor into a text.

For each header name the first of these that has it counts.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from outputd.errors import Invalid, OutputdError
from outputd.store.remote.cached_helper import CachedHelper
from outputd.store.remote.caller import AUTHORIZATION
from outputd.store.remote.credential_facts import CredentialFacts, Headers, facts_of, scrubbed, secrets_of
from outputd.store.remote.credential_helper import helper_for
from outputd.store.remote.endpoint import Endpoint, RemoteOptions, check_headers
from outputd.store.remote.watched import Watch

_log = logging.getLogger(__name__)

_REMEMBERED_SECRETS: Final = 32
"""Sets of headers that were sent and may be quoted by a server later on."""


class Credentials:
    """For one remote, and one event loop."""

    def __init__(
        self, endpoint: Endpoint, options: RemoteOptions, clock: Callable[[], float] = time.time
    ) -> None:
        """Raises Invalid for headers and files that cannot be used."""
        self._clock = clock
        self._fixed = check_headers(options.headers)
        self._files = [HeaderFile(name, path) for name, path in options.header_files.items()]
        program = helper_for(endpoint, options.credential_helpers)
        self._helper = (
            None
            if program is None
            else CachedHelper(
                program, endpoint.uri, options.helper_timeout, options.helper_cache_duration, clock
            )
        )
        self._memory = options.remember_authorization
        self._remembered: Headers = ()
        self._remembered_until = 0.0
        self._secrets: deque[frozenset[str]] = deque([secrets_of(self._fixed)], _REMEMBERED_SECRETS)
        self._sent: Headers = ()
        """The last that were sent."""

    async def prepare(self) -> OutputdError | None:
        """To be awaited before `headers`: has them ready, or says why there are none."""
        return None if self._helper is None else await self._helper.prepare()

    def headers(self, authorization: str | None = None) -> Headers:
        """For one call, made for a client whose own call carried this."""
        if authorization is not None and self._memory:
            self._remembered = ((AUTHORIZATION, authorization),)
            self._remembered_until = self._clock() + self._memory
        sent = self._current(authorization)
        if sent != self._sent:
            self._sent = sent
            secrets = secrets_of(sent)
            if secrets not in self._secrets:
                self._secrets.append(secrets)
        return sent

    async def renew(self, refused: Headers, authorization: str | None = None) -> bool:
        """The server did not take these headers (UNAUTHENTICATED). Whether there are new ones to try with."""
        if self._current(authorization) == refused:
            for file in self._files:
                file.look(at_once=True)
            if self._helper is not None:
                await self._helper.renew(self._helper.headers())
            if any(header in refused for header in self._remembered):
                self._remembered = ()
        return bool(set(self._current(authorization)) - set(refused))

    async def run(self) -> None:
        """Renew in time what ends, until cancelled."""
        if self._helper is not None:
            await self._helper.run()

    def facts(self) -> list[CredentialFacts]:
        """What is known, in the order in which it counts."""
        facts = [facts_of(self._fixed, "settings")] if self._fixed else []
        facts += [facts_of(file.headers(), file.path, error=file.error) for file in self._files]
        if self._helper is not None:
            facts.append(self._helper.facts())
        taken = {name for some in facts for name in some.names}
        if self._clock() < self._remembered_until and self._remembered and AUTHORIZATION not in taken:
            known = facts_of(self._remembered, "a client's call", None)
            ends = min(self._remembered_until, known.expires or self._remembered_until)
            facts.append(facts_of(self._remembered, "a client's call", ends))
        return facts

    def scrubbed(self, text: str) -> str:
        """A text of the server's, without what we have sent it."""
        for secrets in self._secrets:
            text = scrubbed(text, secrets)
        return text

    def _current(self, authorization: str | None) -> Headers:
        found = list(self._fixed)
        for file in self._files:
            file.look()
            found += file.headers()
        if self._helper is not None:
            names = {name for name, _ in found}
            found += [header for header in self._helper.headers() if header[0] not in names]
        if all(name != AUTHORIZATION for name, _ in found):
            if authorization is not None:
                found.append((AUTHORIZATION, authorization))
            elif self._clock() < self._remembered_until:
                found += self._remembered
        return tuple(found)


class HeaderFile:
    """A header whose value is what a file holds."""

    def __init__(self, name: str, path: str) -> None:
        """Raises Invalid for a file that cannot be used."""
        self.path: Final = path
        self.error = ""
        """Why what it holds now is not used."""
        self._name = name
        self._watch = Watch([path])
        self._value = self._read()

    def headers(self) -> Headers:
        return ((self._name, self._value),)

    def look(self, *, at_once: bool = False) -> None:
        """Read it again if it has changed. What cannot be used, for instance half of a token, is not: the old value stays."""
        if not self._watch.changed(at_once=at_once):
            return
        try:
            self._value = self._read()
            self.error = ""
        except Invalid as error:
            if str(error) != self.error:
                _log.warning("%s; what it held before stays in use", error)
            self.error = str(error)

    def _read(self) -> str:
        try:
            with open(self.path, encoding="ascii") as file:
                value = file.read().strip()
        except OSError as error:
            raise Invalid(
                f"remote header {self._name!r}: {self.path} cannot be read: {error.strerror}"
            ) from error
        except UnicodeDecodeError:
            value = ""
        if not value or not value.isprintable():
            # Not shown, and not chained: it may be a secret.
            raise Invalid(
                f"remote header {self._name!r}: {self.path} does not hold one line of printable ASCII text"
            )
        ((self._name, value),) = check_headers({self._name: value})
        return value
