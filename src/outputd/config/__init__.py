"""Settings: typed, from flags, environment, a TOML file and defaults. Never touches what the settings are about."""

from __future__ import annotations

from outputd.config.address import Address, TcpAddress, UnixAddress
from outputd.config.load import InvalidSettings, Loaded, Origin, Problem, load, load_file, usual_file
from outputd.config.places import Places
from outputd.config.remote_settings import NamedRemote, Remote
from outputd.config.settings import Cache, Config, Listen, Log, Mount, Outputs, State

__all__ = [
    "Address",
    "Cache",
    "Config",
    "InvalidSettings",
    "Listen",
    "Loaded",
    "Log",
    "Mount",
    "NamedRemote",
    "Origin",
    "Outputs",
    "Places",
    "Problem",
    "Remote",
    "State",
    "TcpAddress",
    "UnixAddress",
    "load",
    "load_file",
    "usual_file",
]
