"""What may be told of credentials: where they come from, whose they are, when they end; how texts are freed of them. Shows none."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

Headers = tuple[tuple[str, str], ...]
"""Names in lowercase and values; a name may come twice."""

MASK: Final = "********"
_LEAST_SECRET: Final = 6
"""Letters. Shorter values say things like `1` or `true`, and would be found everywhere."""
_LONGEST_SUBJECT: Final = 100

# What a program that fails may print of what it tried: a value behind a telling word, and what looks like no word at all.
_TELLING: Final = re.compile(
    r"(?i)\b(authorization|bearer|basic|token|password|passwd|secret|key|credential|cookie)s?\b([\"']?\s*[:= ]\s*[\"']?)"
    r"(?!(?:bearer|basic|token)\b)([^\s\"',;]+)"
)
_NO_WORD: Final = re.compile(r"(?<![\w/.-])(?=[\w+/=.~-]*\d)(?=[\w+/=.~-]*[A-Za-z])[\w+=.~-][\w+/=.~-]{15,}")


@dataclass(frozen=True, slots=True)
class CredentialFacts:
    """The headers of one source."""

    names: tuple[str, ...]
    source: str
    subject: str = ""
    """`sub` of a JSON Web Token."""
    expires: float | None = None
    """Seconds since 1970; None when nobody says."""
    error: str = ""
    """Why there are none, or no newer ones."""


def facts_of(headers: Headers, source: str, expires: float | None = None, error: str = "") -> CredentialFacts:
    """What is known of headers; their own claims fill in what the source does not say."""
    subject = ""
    for _, value in headers:
        claimed, ends = _claims(value)
        subject = subject or claimed
        expires = ends if expires is None else expires
    return CredentialFacts(tuple(dict.fromkeys(name for name, _ in headers)), source, subject, expires, error)


def _claims(value: str) -> tuple[str, float | None]:
    """`sub` and `exp` of a JSON Web Token (RFC 7519), not verified: that is for who accepts it."""
    parts = value.rpartition(" ")[2].split(".")
    if len(parts) != 3:
        return "", None
    try:
        payload = json.loads(base64.b64decode(parts[1] + "=" * (-len(parts[1]) % 4), altchars=b"-_"))
    except (binascii.Error, ValueError):
        return "", None
    if not isinstance(payload, dict):
        return "", None
    subject, expires = payload.get("sub"), payload.get("exp")
    shown = subject if isinstance(subject, str) and subject.isprintable() else ""
    if not isinstance(expires, int | float) or isinstance(expires, bool) or not 0 < expires < 1e11:
        expires = None
    return shown[:_LONGEST_SUBJECT], expires


def secrets_of(headers: Headers) -> frozenset[str]:
    """What must not be seen: the values, of `Bearer xyz` the second word, too, and of `Basic xyz` what that stands for."""
    words = [part for _, value in headers for part in (value, value.rpartition(" ")[2], *_decoded(value))]
    return frozenset(word for word in words if len(word) >= _LEAST_SECRET)


def _decoded(value: str) -> tuple[str, ...]:
    """User and password together, and the password, of a Basic value (RFC 7617)."""
    scheme, _, coded = value.partition(" ")
    if scheme.lower() != "basic":
        return ()
    try:
        both = base64.b64decode(coded).decode()
    except ValueError:  # binascii.Error is one, UnicodeDecodeError too
        return ()
    return both, both.partition(":")[2]


def scrubbed(text: str, secrets: Iterable[str]) -> str:
    """The text with each of these masked."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, MASK)
    return text


def guessed(text: str) -> str:
    """The text with what may be a secret masked: for words of a program whose secrets we do not know. Masks too much at times."""
    text = _TELLING.sub(rf"\1\2{MASK}", text)
    return _NO_WORD.sub(MASK, text)
