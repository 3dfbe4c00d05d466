"""The root of the mount: its fixed inode numbers, and CACHEDIR.TAG, which cannot be changed."""

from __future__ import annotations

from outputd.digest import Digest, DigestFunction
from outputd.tree.cas import Cas
from outputd.tree.identity import remember_all
from outputd.tree.inodes import Identity, number_of
from outputd.tree.node import File
from outputd.tree.status import Status
from outputd.tree.top import CAS_INO, OUTPUTS_INO, TAG, TAG_INO, enter_tag, take_numbers
from outputd.tree.tree import Tree

CONTENT = Digest.of(DigestFunction.SHA256, b"tag")


def tagged() -> tuple[Tree, File]:
    tree = Tree(uid=1, gid=2, now=7 << 30)
    enter_tag(tree.root, CONTENT)
    Cas(tree.root, lambda _, digest: digest, "", lambda: 1)
    node = tree.lookup(tree.root, TAG)
    assert isinstance(node, File)
    return tree, node


def test_it_is_there_and_stays() -> None:
    tree, node = tagged()
    assert (node.content, node.mode, node.nlink) == (CONTENT, 0o100444, 1)
    assert tree.unlink(tree.root, TAG, 9) is Status.READ_ONLY
    assert tree.rename(tree.root, TAG, tree.root, b"other", 0, 9) is Status.READ_ONLY
    assert list(tree.children(tree.root)) == [b"outputs", TAG, b"cas"]


def test_it_outlives_what_the_kernel_forgets() -> None:
    tree, node = tagged()
    assert tree.remember(node, tree.root) == TAG_INO
    tree.forget(TAG_INO, 1)
    assert tree.lookup(tree.root, TAG) is node
    assert tree.remember(node, tree.root) == TAG_INO
    assert not tree.dropped


def test_numbers_do_not_depend_on_who_is_seen_first() -> None:
    for names in ([b"cas", b"outputs", TAG], [TAG, b"outputs", b"cas"]):
        tree, _ = tagged()
        remember_all(tree.root, names)
        assert {name: number_of(child) for name, child in tree.children(tree.root).items()} == {
            b"outputs": OUTPUTS_INO,
            b"cas": CAS_INO,
            TAG: TAG_INO,
        }


def test_a_mount_keeps_the_numbers_that_an_earlier_version_gave() -> None:
    for cas in (OUTPUTS_INO, (7 << 40) + 1):
        tree, node = tagged()
        known = {
            CAS_INO: Identity(1, b"outputs", 3),
            cas: Identity(1, b"cas", 2),
            99: Identity(77, b"cas", 1),
        }
        take_numbers(tree.root, known)
        tree.inodes.awaited = known
        tree.inodes.meet_below(tree.root)
        assert tree.inodes[CAS_INO] is tree.outputs
        assert tree.inodes[cas] is tree.lookup(tree.root, b"cas")
        assert (tree.outputs.lookups, node.lookups, node.ino) == (3, 0, TAG_INO)
