"""Reads our own .proto files for the reference page: services, messages, fields and the comments above them. Never a compiler: it
takes the plain style those files keep and stops at a line it does not know.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

_RPC: Final = re.compile(r"rpc (\w+)\((stream )?([\w.]+)\) returns \((stream )?([\w.]+)\);")
_FIELD: Final = re.compile(r"(?:(repeated|optional) )?(map<[^>]+>|[\w.]+) (\w+) = (\d+)(?: \[[^\]]*\])?;")
_VALUE: Final = re.compile(r"(\w+) = (\d+);")
_BLOCK: Final = re.compile(r"(service|message|enum|oneof) (\w+) \{(\})?")
_IGNORED: Final = re.compile(r"(syntax|package|import|reserved|option) .*;|option \w+ = \w+;")


@dataclass(frozen=True, slots=True)
class Method:
    name: str
    request: str
    reply: str
    comment: str


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a message, or a value of an enum (then `kind` is empty)."""

    number: int
    name: str
    kind: str
    comment: str


@dataclass(slots=True)
class Block:
    """A service, message or enum."""

    sort: str
    name: str
    comment: str
    fields: list[Field] = field(default_factory=list)
    methods: list[Method] = field(default_factory=list)


@dataclass(slots=True)
class Outline:
    """One file."""

    comment: str
    package: str
    blocks: list[Block]
    """In the order of the file; a nested one is named `Outer.Inner` and comes after its outer one."""


def outline(text: str) -> Outline:
    """Raises ValueError, with its number, at a line that is not in the style of our files."""
    found = Outline("", "", [])
    comment: list[str] = []
    open_blocks: list[Block] = []
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if line.startswith("//"):
            comment.append(line.removeprefix("//").removeprefix(" "))
            continue
        said, comment = _joined(comment), []
        if not line:
            # The comment that stands by itself is the file's.
            found.comment = found.comment or said
        elif line.startswith("package "):
            found.package = line.removeprefix("package ").rstrip(";")
        elif _IGNORED.fullmatch(line):
            continue
        elif line == "}":
            open_blocks.pop()
        elif block := _BLOCK.fullmatch(line):
            _open(block, said, open_blocks, found)
        elif not open_blocks:
            raise ValueError(f"line {number}: {line}")
        elif rpc := _RPC.fullmatch(line):
            request, reply = (rpc[2] or "") + rpc[3], (rpc[4] or "") + rpc[5]
            open_blocks[-1].methods.append(Method(rpc[1], request, reply, said))
        elif entry := _FIELD.fullmatch(line):
            kind = f"{entry[1]} {entry[2]}" if entry[1] else entry[2]
            open_blocks[-1].fields.append(Field(int(entry[4]), entry[3], kind, said))
        elif value := _VALUE.fullmatch(line):
            open_blocks[-1].fields.append(Field(int(value[2]), value[1], "", said))
        else:
            raise ValueError(f"line {number}: {line}")
    return found


def _open(block: re.Match[str], comment: str, open_blocks: list[Block], found: Outline) -> None:
    if block[1] == "oneof":
        # Its members are fields of the message around it.
        made = open_blocks[-1]
    else:
        name = ".".join([*(outer.name.rpartition(".")[2] for outer in open_blocks), block[2]])
        made = Block(block[1], name, comment)
        found.blocks.append(made)
    if not block[3]:
        open_blocks.append(made)


def _joined(lines: list[str]) -> str:
    """Lines as paragraphs."""
    paragraphs = "\n".join(lines).split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs).strip()
