"""The names of hard-linked nodes, of which some may lie in collapsed directories. Never decides whether a name may be given.

One node has several names but only one `parent` and `name`; the others stand in `Extra.linked`. Names in directories that are not
loaded stand nowhere: the link count includes them, and they are met when their directory is expanded. What is recorded there may be
outdated by then, so it counts for nothing; and before a volume is sealed, those directories are loaded (`Tree.lacking`).
"""

from __future__ import annotations

import copy

from outputd.tree.identity import identify
from outputd.tree.node import Directory, Extra, File, Node, Volume
from outputd.tree.outdate import outdate_holders
from outputd.tree.rules import entries, is_below


def add_name(node: Node, directory: Directory, name: bytes) -> None:
    """A name of a node that is met beside others, or was just given. The link count is the caller's."""
    if node.parent is None:
        node.parent, node.name = directory, name
        return
    extra = node.extra = node.extra or Extra()
    if extra.linked is None:
        extra.linked = []
    extra.linked.append((directory, name))


def move_name(node: Node, source: Directory, old: bytes, target: Directory, new: bytes) -> None:
    """One of a node's names has changed."""
    if node.parent is source and node.name == old:
        node.parent, node.name = target, new
        return
    assert node.extra is not None and node.extra.linked is not None
    node.extra.linked[node.extra.linked.index((source, old))] = (target, new)


def lose_name(node: Node, directory: Directory, name: bytes) -> None:
    """One of a node's names is gone; with the last one its place in the tree."""
    extra = node.extra
    if extra is None or extra.linked is None:
        node.parent = None
        return
    extra.nlink -= 1
    if node.parent is not directory or node.name != name:
        extra.linked.remove((directory, name))
    elif extra.linked:
        node.parent, node.name = extra.linked.pop()
    else:
        node.parent = None  # any other names lie in collapsed directories
    if extra.nlink == _met(node):
        _forget_if_single(node, directory.volume)


def hand_over_names(old: File) -> list[tuple[Directory, bytes]]:
    """Lead all names of a file, none of which lies in a collapsed directory, to a new node like it; they are returned."""
    assert old.parent is not None
    new = File(old.mode, old.mtime, old.content)
    new.ctime = old.ctime
    if old.extra is not None:
        new.extra = copy.copy(old.extra)
        new.extra.linked, new.extra.nlink = None, 1
        new.extra.xattrs = copy.copy(old.extra.xattrs)
    volume = old.parent.volume
    names = [(old.parent, old.name)]
    if old.extra is not None and old.extra.linked:
        names += old.extra.linked
    for directory, name in names:
        first = new.parent is None
        if not first:
            assert new.extra is not None
            # Played back, these touch the times of the directory and of the node, which are told again below.
            volume.log.removed(directory, name, directory.mtime)
            volume.log.linked(new, directory, name, directory.mtime)
            new.extra.nlink += 1
        entries(directory)[name] = new
        lose_name(old, directory, name)
        add_name(new, directory, name)
        if not first:
            volume.log.changed(directory)
            continue
        volume.log.renewed(directory, name, new)
        if len(names) > 1:
            volume.linked[identify(new, directory)] = new
    if len(names) > 1:
        volume.log.changed(new)
    return names


def meet(node: Node, directory: Directory, name: bytes) -> Node:
    """The node that a name leads to, which was found in a directory that is being expanded: `node`, or the one known already."""
    extra = node.extra
    assert extra is not None
    known = directory.volume.linked.setdefault(node.ino, node)
    if known is node:
        extra.linked = []
    add_name(known, directory, name)
    if known.nlink == _met(known):
        _forget_if_single(known, directory.volume)
    return known


def partly_met(volume: Volume) -> list[Node]:
    """Nodes of which some names were met, or are known from before, and others not."""
    return [node for node in volume.linked.values() if is_partly_met(node)]


def is_partly_met(node: Node) -> bool:
    """Whether some names of a node lie in collapsed directories, or went with one."""
    return node.nlink != _met(node)


def unmet(volume: Volume) -> Directory | None:
    """A collapsed directory of the volume that holds names of hard-linked nodes, here or below."""
    for directory in list(volume.unmet):
        if is_below(directory, volume.root):
            return directory
        del volume.unmet[directory]
    return None


def give_up_unmet(node: Node, volume: Volume) -> None:
    """The names of a node that were not met went with a directory that nobody had looked into."""
    assert node.extra is not None
    node.extra.nlink = _met(node)
    outdate_holders(node, digests=False)
    _forget_if_single(node, volume)


def _met(node: Node) -> int:
    """Names in expanded directories."""
    extra = node.extra
    linked = 0 if extra is None or extra.linked is None else len(extra.linked)
    return linked + (node.parent is not None)


def _forget_if_single(node: Node, volume: Volume) -> None:
    """To a node whose names are all met no other name can lead any more, once it has at most one."""
    if node.nlink <= 1:
        volume.linked.pop(node.ino, None)
