"""How many calls a server gets, on simulated servers with a clock of their own."""

from __future__ import annotations

import heapq

from outputd.store.remote.window import Window


class Simulated:
    """A server that takes so many calls at a time, each for a second, and pushes back at once beyond. There is always work."""

    def __init__(self, capacity: int, most: int = 64) -> None:
        self.now = 0.0
        self.capacity = capacity
        self.window = Window(most, lambda: self.now)
        self.served = self.refused = 0
        self._ends: list[tuple[float, float, bool]] = []

    def run(self, until: float) -> None:
        while self.now < until:
            while len(self._ends) < self.window.size:
                taken = sum(well for _, _, well in self._ends) < self.capacity
                heapq.heappush(self._ends, (self.now + (1.0 if taken else 0.1), self.now, taken))
            self.now, began, well = heapq.heappop(self._ends)
            if well:
                self.served += 1
                self.window.served()
            else:
                self.refused += 1
                self.window.pushed_back(began)


def test_a_server_that_takes_everything_is_filled_in_three_rounds() -> None:
    server = Simulated(capacity=1000)
    server.run(3.5)
    assert server.window.size == 64


def test_a_busy_server_is_kept_busy_and_hardly_ever_refuses() -> None:
    server = Simulated(capacity=20)
    server.run(60)
    assert 10 <= server.window.size <= 21
    assert server.served > 0.6 * 20 * 60
    assert server.refused < server.served / 20


def test_one_that_takes_one_call_at_a_time_gets_little_more() -> None:
    server = Simulated(capacity=1)
    server.run(30)
    before = server.refused
    server.run(60)
    assert server.window.size <= 2
    assert server.served > 0.4 * 60
    assert server.refused - before < 60


def test_a_server_that_recovers_is_filled_again() -> None:
    server = Simulated(capacity=1)
    server.run(20)
    server.capacity = 1000
    server.run(90)
    assert server.window.size == 64


def test_answers_to_calls_that_were_under_way_narrow_it_once() -> None:
    now = 1.0
    window = Window(64, lambda: now)
    for _ in range(10):
        window.pushed_back(0.5)
    assert window.size == 8


def test_never_beyond_the_bound_nor_below_one() -> None:
    window = Window(2, lambda: 0.0)
    assert window.size == 2
    window.served()
    assert window.size == 2
    for began in range(10):
        window.pushed_back(began)
    assert window.size == 1
