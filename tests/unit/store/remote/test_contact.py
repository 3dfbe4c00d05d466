"""When a server is given up, put on trial, and taken back."""

from __future__ import annotations

import logging

import pytest

from outputd.errors import Unreachable
from outputd.store.remote.contact import Contact, Standing

URL = "grpc://cache:80"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class World:
    def __init__(self, patience: float = 30.0, *, breaks: bool = True) -> None:
        self.clock = Clock()
        self.contact = Contact(URL, patience, self.clock)
        self.contact.breaks = breaks

    def standing(self) -> Standing:
        return self.contact.standing

    def give_up(self) -> None:
        self.fail()
        self.fail()
        self.contact.probed(answered=False)

    def fail(self, took: float = 0.0, pause: float = 0.0) -> Standing:
        """One call more that got no answer."""
        self.clock.now += pause
        began = self.clock.now
        self.clock.now += took
        self.contact.unanswered("no answer", began)
        return self.contact.standing


def test_a_short_outage_is_ridden_out() -> None:
    world = World()
    for _ in range(29):
        assert world.fail(pause=1) is Standing.SERVING
    world.contact.answered()
    for _ in range(30):
        assert world.fail(pause=1) is Standing.SERVING, "it counts anew after an answer"


def test_a_long_one_ends_the_calls(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.fail()
    assert world.fail(pause=30) is Standing.SUSPECTED
    assert world.fail(pause=1) is Standing.SUSPECTED
    assert world.contact.refusal() is None, "a probe decides"
    assert not caplog.records
    world.contact.probed(answered=False)
    assert world.standing() is Standing.GIVEN_UP
    refusal = world.contact.refusal()
    assert isinstance(refusal, Unreachable)
    assert URL in str(refusal)
    assert "no answer" in str(refusal)
    world.fail(pause=1)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert world.contact.unanswered_since is not None


def test_calls_that_hang_count_from_their_beginning() -> None:
    world = World()
    assert world.fail(took=30) is Standing.SERVING, "one may be a blob that the server chokes on"
    assert world.fail(took=30) is Standing.SUSPECTED


def test_a_probe_that_is_answered_gives_calls_their_time_once_more() -> None:
    world = World()
    world.fail()
    assert world.fail(pause=30) is Standing.SUSPECTED
    world.contact.probed(answered=True)
    assert world.standing() is Standing.SERVING
    assert world.fail(pause=1) is Standing.SERVING
    assert world.fail(pause=29) is Standing.SERVING
    assert world.fail(pause=1) is Standing.GIVEN_UP, "it answers probes and nothing else"


def test_an_answer_lifts_a_suspicion(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    world = World(0)
    world.fail()
    assert world.fail() is Standing.SUSPECTED
    world.contact.answered()
    assert world.standing() is Standing.SERVING
    assert not caplog.records


def test_failures_far_apart_are_no_outage() -> None:
    world = World()
    for _ in range(10):
        assert world.fail(pause=3600) is Standing.SERVING


def test_nothing_is_given_up_that_nobody_probes() -> None:
    world = World(breaks=False)
    for _ in range(100):
        assert world.fail(pause=1) is Standing.SERVING


@pytest.mark.parametrize("what", ["answered", "refused"])
def test_any_answer_ends_an_outage(what: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    world = World(0)
    world.give_up()
    world.contact.probed(answered=True)
    assert world.standing() is Standing.ON_TRIAL
    assert world.contact.refusal() is None
    world.clock.now += 60
    if what == "answered":
        world.contact.answered()
    else:
        world.contact.refused("who are you")
    assert world.standing() is Standing.SERVING
    assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.INFO]
    assert "answers again, after 60 s" in caplog.messages[-1]
    assert world.contact.reached is (what == "answered")


def test_a_trial_ends_with_the_first_failure_and_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    world = World(0)
    world.give_up()
    since = world.contact.unanswered_since
    world.contact.probed(answered=True)
    assert world.fail(pause=1) is Standing.GIVEN_UP
    assert len(caplog.records) == 1
    assert world.contact.unanswered_since == since
    world.contact.probed(answered=True)
    assert world.standing() is Standing.ON_TRIAL
