"""From the settings of `[remote]` and `[remotes.NAME]` to remotes and the instance names they serve. Never connects.

A module of its own, for it needs the remote store, and with it gRPC, which most commands do without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from outputd.config.remote_settings import NamedRemote, Remote
from outputd.config.settings import REMOTES, Config
from outputd.store.remote import RemoteOptions, RemoteStore
from outputd.store.routing import Route, longest


@dataclass(frozen=True, slots=True)
class ConfiguredRemote:
    """One remote of the settings."""

    name: str
    """The NAME of `[remotes.NAME]`; empty for `[remote]`."""
    settings: Remote
    url: str
    prefix: str

    @property
    def section(self) -> str:
        return f"{REMOTES}.{self.name}" if self.name else "remote"

    def store(self, options: RemoteOptions | None = None) -> RemoteStore:
        """A client of it. Raises Invalid for what cannot be used."""
        return RemoteStore(self.url, self.settings.instance_name, options or remote_options(self.settings))

    def route(self, store: RemoteStore) -> Route:
        named = isinstance(self.settings, NamedRemote)
        made_for = self.settings.instance_name
        return Route(self.prefix, store, made_for if named else None, self.url, made_for)


def configured_remotes(config: Config) -> Iterator[ConfiguredRemote]:
    """`[remote]` first, if it is set."""
    if config.remote.url is not None:
        yield ConfiguredRemote("", config.remote, config.remote.url, "")
    for name, settings in config.remotes.items():
        assert settings.url is not None, "checked when they were read"
        prefix = name if settings.prefix is None else settings.prefix
        yield ConfiguredRemote(name, settings, settings.url, prefix)


def checking_results(config: Config) -> Callable[[str], bool]:
    """Whether `check_results` is set for the remote that has an instance name."""
    checked = {one.prefix: one.settings.check_results for one in configured_remotes(config)}

    def of_instance(name: str) -> bool:
        prefix = longest(checked, name)
        return prefix is not None and checked[prefix]

    return of_instance


def remote_options(settings: Remote) -> RemoteOptions:
    return RemoteOptions(
        timeout=settings.timeout,
        retry_seconds=settings.retry_seconds,
        max_concurrent=settings.max_concurrent,
        max_batch_bytes=settings.max_batch_bytes,
        compression=settings.compression,
        headers={name: text for name, text in settings.headers if not text.startswith("@")},
        header_files={name: text[1:] for name, text in settings.headers if text.startswith("@")},
        credential_helpers=settings.credential_helper,
        helper_timeout=settings.credential_helper_timeout,
        helper_cache_duration=settings.credential_helper_cache_duration,
        client_headers=settings.client_headers,
        remember_authorization=settings.remember_authorization,
        netrc=settings.netrc,
        ca_file=settings.ca_file,
        client_cert=settings.client_cert,
        client_key=settings.client_key,
    )
