"""Profiles as data and as text: paths of any bytes, runs of large files, texts that are wrong or were cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outputd.drive.profile import (
    LARGE,
    MOST_FILES,
    WHOLE,
    Part,
    Profile,
    Spans,
    Wish,
    check_name,
    decode,
    encode,
    line_of,
    salvage,
)
from outputd.errors import Invalid

KIB = 1 << 10
MIB = 1 << 20
SIZE = 100 * MIB

NAMES = st.binary(min_size=1, max_size=8).filter(
    lambda name: name not in (b".", b"..") and not set(name) & set(b"/\0")
)
PATHS = st.lists(NAMES, min_size=1, max_size=4).map(b"/".join)
RUNS = st.lists(st.integers(0, SIZE), min_size=2, max_size=40, unique=True).map(
    lambda ends: tuple(zip(sorted(ends)[::2], sorted(ends)[1::2], strict=False))
)
PARTS = st.one_of(st.just(WHOLE), RUNS.map(lambda runs: Part(SIZE, runs)))
PROFILES = st.builds(
    Profile,
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), max_size=10),
    st.integers(0, 4_000_000_000),
    st.booleans(),
    st.dictionaries(PATHS, PARTS, max_size=10),
)


@given(PROFILES)
def test_what_is_written_is_read(profile: Profile) -> None:
    text = encode(profile)
    found = decode(text, "p")
    assert found == profile
    assert list(found.files) == list(profile.files)
    assert decode(text.replace(b"\n", b"\r\n"), "p") == profile
    text.decode()


@given(PROFILES, st.data())
def test_of_a_text_that_was_cut_whole_lines_are_saved(profile: Profile, data: st.DataObject) -> None:
    text = encode(profile)
    head = text.index(b"\n\n") + 2
    cut = data.draw(st.integers(head, len(text)))
    found, good = salvage(text[:cut], "p")
    assert encode(found) == text[:good]
    assert text[good:cut].count(b"\n") == 0


def test_what_follows_a_spoilt_line_is_not_saved() -> None:
    text = b"outputd-profile: 1\n\na\nb\n\0\0\0\nc\n"
    assert salvage(text, "p") == (
        Profile(files={b"a": WHOLE, b"b": WHOLE}),
        len(b"outputd-profile: 1\n\na\nb\n"),
    )


def test_the_text_is_for_people() -> None:
    profile = Profile(
        "9da9", 1_800_000_000, False, {"k8/bin/äpp".encode(): Part(SIZE, ((0, 65536), (131072, SIZE)))}
    )
    profile.files[b"#odd\n%\xff "] = WHOLE
    assert encode(profile).decode() == (
        "outputd-profile: 1\noutput-base: 9da9\nrecorded: 2027-01-15T08:00:00Z\ncomplete: no\n\n"
        f"k8/bin/äpp\t{SIZE} 0+65536,131072+{SIZE - 131072}\n"
        "%23odd%0A%25%FF%20\n"
    )


def test_what_it_does_not_need_it_passes_over() -> None:
    text = b"outputd-profile: 1\nnew-key: value\n\n# why\na b\n\n#\nc"
    assert list(decode(text, "p").files) == [b"a b", b"c"]


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        (b"", "p: is no profile"),
        (b"a\nb\n", "p: is no profile"),
        (b"outputd-profile: 2\n\n", "p: is no profile"),
        (b"outputd-profile: 1\nrecorded: 2027-01-15T08:00:00Z", "p: ends within its head"),
        (b"outputd-profile: 1\nrecorded: today\n\n", "p:2: "),
        (b"outputd-profile: 1\n\na\n../b\n", "p:4: ../b: is no path"),
        (b"outputd-profile: 1\n\n/etc/passwd\n", "p:3: /etc/passwd: is no path"),
        (b"outputd-profile: 1\n\na//b\n", "p:3: "),
        (b"outputd-profile: 1\n\na%00b\n", "p:3: "),
        (b"outputd-profile: 1\n\n100%\n", "p:3: .*%25"),
        (b"outputd-profile: 1\n\na\tmuch\n", "p:3: "),
        (b"outputd-profile: 1\n\na\t10 0+11\n", "p:3: .*within"),
        (b"outputd-profile: 1\n\na\t10 5+2,0+2\n", "p:3: .*ascending"),
        (b"outputd-profile: 1\n\na\t10 0+0\n", "p:3: "),
        (
            b"outputd-profile: 1\n\n" + b"".join(b"%d\n" % n for n in range(MOST_FILES + 1)),
            f"more than {MOST_FILES}",
        ),
    ],
    ids=range(15),
)
def test_what_is_wrong_is_said_with_its_line(text: bytes, wrong: str) -> None:
    with pytest.raises(Invalid, match=wrong):
        decode(text, "p")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", ".hidden", "-x", "a b", "ä", "a" * 101, "a\n"])
def test_names_are_those_of_files(name: str) -> None:
    with pytest.raises(Invalid):
        check_name(name)


def test_wishes() -> None:
    assert Wish.of("a") == ("a", "*") and str(Wish.of("a")) == "a"
    assert Wish.of("a.b@ci-*") == ("a.b", "ci-*") and str(Wish.of("a.b@ci-*")) == "a.b@ci-*"


class TestSpans:
    def test_what_is_near_is_one_run(self) -> None:
        spans = Spans(SIZE)
        assert spans.add(5 * MIB + 10, 100)
        assert not spans.add(5 * MIB, 65536)
        assert spans.part == Part(SIZE, ((5 * MIB, 5 * MIB + 64 * KIB),))
        assert spans.add(5 * MIB + 300 * KIB, 1)  # near enough
        assert spans.add(50 * MIB, 1)
        assert spans.part == Part(SIZE, ((5 * MIB, 5 * MIB + 320 * KIB), (50 * MIB, 50 * MIB + 64 * KIB)))

    def test_nothing_lies_behind_the_end(self) -> None:
        spans = Spans(LARGE + 5)
        assert spans.add(LARGE, 100_000)
        assert not spans.add(2 * LARGE, 5)
        assert spans.part.runs == ((LARGE, LARGE + 5),)

    def test_what_is_read_from_beginning_to_end_is_whole(self) -> None:
        spans = Spans(SIZE)
        for offset in range(0, SIZE, 128 * KIB):
            spans.add(offset, 128 * KIB)
        assert spans.part == WHOLE

    @given(st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(1, MIB)), max_size=200))
    def test_all_that_was_read_is_covered_by_few_runs(self, reads: list[tuple[int, int]]) -> None:
        spans = Spans(SIZE)
        for offset, length in reads:
            spans.add(offset, length)
            assert not spans.add(offset, length)
        runs = spans._runs
        assert len(runs) <= 64
        assert all(before[1] < after[0] for before, after in pairwise(runs))
        for offset, length in reads:
            assert any(start <= offset and min(offset + length, SIZE) <= end for start, end in runs)


class TestOfAnotherSize:
    def test_the_second_half_is_counted_from_the_end(self) -> None:
        part = Part(100, ((0, 10), (90, 100)))
        assert part.of(100) == part.runs
        assert part.of(200) == ((0, 10), (190, 200))
        assert part.of(50) == ((0, 10), (40, 50))

    def test_a_run_that_reaches_both_ends_still_does(self) -> None:
        assert Part(100, ((10, 100),)).of(300) == ((10, 300),)
        assert WHOLE.of(5) == ()

    @given(RUNS, st.integers(1, 2 * SIZE))
    def test_runs_stay_runs(self, runs: tuple[tuple[int, int], ...], size: int) -> None:
        moved = Part(SIZE, runs).of(size)
        assert moved
        assert moved[0][0] >= 0 and moved[-1][1] <= size
        assert all(start < end for start, end in moved)
        assert all(before[1] <= after[0] for before, after in pairwise(moved))


def test_a_line_for_one_file() -> None:
    assert line_of(b"a", WHOLE) == b"a\n"
