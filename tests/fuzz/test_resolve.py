"""Path resolution against the kernel's own, on random trees in a real directory; and against arbitrary text."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

from hypothesis import given, settings
from hypothesis import strategies as st

from outputd.digest import Digest, DigestFunction
from outputd.errors import Invalid
from outputd.tree.node import DIRECTORY_MODE, FILE_MODE, Directory, File, Node, Special, Symlink
from outputd.tree.resolve import Kind, Resolution, Resolver, VirtualRoot, creating_path, resolve
from outputd.tree.status import NotLoaded
from outputd.tree.tree import Tree

NIGHTLY = "OUTPUTD_NIGHTLY" in os.environ
settings.register_profile("resolve", max_examples=1500 if NIGHTLY else 60, deadline=None)
LIMITS = settings.get_profile("resolve")

EMPTY = Digest.of(DigestFunction.SHA256, b"")
ERRNOS = {Kind.ABSENT: errno.ENOENT, Kind.NOT_DIRECTORY: errno.ENOTDIR, Kind.LOOP: errno.ELOOP}
KINDS = {Kind.FILE: File, Kind.DIRECTORY: Directory, Kind.SYMLINK: Symlink, Kind.SPECIAL: Special}

Plan: TypeAlias = "dict[str, Plan] | str"
"""Directories as dictionaries; `-` is a file, `|` a fifo, anything else the target of a symlink, with `BASE` for the directory that
stands for the client's whole machine."""

NAMES = st.sampled_from(["a", "b", "c"])
PIECES = st.sampled_from(["a", "b", "c", "a", "b", "c", "..", ".", "", "missing", "root"])
STARTS = st.sampled_from(
    ["", "", "", "BASE/mnt/root/", "BASE/exec/alias/", "BASE/mnt/", "BASE/out/", "BASE/exec/../mnt/root/"]
)


@st.composite
def paths(draw: st.DrawFn) -> str:
    return draw(STARTS) + "/".join(draw(st.lists(PIECES, max_size=6)))


LEAVES = st.sampled_from(["-", "-", "|"]) | paths().filter(bool)
PLANS: st.SearchStrategy[dict[str, Plan]] = st.deferred(
    lambda: st.dictionaries(NAMES, LEAVES | LEAVES | PLANS, max_size=3)
)


class World(NamedTuple):
    """The same tree twice, and the paths that lead to its nodes."""

    root: Directory
    view: VirtualRoot
    base: str
    real: str
    """The real directory that stands for the output path."""
    alias: int
    """Inode number of the symlink that stands for the alias."""


def make(plan: dict[str, Plan], alias: str, base: str) -> World:
    real = f"{base}/mnt/root"
    os.makedirs(real)
    os.makedirs(f"{base}/exec")
    os.makedirs(f"{base}/out/a")
    with open(f"{base}/out/b", "x"):
        pass
    os.symlink(f"{real}/{alias}", f"{base}/exec/alias")
    tree = Tree(uid=0, gid=0, now=1)
    volume = tree.add_volume(1, b"root", 1)
    fill(tree, volume.root, plan, real, base)
    view = VirtualRoot(f"{base}/mnt", "root", {f"{base}/exec/alias": alias})
    return World(volume.root, view, base, real, os.lstat(f"{base}/exec/alias").st_ino)


def fill(tree: Tree, directory: Directory, plan: dict[str, Plan], real: str, base: str) -> None:
    for name, entry in plan.items():
        path = f"{real}/{name}"
        node: Node
        if isinstance(entry, dict):
            os.mkdir(path)
            node = Directory(DIRECTORY_MODE, 1, directory.volume)
            fill(tree, node, entry, path, base)
        elif entry == "-":
            with open(path, "x"):
                pass
            node = File(FILE_MODE, 1, EMPTY)
        elif entry == "|":
            os.mkfifo(path)
            node = Special(0o010644, 1, 0)
        else:
            target = entry.replace("BASE", base)
            os.symlink(target, path)
            node = Symlink(target.encode(), 1)
        tree.place(directory, name.encode(), node, 1)


def real_inode(path: str, *, follow: bool) -> int:
    """The inode number at a real path, or the negative error number."""
    try:
        return os.stat(path, follow_symlinks=follow).st_ino
    except OSError as error:
        assert error.errno is not None
        return -error.errno


def place_of(world: World, node: Node) -> str:
    names: list[str] = []
    while node is not world.root:
        names.append(node.name.decode())
        assert node.parent is not None
        node = node.parent
    return "/".join([world.real, *reversed(names)])


def nodes(directory: Directory) -> Iterator[Node]:
    yield directory
    assert directory.children is not None
    for node in directory.children.values():
        if isinstance(node, Directory):
            yield from nodes(node)
        else:
            assert isinstance(node, Node)
            yield node


@settings(LIMITS)
@given(
    plan=PLANS,
    alias=paths().filter(lambda p: "BASE" not in p and not p.startswith("/")),
    asked=st.lists(paths(), min_size=12),
)
def test_resolves_as_the_kernel_does(plan: dict[str, Plan], alias: str, asked: list[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="outputd-resolve-") as base:
        world = make(plan, alias, base)
        for follow in (True, False):
            resolver = Resolver(world.root, world.view, follow_final=follow)
            for path in (path.replace("BASE", base) for path in asked):
                result = resolve(world.root, world.view, path, follow_final=follow)
                assert resolver.resolve(path) == result
                check(world, path, result, follow=follow)


def check(world: World, path: str, result: Resolution, *, follow: bool) -> None:
    there = path if path.startswith("/") else f"{world.real}/{path}"
    real = real_inode(there, follow=follow)
    if result.kind is Kind.EXTERNAL:
        next_path = result.next_path.decode()
        assert next_path.startswith(("/", ".."))
        if real != -errno.ELOOP:  # the kernel goes on counting links where the client's count begins anew
            assert real_inode(os.path.join(world.real, next_path), follow=follow) == real
    elif result.kind in ERRNOS:
        assert real == -ERRNOS[result.kind]
    elif real != world.alias:  # an alias is always followed: the client asks for what lies behind it
        assert isinstance(result.node, Node)
        assert isinstance(result.node, KINDS[result.kind])
        assert real == real_inode(place_of(world, result.node), follow=False)


def outcome(world_root: Directory, view: VirtualRoot, path: str, *, follow: bool, fast: bool) -> object:
    try:
        if fast:
            return Resolver(world_root, view, follow_final=follow).resolve(path)
        return resolve(world_root, view, path, follow_final=follow)
    except NotLoaded as need:
        return need.directory
    except Invalid as error:
        return str(error)


ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=20) | st.text("a/.\0", max_size=12)


@settings(LIMITS, max_examples=LIMITS.max_examples * 4)
@given(plan=PLANS, path=paths() | ANY_TEXT, collapsed=st.integers(0, 7), follow=st.booleans())
def test_the_fast_way_is_the_plain_way(
    plan: dict[str, Plan], path: str, collapsed: int, follow: bool
) -> None:
    tree = Tree(uid=0, gid=0, now=1)
    root = tree.add_volume(1, b"root", 1).root
    stage(tree, root, plan)
    directories = [node for node in nodes(root) if isinstance(node, Directory)]
    if collapsed < len(directories):
        directories[collapsed].children = None
    view = VirtualRoot("/BASE/mnt", "root", {"/BASE/exec/alias": "a/b"})
    path = path.replace("BASE", "/BASE")
    plain = outcome(root, view, path, follow=follow, fast=False)
    assert outcome(root, view, path, follow=follow, fast=True) == plain
    if isinstance(plain, Directory):
        assert plain.children is None


def stage(tree: Tree, directory: Directory, plan: dict[str, Plan]) -> None:
    for name, entry in plan.items():
        if isinstance(entry, dict):
            stage(tree, tree.descend(directory, name.encode(), 1), entry)
        else:
            node = File(FILE_MODE, 1, EMPTY) if entry == "-" else Symlink(entry.encode(), 1)
            tree.place(directory, name.encode(), node, 1)


@settings(LIMITS, max_examples=LIMITS.max_examples * 4)
@given(path=paths() | ANY_TEXT)
def test_a_path_to_be_created_stays_inside_or_is_refused(path: str) -> None:
    try:
        steps, name = creating_path(path)
    except Invalid:
        return
    level = 0
    for step in steps:
        level += -1 if step == b".." else 1
        assert level >= 0
        assert 0 < len(step) <= 255 and b"/" not in step and b"\0" not in step and step != b"."
    assert 0 < len(name) <= 255 and b"/" not in name and b"\0" not in name and name not in (b".", b"..")
    assert os.path.normpath(
        os.path.join("/r", *map(os.fsdecode, steps), os.fsdecode(name))
    ) == os.path.normpath("/r/" + path.encode().decode("utf-8", "surrogateescape"))


@settings(LIMITS, max_examples=LIMITS.max_examples * 4)
@given(
    prefix=paths() | ANY_TEXT,
    suffix=paths() | ANY_TEXT,
    aliases=st.dictionaries(paths() | ANY_TEXT, paths() | ANY_TEXT, max_size=3),
    path=paths() | ANY_TEXT,
)
def test_any_name_space_is_taken_or_refused(
    prefix: str, suffix: str, aliases: dict[str, str], path: str
) -> None:
    tree = Tree(uid=0, gid=0, now=1)
    root = tree.add_volume(1, b"root", 1).root
    tree.create(root, b"a", Symlink(b"/BASE/mnt/root/b/../a", 1), uid=0, gid=0, now=1)
    try:
        view = VirtualRoot(
            prefix.replace("BASE", "/BASE"),
            suffix,
            {k.replace("BASE", "/BASE"): v for k, v in aliases.items()},
        )
    except Invalid:
        return
    asked = path.replace("BASE", "/BASE")
    plain = outcome(root, view, asked, follow=True, fast=False)
    assert outcome(root, view, asked, follow=True, fast=True) == plain
    # What an alias leads to is what its value leads to; the alias itself costs one link.
    for alias, value in aliases.items():
        behind = outcome(root, view, alias.replace("BASE", "/BASE"), follow=False, fast=False)
        direct = outcome(root, view, value, follow=False, fast=False)
        assert isinstance(behind, Resolution) and isinstance(direct, Resolution)
        assert behind.kind is direct.kind and behind.node is direct.node
