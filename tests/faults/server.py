"""A REv2 server that fails by plan, and a network that fails with it: faults are data, drawn by a seed. Judges nothing.

`Plan` says what befalls each call, `weather` what befalls the connection. The server itself is the one of the unit tests.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import grpc

from tests.relay import Relay
from tests.unit.store.fake_remote import Fault

Code = grpc.StatusCode
NONE: Final = Fault()


@dataclass(frozen=True)
class Rule:
    """When a fault strikes: at each n-th call, or with a chance; and how often in a row."""

    fault: Fault
    methods: frozenset[str] | None = None
    """None: all."""
    every: int = 0
    """At each call of a method whose number this divides; 0: at none."""
    chance: float = 0.0
    burst: int = 1
    """Calls in a row, of any of the methods, once it strikes."""


class Plan:
    """Gives each call its fault: that of the first rule that strikes."""

    def __init__(self, rules: Sequence[Rule], seed: int) -> None:
        self._rules: Final = rules
        self._random: Final = random.Random(seed)
        self._calls: Final[Counter[str]] = Counter()
        self._left: Final = [0] * len(rules)
        """Of the present burst."""
        self.struck: Final[Counter[int]] = Counter()
        """How often each rule has, by its place."""

    def __call__(self, method: str) -> Fault:
        self._calls[method] += 1
        for place, rule in enumerate(self._rules):
            if rule.methods is not None and method not in rule.methods:
                continue
            turn = rule.every > 0 and self._calls[method] % rule.every == 0
            if self._left[place] == 0 and (turn or self._random.random() < rule.chance):
                self._left[place] = rule.burst
            if self._left[place]:
                self._left[place] -= 1
                self.struck[place] += 1
                return rule.fault
        return NONE


STORM: Final = (
    Rule(Fault(code=Code.UNAVAILABLE), chance=0.003, burst=12),
    Rule(Fault(code=Code.RESOURCE_EXHAUSTED), chance=0.02, burst=2),
    Rule(Fault(code=Code.RESOURCE_EXHAUSTED, retry_delay=0.2), every=53),
    Rule(Fault(code=Code.UNAUTHENTICATED), chance=0.01, burst=3),
    Rule(Fault(code=Code.INTERNAL), chance=0.02),
    Rule(Fault(code=Code.NOT_FOUND), frozenset({"Read", "BatchReadBlobs"}), chance=0.01),
    Rule(Fault(delay=0.3), chance=0.03),
    Rule(Fault(hang=True), chance=0.004),
    Rule(Fault(garbage=True), frozenset({"BatchReadBlobs", "FindMissingBlobs"}), chance=0.01),
    Rule(Fault(wrong=True), frozenset({"Read", "BatchReadBlobs"}), chance=0.04, burst=2),
    Rule(Fault(after=100_000), frozenset({"Read"}), chance=0.1),
    Rule(Fault(after=50_000, code=Code.UNAVAILABLE), frozenset({"Read"}), chance=0.1),
    Rule(Fault(extra=b"more"), frozenset({"Read"}), chance=0.02),
    Rule(Fault(trickle=0.02), frozenset({"Read"}), chance=0.02),
    Rule(Fault(empty=2_000), frozenset({"Read"}), chance=0.02),
    Rule(Fault(after=1_000, code=Code.UNAVAILABLE), frozenset({"Write"}), chance=0.2),
)
"""A bit of everything."""


@contextmanager
def weather(relay: Relay, seed: int, *, longest: float) -> Iterator[None]:
    """Meanwhile the connection breaks, goes silent, and comes back, each for at most `longest` seconds."""
    chance = random.Random(seed)
    over = threading.Event()

    def blow() -> None:
        while not over.wait(chance.uniform(longest, 4 * longest)):
            silent = chance.random() < 0.5
            if silent:
                relay.freeze()  # half-open: nothing arrives, and nobody is told
            else:
                relay.cut()
            over.wait(chance.uniform(0, longest))
            if silent:
                relay.cut()
            relay.mend()

    thread = threading.Thread(target=blow, name="weather")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
