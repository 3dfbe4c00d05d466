"""Whether somebody waits for a piece of work, as far as is known by now; never does the work.

Work says so by its context, which tasks inherit: without an errand somebody waits for it. What is done ahead of anybody's need
carries an errand; who comes to wait for it after all makes it hurry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context


class Errand:
    """Work that nobody waits for yet. For one event loop."""

    __slots__ = ("_listeners", "urgent")

    def __init__(self) -> None:
        self.urgent = False
        self._listeners: dict[Callable[[], None], None] = {}

    def hurry(self) -> None:
        """Somebody waits for it from now on."""
        if not self.urgent:
            self.urgent = True
            for tell in list(self._listeners):
                tell()

    @contextmanager
    def listened(self, tell: Callable[[], None]) -> Iterator[None]:
        """Be told, meanwhile, when it is to hurry."""
        self._listeners[tell] = None
        try:
            yield
        finally:
            del self._listeners[tell]


errand: ContextVar[Errand | None] = ContextVar("errand", default=None)


def urgent() -> bool:
    """Whether somebody waits for what this task does."""
    carried = errand.get()
    return carried is None or carried.urgent


def carrying(carried: Errand) -> Context:
    """This context, for a task that is begun on such an errand."""
    context = copy_context()
    context.run(errand.set, carried)
    return context


@contextmanager
def unhurried() -> Iterator[None]:
    """Nobody waits for what this task does within."""
    token = errand.set(Errand())
    try:
        yield
    finally:
        errand.reset(token)
