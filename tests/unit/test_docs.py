"""The documentation: generated pages are current, links lead somewhere, commands that it shows exist."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from outputd.cli.main import make_parser
from scripts.generate_reference import PROTOS, REFERENCE, REPOSITORY, pages
from scripts.proto_outline import Field, Method, outline

PAGES = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")])
NAMES = [str(page.relative_to(REPOSITORY)) for page in PAGES]

_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """As GitHub makes them: lowercase, without punctuation, spaces as hyphens."""
    headings = _HEADING.findall(_FENCED.sub("", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", sorted(pages()))
def test_reference_is_current(name: str) -> None:
    assert (REFERENCE / name).read_text() == pages()[name], f"docs/reference/{name} is stale: run `make docs`"


def test_no_other_page_claims_to_be_generated() -> None:
    assert {path.name for path in REFERENCE.iterdir() if "Made by" in path.read_text()} == set(pages())


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page: Path) -> None:
    for target in _LINK.findall(_FENCED.sub("", page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        wanted = (page.parent / path).resolve() if path else page
        assert wanted.exists(), f"{target}: no such file"
        assert not anchor or anchor in anchors(wanted), f"{target}: no such heading"


def test_every_page_can_be_reached_from_the_index() -> None:
    index = (REPOSITORY / "docs" / "README.md").read_text()
    for page in (REPOSITORY / "docs").rglob("*.md"):
        name = str(page.relative_to(REPOSITORY / "docs"))
        assert name == "README.md" or f"]({name})" in index, f"docs/README.md does not mention {name}"


def shown_commands() -> Iterator[tuple[str, str]]:
    """Every line of a fenced block that begins with `outputd`, a prompt or a path to it before it or not."""
    for page, name in zip(PAGES, NAMES, strict=True):
        for block in _FENCED.findall(page.read_text()):
            for line in block.splitlines():
                if found := re.match(r"\s*(?:\$ )?(?:\S*/)?(outputd (?!\d|:).*)", line):
                    yield name, found[1]


@pytest.mark.parametrize(("name", "command"), sorted(set(shown_commands())))
def test_shown_commands_are_right(name: str, command: str) -> None:
    words = shlex.split(re.split(r"\s(?:#|\||&|>>?)|\s{2,}", command)[0])
    try:
        make_parser().parse_args(words[1:])
    except SystemExit as end:
        assert end.code == 0, f"{name}: {command}"


def test_documentation_shows_commands_at_all() -> None:
    # What keeps the test above from passing because it found nothing.
    assert {"README.md", "docs/reference/cli.md", "docs/tutorial/first-lazy-build.md"} <= {
        name for name, _ in shown_commands()
    }


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    wanted = [
        *project["project"]["dependencies"],
        *(name for group in project["dependency-groups"].values() for name in group),
    ]
    page = (REPOSITORY / "docs" / "explanation" / "dependencies.md").read_text()
    given = set(
        re.findall(
            r"`([\w.-]+)`",
            "\n".join(line.split("|")[1] for line in page.splitlines() if line.startswith("|")),
        )
    )
    assert given == {re.split(r"[^\w.-]", name)[0] for name in wanted}


class TestProtoOutline:
    def test_what_it_reads(self) -> None:
        found = outline("""\
// The file.
//
// More.

syntax = "proto3";
package a.b;

// A service.
service S {
  // Two
  // lines.
  rpc M(stream X) returns (c.Y);
}
message X {
  oneof one {
    // The field.
    repeated map<string, int32> f = 3 [deprecated = true];
  }
  enum E {
    ZERO = 0;
  }
}
message Y {}
""")
        assert (found.comment, found.package) == ("The file.\n\nMore.", "a.b")
        service, message, enum, empty = found.blocks
        assert service.comment == "A service."
        assert service.methods == [Method("M", "stream X", "c.Y", "Two lines.")]
        assert message.fields == [Field(3, "f", "repeated map<string, int32>", "The field.")]
        assert (enum.name, enum.fields) == ("X.E", [Field(0, "ZERO", "", "")])
        assert (empty.name, empty.fields) == ("Y", [])

    def test_what_it_does_not_know_it_does_not_skip(self) -> None:
        with pytest.raises(ValueError, match="line 2: extensions 4 to 8;"):
            outline("message X {\n  extensions 4 to 8;\n}\n")

    @pytest.mark.parametrize("path", sorted(PROTOS.rglob("*.proto")), ids=lambda path: path.name)
    def test_it_reads_all_of_ours(self, path: Path) -> None:
        assert outline(path.read_text()).blocks
