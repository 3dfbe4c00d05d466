"""What can go wrong in the world or in what a caller sent; our words only, never an errno or a gRPC code.

Each front and the gRPC edge translates these once, in one total table. A message says what was wrong, where (field, path
or digest), and what would be right.
"""

from __future__ import annotations


class OutputdError(Exception):
    """The root of everything outputd raises on purpose."""


class Invalid(OutputdError):
    """The caller sent something that can never work: a malformed digest, a path that leaves its root. Do not retry."""


class Precondition(OutputdError):
    """The request is well formed but the state does not allow it: an unknown build, a build that was ended. Do not retry."""


class NotFound(OutputdError):
    """The named blob or object exists nowhere we may look. Do not retry."""


class Corrupt(OutputdError):
    """Bytes do not match their digest, or a message cannot be what its digest promises."""


class Unavailable(OutputdError):
    """A store or server cannot be reached now; a later try may work."""


class TimedOut(Unavailable):
    """A wait on the world reached its deadline."""


class Unreachable(Unavailable):
    """The remote server cannot be reached, or cannot serve anybody now; a later try may work."""


class Exhausted(OutputdError):
    """No room: disk, quota, or a stated limit."""


class Throttled(Exhausted):
    """The remote server has no room, or takes no more requests from us for now."""


class TooLarge(Invalid):
    """A file would grow beyond what the disk below it takes."""


class Denied(OutputdError):
    """The remote refuses our credentials or our right to do this, or we do not trust its certificate. Do not retry as it is."""


class Unproven(Denied):
    """It is not proven who we are, or who the server is; with other credentials or certificates the same may work."""


class Refused(Precondition):
    """Our own settings forbid it to who asks. Do not retry."""


class Unsupported(OutputdError):
    """Something the other side, or this host, does not offer."""
