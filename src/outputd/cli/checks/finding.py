"""What a check found: the verdict, why, and what to do about it. Never looks at anything itself."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Verdict(enum.StrEnum):
    """How bad it is."""

    PASS = "pass"
    WARN = "warn"
    """It works, but not as well as it could, or it will fail in a case that is not yet met."""
    FAIL = "fail"
    """It does not work."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's result. A warning or a failure says what to do."""

    check: str
    verdict: Verdict
    reason: str
    fix: str | None = None


def passed(check: str, reason: str) -> Finding:
    return Finding(check, Verdict.PASS, reason)


def warned(check: str, reason: str, fix: str) -> Finding:
    return Finding(check, Verdict.WARN, reason, fix)


def failed(check: str, reason: str, fix: str) -> Finding:
    return Finding(check, Verdict.FAIL, reason, fix)
