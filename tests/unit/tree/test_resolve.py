"""Path resolution: every vector and fact of the output service's rules, and the lexical rules around them."""

from __future__ import annotations

import pytest

from outputd.digest import Digest, DigestFunction
from outputd.errors import Invalid
from outputd.tree.node import (
    DIRECTORY_MODE,
    FILE_MODE,
    Directory,
    File,
    Node,
    Special,
    Symlink,
    Volume,
)
from outputd.tree.resolve import (
    MAX_LINKS_FOLLOWED,
    Kind,
    Resolution,
    Resolver,
    VirtualRoot,
    creating_path,
    resolve,
)
from outputd.tree.status import NotLoaded
from outputd.tree.tree import Tree

PREFIX = "/home/ed/mnt/outputs"
SUFFIX = "9da951b8cb759233037166e28f7ea186"
ROOT = f"{PREFIX}/{SUFFIX}"
EXECROOT = "/home/ed/.cache/bazel/x/execroot/ws"
VIEW = VirtualRoot(PREFIX, SUFFIX, {f"{EXECROOT}/bazel-out": "."})

EMPTY = Digest.of(DigestFunction.SHA256, b"")

LAYOUT: dict[str, str | None] = {
    # Path to symlink target, "" for a file, None for a directory.
    "file": "",
    "target": "",
    "directory": None,
    "hello/x": "",
    "nested/rel_file": "../target",
    "nested/rel_dir": "..",
    "nested/abs": f"{ROOT}/hello",
    "nested/alias": f"{EXECROOT}/bazel-out/hello",
    "nested/ext": "/etc/passwd",
    "nested/deep/up": "../../../out/of/here",
    "nested/dangling": "nowhere",
    "nested/self": "self",
    "nested/slashed_dir": "../hello/",
    "nested/slashed_file": "../file/",
    "nested/abs_up": f"{ROOT}/../elsewhere",
    "nested/prefix": "/home/ed/mnt",
    "nested/dotty": ".//./../hello//./x",
    "nested/here": ".",
    "fifo": "|",
}


def build(layout: dict[str, str | None]) -> tuple[Tree, Volume]:
    tree = Tree(uid=0, gid=0, now=1)
    volume = tree.add_volume(1, b"base", 1)
    for path, target in layout.items():
        steps, name = creating_path(path)
        directory = volume.root
        for step in steps:
            directory = tree.descend(directory, step, 1)
        node: Node
        if target is None:
            node = Directory(DIRECTORY_MODE, 1, volume)
        elif target == "|":
            node = Special(0o010644, 1, 0)
        elif target:
            node = Symlink(target.encode(), 1)
        else:
            node = File(FILE_MODE, 1, EMPTY)
        tree.place(directory, name, node, 1)
    return tree, volume


def at(volume: Volume, path: str) -> Node:
    node: Node = volume.root
    for name in filter(None, path.split("/")):
        assert isinstance(node, Directory) and node.children is not None
        child = node.children[name.encode()]
        assert isinstance(child, Node)
        node = child
    return node


def ask(volume: Volume, path: str | bytes, *, follow: bool, view: VirtualRoot = VIEW) -> Resolution:
    """What both implementations say, which must be the same."""
    general = resolve(volume.root, view, path, follow_final=follow)
    assert Resolver(volume.root, view, follow_final=follow).resolve(path) == general
    return general


A, F, D, L, S = Kind.ABSENT, Kind.FILE, Kind.DIRECTORY, Kind.SYMLINK, Kind.SPECIAL
N, LOOP, OUT = Kind.NOT_DIRECTORY, Kind.LOOP, Kind.EXTERNAL

# Path; result when a final symlink is followed; result when it is not. What stands beside a kind is the path of the node in the
# output path, or for EXTERNAL the path that the client would go on with.
VECTORS: list[tuple[str, tuple[Kind, str], tuple[Kind, str]]] = [
    # The conformance vectors of the output service.
    ("file", (F, "file"), (F, "file")),
    ("directory", (D, "directory"), (D, "directory")),
    ("nested/rel_file", (F, "target"), (L, "nested/rel_file")),
    ("nested/rel_file/", (N, ""), (N, "")),
    ("nested/rel_dir", (D, ""), (L, "nested/rel_dir")),
    ("nested/rel_dir/file", (F, "file"), (F, "file")),
    ("nested/abs", (D, "hello"), (L, "nested/abs")),
    ("nested/alias/x", (F, "hello/x"), (F, "hello/x")),
    ("nested/ext", (OUT, "/etc/passwd"), (L, "nested/ext")),
    ("nested/ext/y", (OUT, "/etc/passwd/y"), (OUT, "/etc/passwd/y")),
    ("../foo", (OUT, "../foo"), (OUT, "../foo")),
    ("/etc/passwd", (OUT, "/etc/passwd"), (OUT, "/etc/passwd")),
    ("nonexistent", (A, ""), (A, "")),
    ("nonexistent/x", (A, ""), (A, "")),
    ("file/x", (N, ""), (N, "")),
    (".", (D, ""), (D, "")),
    ("", (D, ""), (D, "")),
    # Lexical rules: runs of slashes and `.` mean nothing, a trailing slash means "a directory".
    ("//file", (OUT, "/file"), (OUT, "/file")),
    ("hello//x", (F, "hello/x"), (F, "hello/x")),
    ("./hello/././x", (F, "hello/x"), (F, "hello/x")),
    ("hello/", (D, "hello"), (D, "hello")),
    ("hello/.", (D, "hello"), (D, "hello")),
    ("file/", (N, ""), (N, "")),
    ("file/.", (N, ""), (N, "")),
    ("file/..", (N, ""), (N, "")),
    ("fifo", (S, "fifo"), (S, "fifo")),
    ("fifo/", (N, ""), (N, "")),
    ("FILE", (A, ""), (A, "")),
    ("hello%2Fx", (A, ""), (A, "")),
    ("missing/", (A, ""), (A, "")),
    ("missing/..", (A, ""), (A, "")),
    # `..` is physical: it leaves the directory that a symlink led to.
    ("nested/..", (D, ""), (D, "")),
    ("nested/../file", (F, "file"), (F, "file")),
    ("nested/abs/../target", (F, "target"), (F, "target")),
    ("nested/abs/../nested/abs/x", (F, "hello/x"), (F, "hello/x")),
    ("nested/rel_dir/..", (OUT, ".."), (OUT, "..")),
    # A trailing slash follows a final symlink in any case.
    ("nested/rel_dir/", (D, ""), (D, "")),
    ("nested/abs/", (D, "hello"), (D, "hello")),
    ("nested/here/", (D, "nested"), (D, "nested")),
    ("nested/here", (D, "nested"), (L, "nested/here")),
    ("nested/slashed_dir", (D, "hello"), (L, "nested/slashed_dir")),
    ("nested/slashed_dir/x", (F, "hello/x"), (F, "hello/x")),
    ("nested/slashed_file", (N, ""), (L, "nested/slashed_file")),
    ("nested/dotty", (F, "hello/x"), (L, "nested/dotty")),
    # Dangling and looping links.
    ("nested/dangling", (A, ""), (L, "nested/dangling")),
    ("nested/dangling/", (A, ""), (A, "")),
    ("nested/self", (LOOP, ""), (L, "nested/self")),
    ("nested/self/x", (LOOP, ""), (LOOP, "")),
    # The root is no chroot: `..` leaves it, and what left does not come back.
    ("..", (OUT, ".."), (OUT, "..")),
    ("../", (OUT, ".."), (OUT, "..")),
    (f"../{SUFFIX}/file", (OUT, f"../{SUFFIX}/file"), (OUT, f"../{SUFFIX}/file")),
    ("hello/../../foo", (OUT, "../foo"), (OUT, "../foo")),
    ("../a/../b//./c/", (OUT, "../a/../b/c/"), (OUT, "../a/../b/c/")),
    ("nested/deep/up", (OUT, "../out/of/here"), (L, "nested/deep/up")),
    ("nested/deep/up/and/on", (OUT, "../out/of/here/and/on"), (OUT, "../out/of/here/and/on")),
    ("nested/ext/", (OUT, "/etc/passwd/"), (OUT, "/etc/passwd/")),
    ("nested/abs/../../foo", (OUT, f"{ROOT}/../foo"), (OUT, f"{ROOT}/../foo")),
    ("nested/abs_up/x", (OUT, f"{ROOT}/../elsewhere/x"), (OUT, f"{ROOT}/../elsewhere/x")),
    ("nested/prefix/outputs", (OUT, "/home/ed/mnt/outputs"), (OUT, "/home/ed/mnt/outputs")),
    # A target is walked on with what followed the link: this one comes back in.
    (f"nested/prefix/outputs/{SUFFIX}/file", (F, "file"), (F, "file")),
    # Absolute requests go through the client's name space.
    (ROOT, (D, ""), (D, "")),
    (f"{ROOT}/", (D, ""), (D, "")),
    (f"{ROOT}/hello/x", (F, "hello/x"), (F, "hello/x")),
    (f"{ROOT}/nested/rel_file", (F, "target"), (L, "nested/rel_file")),
    (f"//home/./ed//mnt/outputs/{SUFFIX}/file", (F, "file"), (F, "file")),
    (f"{EXECROOT}/bazel-out", (D, ""), (D, "")),
    (f"{EXECROOT}/bazel-out/", (D, ""), (D, "")),
    (f"{EXECROOT}/bazel-out/file", (F, "file"), (F, "file")),
    (f"{EXECROOT}/bazel-out/..", (OUT, f"{ROOT}/.."), (OUT, f"{ROOT}/..")),
    ("/", (OUT, "/"), (OUT, "/")),
    ("/home", (OUT, "/home"), (OUT, "/home")),
    ("/home/", (OUT, "/home/"), (OUT, "/home/")),
    (PREFIX, (OUT, PREFIX), (OUT, PREFIX)),
    (f"{PREFIX}/other/x", (OUT, f"{PREFIX}/other/x"), (OUT, f"{PREFIX}/other/x")),
    (f"{EXECROOT}/external", (OUT, f"{EXECROOT}/external"), (OUT, f"{EXECROOT}/external")),
    # An outside directory may be a symlink, so that `..` behind it cannot be resolved here.
    (f"/home/../home/ed/mnt/outputs/{SUFFIX}/file",)
    + ((OUT, f"/home/../home/ed/mnt/outputs/{SUFFIX}/file"),) * 2,
    (f"{ROOT}/../{SUFFIX}/file",) + ((OUT, f"{ROOT}/../{SUFFIX}/file"),) * 2,
]


@pytest.mark.parametrize(
    ("path", "followed", "not_followed"), VECTORS, ids=[v[0] or "empty" for v in VECTORS]
)
def test_vector(path: str, followed: tuple[Kind, str], not_followed: tuple[Kind, str]) -> None:
    _, volume = build(LAYOUT)
    for follow, (kind, where) in ((True, followed), (False, not_followed)):
        result = ask(volume, path, follow=follow)
        assert result.kind is kind
        assert result.next_path == (where.encode() if kind is OUT else b"")
        if kind in (F, D, L, S):
            assert result.node is at(volume, where)
        else:
            assert result.node is None


def test_bytes_and_str_paths_are_the_same() -> None:
    _, volume = build({"größe/x": ""})
    assert ask(volume, "größe/x", follow=False) == ask(volume, "größe/x".encode(), follow=False)
    assert ask(volume, "größe/x", follow=False).kind is F


def test_a_target_that_is_no_utf8_is_walked_byte_for_byte() -> None:
    tree, volume = build({})
    tree.create(volume.root, b"link", Symlink(b"/\xff/..", 1), uid=0, gid=0, now=1)
    assert ask(volume, "link/y", follow=False).next_path == b"/\xff/../y"


def chain(length: int) -> Volume:
    return build({"link0": "", **{f"link{i}": f"link{i - 1}" for i in range(1, length + 1)}})[1]


def test_forty_links_are_followed_and_one_more_is_a_loop() -> None:
    volume = chain(MAX_LINKS_FOLLOWED + 1)
    assert MAX_LINKS_FOLLOWED == 40
    assert ask(volume, "link40", follow=True).kind is F
    assert ask(volume, "link41", follow=True).kind is LOOP
    assert ask(volume, "link41", follow=False).kind is L


def test_links_are_counted_over_the_whole_path() -> None:
    volume = build({"d/up": "..", "d/f": ""})[1]
    assert ask(volume, "d/up/" * 40 + "d/f", follow=True).kind is F
    assert ask(volume, "d/up/" * 41 + "d/f", follow=True).kind is LOOP


def test_an_alias_counts_as_a_link() -> None:
    volume = build({"back": f"{EXECROOT}/bazel-out/back"})[1]
    assert ask(volume, "back", follow=True).kind is LOOP
    to_alias: dict[str, str | None] = {
        "link0": f"{EXECROOT}/bazel-out",
        **{f"link{i}": f"link{i - 1}" for i in range(1, 41)},
    }
    volume = build(to_alias)[1]
    assert ask(volume, "link38", follow=True).kind is D  # 38 links to link0, link0, the alias: 40
    assert ask(volume, "link39", follow=True).kind is LOOP
    volume = chain(40)
    assert ask(volume, f"{EXECROOT}/bazel-out/link39", follow=True).kind is F
    assert ask(volume, f"{EXECROOT}/bazel-out/link40", follow=True).kind is LOOP


def test_an_alias_may_point_below_the_root_or_out_of_it() -> None:
    view = VirtualRoot(PREFIX, SUFFIX, {"/a/hello": "hello", "/a/up": "../sibling/", "/b": "nested/rel_file"})
    volume = build(LAYOUT)[1]
    assert ask(volume, "/a/hello/x", follow=False, view=view).node is at(volume, "hello/x")
    assert ask(volume, "/a/up", follow=False, view=view).next_path == f"{ROOT}/../sibling/".encode()
    assert ask(volume, "/b", follow=True, view=view).node is at(volume, "target")
    assert ask(volume, "/b", follow=False, view=view).node is at(volume, "nested/rel_file")


def test_the_output_path_may_be_the_root_of_the_name_space() -> None:
    view = VirtualRoot("/", ".", {})
    volume = build(LAYOUT)[1]
    assert ask(volume, "/hello/x", follow=False, view=view).node is at(volume, "hello/x")
    assert ask(volume, "/", follow=False, view=view).node is volume.root
    assert ask(volume, "/../x", follow=False, view=view).next_path == b"/../x"
    assert ask(volume, "../x", follow=False, view=view).next_path == b"../x"
    with pytest.raises(Invalid, match="at, above or below"):
        VirtualRoot("/", "", {"/x": "."})


def test_a_suffix_may_have_several_components() -> None:
    view = VirtualRoot("/mnt/", "outputs//base/", {})
    volume = build(LAYOUT)[1]
    assert view.components == (b"mnt", b"outputs", b"base")
    assert ask(volume, "/mnt/outputs/base/file", follow=False, view=view).kind is F


@pytest.mark.parametrize(
    ("prefix", "aliases", "message"),
    [
        ("", {}, "output_path_prefix '': expected an absolute path"),
        ("mnt", {}, "output_path_prefix 'mnt': expected an absolute path"),
        ("/a/../b", {}, "output_path_prefix '/a/../b': expected a path without '..'"),
        ("/a\0", {}, r"output_path_prefix '/a\x00': contains a NUL byte"),
        ("/\ud800", {}, r"output_path_prefix '/\ud800': expected UTF-8"),
        ("/p", {"rel": "."}, "output_path_aliases['rel'] 'rel': expected an absolute path"),
        ("/p", {"": "."}, "output_path_aliases[''] '': expected an absolute path"),
        ("/p", {"/": "."}, "output_path_aliases['/']: expected a path that ends in a name"),
        ("/p", {"/x/": "."}, "output_path_aliases['/x/']: expected a path that ends in a name"),
        ("/p", {"/x/.": "."}, "output_path_aliases['/x/.']: expected a path that ends in a name"),
        ("/p", {"/x/..": "."}, "output_path_aliases['/x/..'] '/x/..': expected a path without '..'"),
        ("/p", {"/x/../y": "."}, "expected a path without '..'"),
        (
            "/p",
            {"/x": "/y"},
            "output_path_aliases['/x']: its value '/y' is absolute, expected a relative path",
        ),
        ("/p", {"/x": "y\0"}, r"the value of output_path_aliases['/x'] 'y\x00': contains a NUL byte"),
        ("/p", {"/p/s": "."}, "output_path_aliases['/p/s']: '/p/s' lies at, above or below"),
        ("/p", {"/p/s/x": "."}, "lies at, above or below"),
        ("/p", {"/p": "."}, "lies at, above or below"),
        ("/p", {"/x": ".", "/x/y": "."}, "output_path_aliases['/x/y']: '/x/y' lies at, above or below"),
        ("/p", {"/x/y": ".", "/x": "."}, "output_path_aliases['/x']: '/x' lies at, above or below"),
        ("/p", {"/x/y": ".", "/x//y": "."}, "output_path_aliases['/x//y']: '/x//y' lies at, above or below"),
    ],
)
def test_a_name_space_that_makes_no_sense_is_refused(
    prefix: str, aliases: dict[str, str], message: str
) -> None:
    with pytest.raises(Invalid) as caught:
        VirtualRoot(prefix, "s", aliases)
    assert message in str(caught.value)


@pytest.mark.parametrize("suffix", ["/s", "a/../b", "..", "a\0"])
def test_a_suffix_that_makes_no_sense_is_refused(suffix: str) -> None:
    with pytest.raises(Invalid, match="output_path_suffix"):
        VirtualRoot("/p", suffix, {})


def test_aliases_beside_each_other_and_inside_the_prefix() -> None:
    view = VirtualRoot("/p", "s", {"/p/alias": "hello", "/p/other/deep": "."})
    volume = build(LAYOUT)[1]
    assert ask(volume, "/p/alias/x", follow=False, view=view).kind is F
    assert ask(volume, "/p/other/deep/file", follow=False, view=view).kind is F
    assert ask(volume, "/p/other", follow=False, view=view).kind is OUT


@pytest.mark.parametrize("path", ["a\0b", "hello/\0", "\0", b"\0", "hello\0/x", "/etc\0"])
def test_a_nul_is_invalid(path: str | bytes) -> None:
    volume = build(LAYOUT)[1]
    with pytest.raises(Invalid, match="NUL"):
        resolve(volume.root, VIEW, path, follow_final=False)
    with pytest.raises(Invalid, match="NUL"):
        Resolver(volume.root, VIEW).resolve(path)
    with pytest.raises(Invalid, match="NUL"):
        creating_path(path)


def test_a_lone_surrogate_is_invalid() -> None:
    volume = build(LAYOUT)[1]
    with pytest.raises(Invalid, match="expected UTF-8"):
        resolve(volume.root, VIEW, "\ud800", follow_final=False)


def test_the_error_names_no_more_than_a_piece_of_a_huge_path() -> None:
    with pytest.raises(Invalid) as caught:
        creating_path("x" * 100_000)
    assert len(str(caught.value)) < 500


# collapsed directories


def collapse(directory: Directory) -> None:
    directory.children = None
    directory.digest = EMPTY


@pytest.mark.parametrize(
    ("path", "needs"),
    [
        ("hello/x", "hello"),
        ("hello/missing/deep", "hello"),
        ("nested/abs/x", "hello"),
        ("hello", None),
        ("hello/", None),
        ("hello/.", None),
        ("hello/../file", None),
        ("hello/../../x", None),
        (f"{ROOT}/hello/x", "hello"),
    ],
)
def test_only_a_directory_that_must_be_looked_into_is_loaded(path: str, needs: str | None) -> None:
    volume = build(LAYOUT)[1]
    hello = at(volume, "hello")
    assert isinstance(hello, Directory)
    collapse(hello)
    if needs is None:
        ask(volume, path, follow=False)
        return
    for attempt in (resolve, lambda *a, **k: Resolver(a[0], a[1], **k).resolve(a[2])):
        with pytest.raises(NotLoaded) as caught:
            attempt(volume.root, VIEW, path, follow_final=False)
        assert caught.value.directory is at(volume, needs)
    assert hello.children is None


def test_a_path_outside_does_not_load_the_root() -> None:
    volume = build({})[1]
    collapse(volume.root)
    for path, kind in (("/etc", OUT), ("../x", OUT), ("", D), (".", D), (ROOT, D)):
        assert ask(volume, path, follow=True).kind is kind
    with pytest.raises(NotLoaded):
        resolve(volume.root, VIEW, "x", follow_final=True)
    with pytest.raises(NotLoaded):
        Resolver(volume.root, VIEW).resolve("x")
    with pytest.raises(NotLoaded):
        Resolver(volume.root, VIEW).resolve("x/y")


# one resolver for many paths


def test_a_resolver_sees_what_changes_between_two_paths() -> None:
    tree, volume = build({"a/b/old": "", "other": None})
    resolver = Resolver(volume.root, VIEW)
    assert resolver.resolve("a/b/old").kind is F
    directory = at(volume, "a")
    assert isinstance(directory, Directory)
    fresh = Directory(DIRECTORY_MODE, 2, volume)
    tree.place(directory, b"b", fresh, 2)
    tree.place(fresh, b"new", File(FILE_MODE, 2, EMPTY), 2)
    assert resolver.resolve("a/b/new").kind is F
    assert resolver.resolve("a/b/old").kind is A
    tree.place(volume.root, b"a", Symlink(b"other", 3), 3)
    assert resolver.resolve("a/b/new").kind is A
    tree.clear(volume.root, 4)
    assert resolver.resolve("other").kind is A


def test_a_resolver_does_not_walk_again_to_a_directory_it_came_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    volume = build({f"a/b/f{i}": "" for i in range(10)})[1]
    walks: list[bytes] = []
    walk = Resolver._enter

    def counted(self: Resolver, parent: bytes) -> Directory | None:
        walks.append(parent)
        return walk(self, parent)

    monkeypatch.setattr(Resolver, "_enter", counted)
    resolver = Resolver(volume.root, VIEW)
    for i in range(10):
        assert resolver.resolve(f"a/b/f{i}").kind is F
    assert walks == [b"a/b/"]


# paths to be created


@pytest.mark.parametrize(
    ("path", "steps", "name"),
    [
        ("x", (), b"x"),
        ("a/b/x", (b"a", b"b"), b"x"),
        ("a//./b/x", (b"a", b"b"), b"x"),
        ("./x", (), b"x"),
        ("a/../x", (b"a", b".."), b"x"),
        ("a/b/../../c/x", (b"a", b"b", b"..", b"..", b"c"), b"x"),
        ("größe/x", ("größe".encode(),), b"x"),
        ("...", (), b"..."),
        ("n" * 255, (), b"n" * 255),
        (("d" * 200 + "/") * 3 + "x", (b"d" * 200,) * 3, b"x"),
        (b"\xff/x", (b"\xff",), b"x"),
    ],
)
def test_creating_path(path: str | bytes, steps: tuple[bytes, ...], name: bytes) -> None:
    assert creating_path(path) == (steps, name)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "resolves to a directory"),
        (".", "resolves to a directory"),
        ("a/", "resolves to a directory"),
        ("a/.", "resolves to a directory"),
        ("a/..", "resolves to a directory"),
        ("a/b/..", "resolves to a directory"),
        ("/", "is absolute"),
        ("/a", "is absolute"),
        ("//a", "is absolute"),
        ("..", "climbs above"),
        ("../a", "climbs above"),
        ("a/../../b", "climbs above"),
        ("a/../..", "climbs above"),
        ("../", "climbs above"),
        ("n" * 256, "longer than 255 bytes"),
        ("ü" * 128, "longer than 255 bytes"),
        ("n" * 256 + "/x", "longer than 255 bytes"),
        ("\udfff", "expected UTF-8"),
    ],
)
def test_creating_path_refuses(path: str, message: str) -> None:
    with pytest.raises(Invalid, match=message):
        creating_path(path)
