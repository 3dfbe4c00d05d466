"""outputd.drive.feed: everybody hears what he asked for, and who is slow learns what he lost."""

from __future__ import annotations

import asyncio

from outputd.drive.feed import _MOST, Feed


def test_events_of_one_output_base() -> None:
    async def main() -> None:
        feed = Feed()
        feed.tell("staged", "b1")  # nobody listens
        with feed.watching("b1") as one, feed.watching("") as everything:
            feed.tell("staged", "b2", path=b"x", size=3)
            feed.finalized("b1", "build")
            assert (await one.next())[:3] == ("build finalized", "b1", "build")
            assert (await everything.next())[:5] == ("staged", "b2", "", b"x", 3)
            assert (await everything.next()).name == "build finalized"
        assert not feed.watched

    asyncio.run(main())


def test_a_slow_reader_loses_the_oldest_with_a_count() -> None:
    async def main() -> None:
        feed = Feed()
        with feed.watching("") as slow:
            for number in range(_MOST + 5):
                feed.tell("staged", "b", size=number)
            lost = await slow.next()
            assert (lost.name, lost.lost) == ("lost", 5)
            assert (await slow.next()).size == 5
            for _ in range(_MOST - 1):
                last = await slow.next()
            assert last.size == _MOST + 4

    asyncio.run(main())


def test_the_daemon_hears_of_every_end() -> None:
    feed = Feed()
    heard: list[str] = []
    feed.ended.append(heard.append)
    feed.finalized("b1", "build")
    assert heard == ["b1"]
