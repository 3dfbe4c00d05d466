"""The headers that prove to one remote who we are, from wherever they come: settings, files, a credential helper, what a client of
ours shows or has shown, and last .netrc. Never writes one down, neither to disk nor into a text.

For each header name the first of these that has it counts.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from outputd.errors import Invalid, OutputdError
from outputd.store.remote.cached_helper import CachedHelper
from outputd.store.remote.credential_facts import CredentialFacts, Headers, facts_of, scrubbed, secrets_of
from outputd.store.remote.credential_helper import helper_for
from outputd.store.remote.endpoint import Endpoint, RemoteOptions, check_headers
from outputd.store.remote.netrc import Netrc
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
        # As with Bazel: who has a helper has no use for the file.
        wanted = program is None and endpoint.host
        self._netrc = Netrc(options.netrc, endpoint.host) if options.netrc is not None and wanted else None
        self._taken = frozenset(options.client_headers)
        self._memory = options.remember_authorization
        self._remembered: dict[str, tuple[Headers, float]] = {}
        """What a client has shown under a name, and until when it serves."""
        self._secrets: deque[frozenset[str]] = deque([secrets_of(self._fixed)], _REMEMBERED_SECRETS)
        self._sent: Headers = ()
        """The last that were sent."""

    async def prepare(self) -> OutputdError | None:
        """To be awaited before `headers`: has them ready, or says why there are none."""
        return None if self._helper is None else await self._helper.prepare()

    def headers(self, shown: Headers = ()) -> Headers:
        """For one call, made for a client whose own call carried these."""
        taken = self._of_client(shown)
        if self._memory:
            until = self._clock() + self._memory
            self._remembered |= {name: (some, until) for name, some in taken.items()}
        sent = self._current(taken)
        if sent != self._sent:
            self._sent = sent
            secrets = secrets_of(sent)
            if secrets not in self._secrets:
                self._secrets.append(secrets)
        return sent

    async def renew(self, refused: Headers, shown: Headers = ()) -> bool:
        """The server did not take these headers (UNAUTHENTICATED). Whether there are new ones to try with."""
        taken = self._of_client(shown)
        if self._current(taken) == refused:
            for file in self._watched:
                file.look(at_once=True)
            if self._helper is not None:
                await self._helper.renew(self._helper.headers())
            for name, (some, _) in list(self._remembered.items()):
                if not set(some).isdisjoint(refused):
                    del self._remembered[name]
        return bool(set(self._current(taken)) - set(refused))

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
        names = {name for some in facts for name in some.names}
        for name, (shown, until) in self._remembered.items():
            if self._clock() < until and name not in names:
                known = facts_of(shown, "a client's call")
                facts.append(replace(known, expires=min(until, known.expires or until)))
        if self._netrc is not None and (self._netrc.error or self._netrc.headers()):
            facts.append(facts_of(self._netrc.headers(), self._netrc.path, error=self._netrc.error))
        return facts

    def scrubbed(self, text: str) -> str:
        """A text of the server's, without what we have sent it."""
        for secrets in self._secrets:
            text = scrubbed(text, secrets)
        return text

    def _of_client(self, shown: Headers) -> dict[str, Headers]:
        """What we take of a call's headers, by name."""
        taken: dict[str, Headers] = {}
        for header in shown:
            if header[0] in self._taken:
                taken[header[0]] = (*taken.get(header[0], ()), header)
        return taken

    def _current(self, taken: Mapping[str, Headers]) -> Headers:
        found = list(self._fixed)
        for file in self._watched:
            file.look()
        for file in self._files:
            found += file.headers()
        if self._helper is not None:
            _add(found, self._helper.headers())
        for some in taken.values():
            _add(found, some)
        for some, until in self._remembered.values():
            if self._clock() < until:
                _add(found, some)
        if self._netrc is not None:
            _add(found, self._netrc.headers())
        return tuple(found)

    @property
    def _watched(self) -> list[HeaderFile | Netrc]:
        return [*self._files, *([] if self._netrc is None else [self._netrc])]


def _add(found: list[tuple[str, str]], more: Headers) -> None:
    """Those whose names are not there yet."""
    names = {name for name, _ in found}
    found += [header for header in more if header[0] not in names]


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
