"""The tables from our words to errno are total."""

from __future__ import annotations

import errno

from outputd import errors
from outputd.front.fuse.errnos import OF_ERROR, OF_STATUS, of_error
from outputd.tree.status import Status


def test_every_refusal_of_the_tree_has_an_errno() -> None:
    assert set(OF_STATUS) == set(Status)
    assert OF_STATUS[Status.OK] == 0
    assert all(number in errno.errorcode for status, number in OF_STATUS.items() if status is not Status.OK)


def test_every_error_has_an_errno() -> None:
    def all_below(kind: type[errors.OutputdError]) -> set[type[errors.OutputdError]]:
        return {kind}.union(*(all_below(below) for below in kind.__subclasses__()))

    ours = {kind for kind in all_below(errors.OutputdError) if kind.__module__ == errors.__name__}
    assert set(OF_ERROR) == ours - {errors.OutputdError}


def test_the_most_special_class_decides() -> None:
    class Slow(errors.TimedOut):
        pass

    assert of_error(Slow("x")) == errno.ETIMEDOUT
    assert of_error(errors.OutputdError("x")) == errno.EIO
