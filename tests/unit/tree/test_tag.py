"""CACHEDIR.TAG in the root: read-only, with a number that nobody else has or had."""

from __future__ import annotations

from outputd.digest import Digest, DigestFunction
from outputd.tree.inodes import Identity
from outputd.tree.node import File
from outputd.tree.status import Status
from outputd.tree.tag import TAG, TAG_INO, enter_tag
from outputd.tree.tree import Tree

CONTENT = Digest.of(DigestFunction.SHA256, b"tag")


def tagged() -> tuple[Tree, File]:
    tree = Tree(uid=1, gid=2, now=7 << 30)
    enter_tag(tree, CONTENT)
    node = tree.lookup(tree.root, TAG)
    assert isinstance(node, File)
    return tree, node


def test_it_is_there_and_stays() -> None:
    tree, node = tagged()
    assert (node.content, node.mode, node.nlink) == (CONTENT, 0o100444, 1)
    assert tree.unlink(tree.root, TAG, 9) is Status.READ_ONLY
    assert tree.rename(tree.root, TAG, tree.root, b"other", 0, 9) is Status.READ_ONLY
    assert list(tree.children(tree.root)) == [b"outputs", TAG]


def test_it_outlives_what_the_kernel_forgets() -> None:
    tree, node = tagged()
    assert tree.remember(node, tree.root) == TAG_INO
    tree.forget(TAG_INO, 1)
    assert tree.lookup(tree.root, TAG) is node
    assert tree.remember(node, tree.root) == TAG_INO
    assert not tree.dropped


def test_outputs_has_the_number_that_it_had_without_a_tag() -> None:
    before = Tree(uid=1, gid=2, now=0)
    was = before.remember(before.outputs, before.root)
    tree, node = tagged()
    assert tree.remember(node, tree.root) == TAG_INO != was
    assert tree.remember(tree.outputs, tree.root) == was

    # What a process without a tag has left to the next one leads to `outputs` again.
    later, node = tagged()
    later.inodes.awaited = {was: Identity(1, b"outputs", 3)}
    later.inodes.meet_below(later.root)
    assert later.inodes[was] is later.outputs
    assert later.outputs.lookups == 3
    assert node.lookups == 0
