"""Settings that are each right and wrong together. Never looks at the disk or the network: `doctor` does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from outputd.config.address import UnixAddress
from outputd.config.remote_settings import Remote
from outputd.config.settings import REMOTES, Config

_WAITS_FOR_ITSELF: Final = "{} lies inside the mount, which is read only with what it says; keep it elsewhere"


def disagreements(config: Config) -> Iterator[tuple[str, str]]:
    """The key to blame, as `section.name`, and what is wrong."""
    mount = config.mount.path
    # The daemon that serves the mount would wait for itself, for ever.
    for full, path in (("state.dir", config.state.dir), ("cache.dir", config.cache.dir)):
        if _inside(path, mount):
            yield full, f"{path} lies inside the mount {mount}; choose a directory outside of it"
        elif _inside(mount, path):
            yield "mount.path", f"{mount} lies inside {full} {path}; choose a mount point outside of it"
    for address in config.listen.addresses:
        if isinstance(address, UnixAddress) and _inside(address.path, mount):
            yield (
                "listen.addresses",
                f"{address} lies inside the mount {mount}; choose a socket outside of it",
            )
    cache = config.cache
    if cache.low_mark is not None and cache.high_mark is None:
        yield "cache.low_mark", "set without high_mark, so it has no effect; set that too, or leave it out"
    yield from _remote(config, "remote", config.remote)
    prefixes: dict[str, str] = {}
    for name, remote in config.remotes.items():
        section = f"{REMOTES}.{name}"
        yield from _remote(config, section, remote)
        if remote.url is None:
            yield f"{section}.url", "not set; a server has an address"
        prefix = name if remote.prefix is None else remote.prefix
        if prefix in prefixes:
            yield f"{section}.prefix", f"[{prefixes[prefix]}] has the prefix {prefix!r} too; one of them only"
        elif not prefix and config.remote.url is not None:
            yield (
                f"{section}.prefix",
                "an empty prefix means every instance name, which is what [remote] is for",
            )
        prefixes[prefix] = section


def _remote(config: Config, section: str, remote: Remote) -> Iterator[tuple[str, str]]:
    plain = remote.url is not None and remote.url.startswith(("grpc://", "unix:"))
    for name in ("ca_file", "client_cert", "client_key"):
        path = getattr(remote, name)
        if plain and path is not None:
            yield (
                f"{section}.{name}",
                f"{remote.url} is not encrypted, so this has no effect; write grpcs://, or leave it out",
            )
        if path is not None and _inside(path, config.mount.path):
            yield f"{section}.{name}", _WAITS_FOR_ITSELF.format(path)
    for _, text in remote.headers:
        if text.startswith("@") and _inside(text[1:], config.mount.path):
            yield f"{section}.headers", _WAITS_FOR_ITSELF.format(text[1:])
    if remote.netrc is not None and _inside(remote.netrc, config.mount.path):
        yield f"{section}.netrc", _WAITS_FOR_ITSELF.format(remote.netrc)
    for _, path in remote.credential_helper:
        if _inside(path, config.mount.path):
            yield f"{section}.credential_helper", _WAITS_FOR_ITSELF.format(path)
    if (remote.client_cert is None) != (remote.client_key is None):
        given, lacking = (
            ("client_cert", "client_key") if remote.client_key is None else ("client_key", "client_cert")
        )
        yield f"{section}.{given}", f"set without {lacking}; a certificate and its key go together"
    if remote.url is not None and remote.url in [address.bazel for address in config.listen.addresses]:
        yield f"{section}.url", f"{remote.url} is where outputd itself listens; name the server behind it"


def _inside(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")
