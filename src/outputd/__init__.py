"""outputd keeps every output of every build visible as ordinary files and moves only the bytes somebody reads."""

__version__ = "0.1.0"
