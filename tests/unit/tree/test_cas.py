"""The directory `cas`: which names lead to what, that nothing stays, and what a link of it is."""

from __future__ import annotations

import pytest

from outputd.digest import Digest, DigestFunction
from outputd.tree.cas import Cas, copy_of
from outputd.tree.node import Directory, File, Node, Searched, Symlink, Volume
from outputd.tree.status import NotLoaded
from outputd.tree.tree import Tree

SHA256 = DigestFunction.SHA256
DIGEST = Digest.of(SHA256, b"a blob")
NAME = f"{DIGEST.hash_hex}-6"
SCRIPT = Digest.of(SHA256, b"#!/bin/sh")


@pytest.fixture
def tree() -> Tree:
    made = Tree(uid=1, gid=1, now=0)
    Cas(made.root, lambda directory, digest: SCRIPT if digest == DIGEST else None, "main", lambda: 5)
    return made


def at(tree: Tree, path: str) -> Node | None:
    node: Node | None = tree.root
    for name in path.split("/"):
        assert isinstance(node, Directory), path
        node = tree.lookup(node, name.encode())
        if node is None:
            return None
    return node


def test_the_kinds(tree: Tree) -> None:
    file, program, script = (
        at(tree, f"cas/blobs/sha256/{kind}/{NAME}") for kind in ("file", "executable", "command")
    )
    assert isinstance(file, File) and isinstance(program, File) and isinstance(script, File)
    assert (file.mode, program.mode, script.mode) == (0o100444, 0o100555, 0o100555)
    assert (file.content, program.content, script.content) == (DIGEST, DIGEST, SCRIPT)
    directory = at(tree, f"cas/blobs/sha256/directory/{NAME}")
    inner = at(tree, f"cas/blobs/sha256/tree/{NAME}")
    assert isinstance(directory, Directory) and isinstance(inner, Directory)
    assert (directory.digest, directory.tree, inner.digest, inner.tree) == (DIGEST, None, None, DIGEST)
    for collapsed in (directory, inner):
        with pytest.raises(NotLoaded):
            tree.lookup(collapsed, b"x")


@pytest.mark.parametrize(
    ("path", "instance_name"),
    [
        ("cas", ""),
        ("cas/a/b", "a/b"),
        ("cas/main", ""),
        ("cas/main/main", "main/main"),
        ("cas/sha256", "sha256"),
        ("cas/é", "é"),
    ],
)
def test_instance_names(path: str, instance_name: str, tree: Tree) -> None:
    file = at(tree, f"{path}/blobs/sha256/file/{NAME}")
    assert file is not None and file.parent is not None
    assert file.parent.volume.instance_name == instance_name


@pytest.mark.parametrize(
    "path",
    [
        "uploads",
        "a/actionResults",
        "a/compressed-blobs",
        "blobs/sha257",
        "blobs/sha256/blob",
        "blobs/gitsha1",
        f"blobs/sha1/file/{NAME}",
        f"blobs/sha256/file/{NAME[:-2]}",
        f"blobs/sha256/file/{NAME}0" + "0" * 20,
        f"blobs/sha256/file/{NAME[:-1]}06",
        f"blobs/sha256/file/{NAME[:-1]}-6",
        f"blobs/sha256/file/{NAME[:-1]}\u0666",
        f"blobs/sha256/file/{NAME.upper()}",
        f"blobs/sha256/command/{Digest.of(SHA256, b'other').hash_hex}-5",
    ],
)
def test_what_is_no_name(path: str, tree: Tree) -> None:
    assert at(tree, f"cas/{path}") is None


def test_a_name_that_is_not_utf8_is_no_instance_name(tree: Tree) -> None:
    cas = at(tree, "cas")
    assert isinstance(cas, Directory)
    assert tree.lookup(cas, b"\xff") is None


def test_nothing_stays_that_the_kernel_has_forgotten(tree: Tree) -> None:
    path = ""
    nodes: list[Node] = []
    for name in ("cas", "a", "blobs", "sha256", "file", NAME):
        path = f"{path}/{name}".strip("/")
        node = at(tree, path)
        assert node is not None and node.parent is not None
        tree.remember(node, node.parent)
        nodes.append(node)
    assert at(tree, path) is nodes[-1], "as long as it is known it is one node"
    assert len({node.ino for node in nodes}) == len(nodes)
    known = len(tree.inodes)
    for node in reversed(nodes):
        tree.forget(node.ino, 1)
    assert len(tree.inodes) == known - len(nodes)
    top = at(tree, "cas")
    assert isinstance(top, Searched) and not top.found
    again = at(tree, path)
    assert again is not nodes[-1]
    assert again is not None and again.ino == 0


def test_a_directory_that_was_looked_into_goes_as_a_whole(tree: Tree) -> None:
    directory = at(tree, f"cas/blobs/sha256/directory/{NAME}")
    assert isinstance(directory, Directory) and directory.parent is not None
    tree.remember(directory, directory.parent)
    file = File(0o100644, 0, DIGEST)
    directory.children = {b"x": file}
    file.parent, file.name = directory, b"x"
    tree.forget(directory.ino, 1)
    assert tree.dropped == [directory]
    assert list(tree.dismantle(directory)) == [None]
    assert file.parent is None


def test_a_link_is_a_node_of_its_own(tree: Tree) -> None:
    output_path = tree.add_volume(1, b"base", 0)
    file = at(tree, f"cas/main/blobs/sha256/executable/{NAME}")
    assert isinstance(file, File)
    copy = copy_of(file, output_path)
    assert isinstance(copy, File) and copy is not file
    assert (copy.content, copy.mode, copy.parent) == (DIGEST, 0o100555, None)
    assert file.parent is not None
    symlink = Symlink(b"target", 0)
    symlink.parent = file.parent
    linked = copy_of(symlink, output_path)
    assert isinstance(linked, Symlink) and linked.target == b"target"
    assert copy_of(file.parent, output_path) is None, "a directory has one name"
    elsewhere = at(tree, f"cas/other/blobs/sha256/file/{NAME}")
    assert elsewhere is not None and copy_of(elsewhere, output_path) is None
    mine = File(0o100644, 0, DIGEST)
    mine.parent = output_path.root
    assert copy_of(mine, Volume(2, 0, writable=True)) is None
