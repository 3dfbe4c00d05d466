"""The kinds of values a setting may have: how each is read from TOML or from text, checked, and shown. Never knows which keys
there are.

`parse` takes what tomllib gives; `of_text` turns the text of an environment variable or a flag into the same. Both raise Invalid
with what is wrong and what would be right; who calls adds where.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Protocol

from outputd.config.address import Address, UnixAddress, parse_address
from outputd.config.places import Places
from outputd.drive.profile import Wish
from outputd.errors import Invalid
from outputd.store.limits import Amount

Plain = str | int | float | bool | list[str] | dict[str, str] | None
"""What TOML and JSON can both show; None stands for a key that is not set."""

MASK: Final = "********"

_SIZE: Final = re.compile(r"(\d+) ?(B|KiB|MiB|GiB|TiB|kB|MB|GB|TB)?")
_UNITS: Final = {
    "B": 1,
    **{f"{letter}iB": 1 << shift for letter, shift in (("K", 10), ("M", 20), ("G", 30), ("T", 40))},
    **{f"{letter}B": 10**power for letter, power in (("k", 3), ("M", 6), ("G", 9), ("T", 12))},
}
_PERCENT: Final = re.compile(r"(\d{1,3}(?:\.\d+)?) ?%")
_HOST_PORT: Final = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^\[\]:/@\s]+)(?::(\d{1,5}))?")
_HOST_PATTERN: Final = re.compile(r"(?:\*\.)?[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*|\[?[0-9A-Fa-f:]+\]?")
# What would make a ByteStream resource name ambiguous (REv2, ByteStream; the same list as bb_storage's instance names).
_RESOURCE_WORDS: Final = (
    "blobs",
    "uploads",
    "actions",
    "actionResults",
    "operations",
    "capabilities",
    "compressed-blobs",
)
_HEADER_NAME: Final = re.compile(r"[0-9a-z_.-]+")


class Kind(Protocol):
    """One kind of value. The value that `parse` returns is immutable."""

    @property
    def name(self) -> str:
        """For the reference and for errors: `path`, `seconds`."""

    def of_text(self, text: str) -> object: ...

    def parse(self, raw: object, places: Places) -> object: ...

    def plain(self, value: object) -> Plain:
        """For showing; secrets masked. What is not masked parses back to the same value."""


def _wrong(raw: object, right: str) -> Invalid:
    return Invalid(f"{_shown(raw)} is not {right}")


def _shown(raw: object) -> str:
    text = repr(raw) if not isinstance(raw, bool) else str(raw).lower()
    return text if len(text) <= 80 else text[:79] + "…"


@dataclass(frozen=True, slots=True)
class Text:
    """A string."""

    name: str = "text"

    def of_text(self, text: str) -> object:
        return text

    def parse(self, raw: object, places: Places) -> str:
        if not isinstance(raw, str):
            raise _wrong(raw, "a string; put it in quotes")
        return raw

    def plain(self, value: object) -> Plain:
        return str(value)


@dataclass(frozen=True, slots=True)
class Texts:
    """A list of strings; in the environment separated by commas."""

    name: str = "list of text"

    def of_text(self, text: str) -> object:
        return [part.strip() for part in text.split(",") if part.strip()]

    def parse(self, raw: object, places: Places) -> tuple[str, ...]:
        if not isinstance(raw, list) or not all(isinstance(part, str) and part for part in raw):
            raise _wrong(raw, "a list of strings")
        return tuple(raw)

    def plain(self, value: object) -> Plain:
        assert isinstance(value, tuple)
        return list(value)


@dataclass(frozen=True, slots=True)
class Wishes:
    """Profiles to replay, each with the output bases in which."""

    name: str = "list of NAME[@PATTERN]"

    def of_text(self, text: str) -> object:
        return Texts().of_text(text)

    def parse(self, raw: object, places: Places) -> tuple[Wish, ...]:
        return tuple(Wish.of(text) for text in Texts().parse(raw, places))

    def plain(self, value: object) -> Plain:
        assert isinstance(value, tuple)
        return [str(wish) for wish in value]


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a few words."""

    words: tuple[str, ...]

    @property
    def name(self) -> str:
        return " | ".join(self.words)

    def of_text(self, text: str) -> object:
        return text

    def parse(self, raw: object, places: Places) -> str:
        if raw not in self.words:
            raise _wrong(raw, f"one of {', '.join(self.words)}")
        return str(raw)

    def plain(self, value: object) -> Plain:
        return str(value)


@dataclass(frozen=True, slots=True)
class Boolean:
    """True or false."""

    name: str = "boolean"

    def of_text(self, text: str) -> object:
        return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}.get(
            text.lower(), text
        )

    def parse(self, raw: object, places: Places) -> bool:
        if not isinstance(raw, bool):
            raise _wrong(raw, "true or false")
        return raw

    def plain(self, value: object) -> Plain:
        return bool(value)


@dataclass(frozen=True, slots=True)
class Seconds:
    """A time in seconds, fractions allowed."""

    least: float = 0.0
    most: float = 1e9
    name: str = "seconds"

    def of_text(self, text: str) -> object:
        try:
            return float(text)
        except ValueError:
            return text

    def parse(self, raw: object, places: Places) -> float:
        if isinstance(raw, bool) or not isinstance(raw, int | float) or not self.least <= raw <= self.most:
            raise _wrong(raw, f"a number of seconds from {self.least:g} to {self.most:g}")
        return float(raw)

    def plain(self, value: object) -> Plain:
        assert isinstance(value, float)
        return int(value) if value.is_integer() else value


@dataclass(frozen=True, slots=True)
class Count:
    """A whole number."""

    least: int
    most: int
    name: str = "number"

    def of_text(self, text: str) -> object:
        return int(text) if text.isdecimal() else text

    def parse(self, raw: object, places: Places) -> int:
        if isinstance(raw, bool) or not isinstance(raw, int) or not self.least <= raw <= self.most:
            raise _wrong(raw, f"a whole number from {self.least} to {self.most}")
        return raw

    def plain(self, value: object) -> Plain:
        assert isinstance(value, int)
        return value


@dataclass(frozen=True, slots=True)
class Size:
    """A number of bytes, plain or with a unit."""

    least: int
    most: int
    name: str = "bytes"

    def of_text(self, text: str) -> object:
        return text

    def parse(self, raw: object, places: Places) -> int:
        found = (
            _SIZE.fullmatch(str(raw)) if isinstance(raw, int | str) and not isinstance(raw, bool) else None
        )
        size = int(found[1]) * _UNITS[found[2] or "B"] if found else -1
        if not self.least <= size <= self.most:
            least, most = show_size(self.least), show_size(self.most)
            raise _wrong(raw, f'a size from {least} to {most}; write bytes, or a unit as in "64 MiB"')
        return size

    def plain(self, value: object) -> Plain:
        assert isinstance(value, int)
        return show_size(value)


@dataclass(frozen=True, slots=True)
class Room:
    """A number of bytes, or a part of the file system in per cent."""

    name: str = "bytes | %"

    def of_text(self, text: str) -> object:
        return text

    def parse(self, raw: object, places: Places) -> Amount:
        if isinstance(raw, str) and (found := _PERCENT.fullmatch(raw)) and float(found[1]) <= 100:
            return Amount(percent=float(found[1]))
        try:
            return Amount(bytes=Size(0, 1 << 60).parse(raw, places))
        except Invalid:
            raise _wrong(raw, 'an amount of room; write bytes, a size as in "20 GiB", or "10%"') from None

    def plain(self, value: object) -> Plain:
        assert isinstance(value, Amount)
        return f"{value.percent:g}%" if value.percent else show_size(value.bytes)


def show_size(size: int) -> str:
    """Exact, in the largest binary unit that leaves no rest."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size >= _UNITS[unit] and size % _UNITS[unit] == 0:
            return f"{size // _UNITS[unit]} {unit}"
    return f"{size} B"


@dataclass(frozen=True, slots=True)
class FilePath:
    """A path, made absolute."""

    name: str = "path"

    def of_text(self, text: str) -> object:
        return text

    def parse(self, raw: object, places: Places) -> str:
        if not isinstance(raw, str):
            raise _wrong(raw, "a path; put it in quotes")
        return places.complete(raw)

    def plain(self, value: object) -> Plain:
        return str(value)


def _complete_unix(address: str, places: Places) -> str:
    path = address.removeprefix("unix:")
    return address if path == address or path.startswith("/") else f"unix:{places.complete(path)}"


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where to listen: at least one address, each once."""

    name: str = "list of addresses"

    def of_text(self, text: str) -> object:
        return [part.strip() for part in text.split(",") if part.strip()]

    def parse(self, raw: object, places: Places) -> tuple[Address, ...]:
        if not isinstance(raw, list) or not raw or not all(isinstance(item, str) for item in raw):
            raise _wrong(raw, 'a list of addresses, for instance ["unix:/run/user/1000/outputd.sock"]')
        found = [parse_address(_complete_unix(item, places)) for item in raw]
        for position, address in enumerate(found):
            if address in found[:position]:
                raise Invalid(f"{str(address)!r} stands twice in the list; name each address once")
        return tuple(found)

    def plain(self, value: object) -> Plain:
        assert isinstance(value, tuple)
        return [str(address) for address in value]


@dataclass(frozen=True, slots=True)
class RemoteUrl:
    """The address of a REv2 server, as Bazel's --remote_cache spells it."""

    name: str = "URL"

    def of_text(self, text: str) -> object:
        return text

    def parse(self, raw: object, places: Places) -> str:
        right = "a server; write grpc://HOST:PORT, grpcs://HOST:PORT or unix:/PATH"
        if not isinstance(raw, str):
            raise _wrong(raw, right)
        if raw.startswith("unix:"):
            address = parse_address(_complete_unix(raw, places))
            assert isinstance(address, UnixAddress)
            return str(address)
        scheme, separator, authority = raw.rpartition("://")
        if "@" in authority:
            # Not shown: what stands before the @ may be a password.
            raise Invalid(
                "a URL with a user or a password in it; put credentials into headers, best as @FILE"
            )
        found = _HOST_PORT.fullmatch(authority)
        secure = scheme != "grpc"
        if (separator and scheme not in ("grpc", "grpcs")) or not found or not (found[2] or secure):
            raise _wrong(raw, right)
        if not 0 < int(found[2] or 443) < 65536:
            raise _wrong(raw, right)
        return raw

    def plain(self, value: object) -> Plain:
        return str(value)


@dataclass(frozen=True, slots=True)
class InstanceName:
    """A REv2 instance name, or what one begins with. Source: protocols.md 4, bb_clientd's and REv2's rules for resource names."""

    name: str = "instance name"

    def of_text(self, text: str) -> object:
        return text

    def parse(self, raw: object, places: Places) -> str:
        if not isinstance(raw, str):
            raise _wrong(raw, "a string; put it in quotes")
        if raw and not all(word and word not in _RESOURCE_WORDS for word in raw.split("/")):
            raise _wrong(
                raw,
                f"an instance name: words with a slash between them, none of them {', '.join(_RESOURCE_WORDS)}",
            )
        return raw

    def plain(self, value: object) -> Plain:
        return str(value)


@dataclass(frozen=True, slots=True)
class CredentialHelpers:
    """Programs by the hosts they are for, as Bazel's --credential_helper takes them; an empty pattern is for every host."""

    name: str = "list of [PATTERN=]PATH"

    def of_text(self, text: str) -> object:
        return [part.strip() for part in text.split(",") if part.strip()]

    def parse(self, raw: object, places: Places) -> tuple[tuple[str, str], ...]:
        listed = [raw] if isinstance(raw, str) else raw
        if not isinstance(listed, list) or not all(isinstance(item, str) for item in listed):
            raise _wrong(raw, 'a list of programs, for instance ["*.example.com=/usr/bin/helper"]')
        return tuple(self._one(item, places) for item in listed)

    @staticmethod
    def _one(item: str, places: Places) -> tuple[str, str]:
        pattern, equals, path = item.rpartition("=")
        if "%workspace%" in path:
            raise Invalid(
                f"{item!r}: outputd serves many workspaces, so %workspace% has no meaning; write an absolute path"
            )
        if (equals and not _HOST_PATTERN.fullmatch(pattern)) or not path:
            raise _wrong(item, "[PATTERN=]PATH; a pattern is a host's name, or *. and the end of one")
        # A bare name is looked for in $PATH, as Bazel does.
        return pattern.lower(), places.complete(path) if "/" in path else path

    def plain(self, value: object) -> Plain:
        assert isinstance(value, tuple)
        return [f"{pattern}={path}" if pattern else path for pattern, path in value]


def _header_name(name: str) -> str:
    # gRPC over HTTP/2: keys are lowercase; grpc-* is the library's own; -bin would need base64.
    if not _HEADER_NAME.fullmatch(name) or name.startswith("grpc-") or name.endswith("-bin"):
        raise Invalid(
            f"header {name!r}: a name has lowercase letters, digits, '-', '_' and '.', does not begin with grpc- and "
            "does not end in -bin"
        )
    return name


@dataclass(frozen=True, slots=True)
class HeaderNames:
    """Names of gRPC metadata; in the environment separated by commas."""

    name: str = "list of header names"

    def of_text(self, text: str) -> object:
        return [part.strip() for part in text.split(",") if part.strip()]

    def parse(self, raw: object, places: Places) -> tuple[str, ...]:
        if not isinstance(raw, list) or not all(isinstance(part, str) for part in raw):
            raise _wrong(raw, 'a list of header names, for instance ["authorization"]')
        return tuple(dict.fromkeys(_header_name(part.lower()) for part in raw))

    def plain(self, value: object) -> Plain:
        assert isinstance(value, tuple)
        return list(value)


@dataclass(frozen=True, slots=True)
class NetrcFile:
    """A .netrc: where Bazel looks for it, another path, or none."""

    name: str = "auto | off | path"

    def of_text(self, text: str) -> object:
        return text

    def parse(self, raw: object, places: Places) -> str | None:
        if not isinstance(raw, str):
            raise _wrong(raw, '"auto", "off" or a path; put it in quotes')
        if raw == "off":
            return None
        return places.netrc() if raw == "auto" else places.complete(raw)

    def plain(self, value: object) -> Plain:
        return "off" if value is None else str(value)


@dataclass(frozen=True, slots=True)
class Headers:
    """gRPC metadata to send. A value `@PATH` stands for what is in that file."""

    name: str = "table of text"

    def of_text(self, text: str) -> object:
        pairs = [part.partition("=") for part in text.split(",") if part.strip()]
        if not all(equals for _, equals, _ in pairs):
            return text
        return {name.strip(): value.strip() for name, _, value in pairs}

    def parse(self, raw: object, places: Places) -> tuple[tuple[str, str], ...]:
        if not isinstance(raw, dict):
            # Never shown: it may hold a token.
            raise Invalid('not a table of headers; write name = "value" or name = "@/path/to/file"')
        return tuple((_header_name(name), self._value(name, value, places)) for name, value in raw.items())

    @staticmethod
    def _value(name: str, value: object, places: Places) -> str:
        if not isinstance(value, str) or not value or not value.isascii() or not value.isprintable():
            raise Invalid(f"header {name!r}: a value is printable ASCII text, or @PATH")
        return f"@{places.complete(value[1:])}" if value.startswith("@") else value

    def plain(self, value: object) -> Plain:
        assert isinstance(value, tuple)
        return {name: text if text.startswith("@") else MASK for name, text in value}


@dataclass(frozen=True, slots=True)
class Optional:
    """Another kind, or not set: in a file by leaving the key out, in a variable or flag by empty text."""

    inner: Kind

    @property
    def name(self) -> str:
        return self.inner.name

    def of_text(self, text: str) -> object:
        return self.inner.of_text(text) if text else None

    def parse(self, raw: object, places: Places) -> object:
        return None if raw is None else self.inner.parse(raw, places)

    def plain(self, value: object) -> Plain:
        return None if value is None else self.inner.plain(value)
