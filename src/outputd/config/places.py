"""Which directories are whose: home, the XDG directories and how a path in a setting is completed. Never creates anything but
the private runtime directory, and that only when asked.

Source: XDG Base Directory Specification 0.8. A relative value of one of its variables counts as unset.
"""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from outputd.errors import Denied, Invalid, Unavailable

_XDG_DEFAULTS: Final = {
    "XDG_CONFIG_HOME": ".config",
    "XDG_STATE_HOME": ".local/state",
    "XDG_CACHE_HOME": ".cache",
}


@dataclass(frozen=True, slots=True)
class Places:
    """One user's directories, and the directory that relative paths start from."""

    environ: Mapping[str, str]
    uid: int
    base: str | None
    """None when the working directory was removed beneath us."""

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Places:
        """For the user who runs this process, relative paths starting from the working directory."""
        try:
            return cls(environ, os.getuid(), os.getcwd())
        except FileNotFoundError:
            return cls(environ, os.getuid(), None)

    def starting_from(self, base: str) -> Places:
        """The same places, relative paths starting from `base`."""
        return replace(self, base=base)

    def home(self) -> str:
        """The home directory: $HOME, else what the user database says. Raises Invalid when neither knows."""
        home = self.environ.get("HOME", "")
        if home.startswith("/"):
            return home
        try:
            return pwd.getpwuid(self.uid).pw_dir
        except KeyError:
            raise Invalid(f"HOME is not set, and there is no user with uid {self.uid}; set HOME") from None

    def netrc(self) -> str | None:
        """Where Bazel, as curl, looks for a .netrc; None when nobody knows a home directory."""
        try:
            return self.complete(self.environ.get("NETRC") or "~/.netrc")
        except Invalid:
            return None

    def xdg(self, variable: str) -> str:
        """The directory that an XDG variable names, or its default. XDG_RUNTIME_DIR has none: see `runtime`."""
        value = self.environ.get(variable, "")
        if value.startswith("/"):
            return value
        if variable == "XDG_RUNTIME_DIR":
            return self._runtime_fallback()
        return f"{self.home()}/{_XDG_DEFAULTS[variable]}"

    def complete(self, path: str) -> str:
        """An absolute, normalised path. Expands `~/` and a leading `$XDG_…/`. Raises Invalid for what is no path."""
        if not path:
            raise Invalid("an empty path; write an absolute one, or one that begins with ~/")
        if "\0" in path:
            raise Invalid(f"{path!r}: a path has no NUL byte")
        head, slash, rest = path.partition("/")
        if head == "~":
            path = self.home() + slash + rest
        elif head.startswith("~"):
            raise Invalid(f"{path!r}: other users' homes are not looked up; write the absolute path")
        elif head.startswith("$"):
            variable = head[1:]
            if variable != "XDG_RUNTIME_DIR" and variable not in _XDG_DEFAULTS:
                known = ", ".join(f"${name}" for name in ("XDG_RUNTIME_DIR", *_XDG_DEFAULTS))
                raise Invalid(f"{path!r}: only {known} and ~ are expanded")
            path = self.xdg(variable) + slash + rest
        if self.base is None and not path.startswith("/"):
            raise Invalid(
                f"{path!r} is relative, and the working directory does not exist any more; write an absolute path"
            )
        # normpath keeps a leading "//" as POSIX allows it to mean something; on Linux and macOS it does not.
        return "/" + os.path.normpath(os.path.join(self.base or "/", path)).lstrip("/")

    def private_fallback(self) -> str:
        """The directory for our socket where the system made no runtime directory for this user."""
        return f"/tmp/outputd-{self.uid}"

    def _runtime_fallback(self) -> str:
        # A user without a login session (cron, su, sudo -u) has no variable, yet often the directory.
        usual = f"/run/user/{self.uid}"
        return usual if _private_to(usual, self.uid) else self.private_fallback()

    def ensure_private(self, path: str) -> None:
        """Make `path`, mode 0700, or check that it is ours alone. Raises Denied when somebody else could meddle with it.

        /tmp belongs to everybody: another user may have made our directory first, to serve us a socket of his.
        """
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            self.check_private(path)
        except OSError as wrong:
            raise Unavailable(
                f"{path} cannot be made: {wrong.strerror}; set XDG_RUNTIME_DIR to a directory of yours"
            ) from wrong

    def check_private(self, path: str) -> None:
        """Raises Denied unless `path` is a real directory that only this user may enter."""
        if not _private_to(path, self.uid):
            raise Denied(
                f"{path} is not a directory of yours alone (owner uid {self.uid}, mode 0700); remove it, or set "
                "XDG_RUNTIME_DIR to a directory that is"
            )


def _private_to(path: str, uid: int) -> bool:
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == uid and not found.st_mode & 0o077
