"""`outputd` with its garbage collector watched: `python -m bench.macro.observed FILE COMMAND...`; changes nothing of what it does.

FILE holds the longest pause so far, in seconds.
"""

from __future__ import annotations

import gc
import sys
import time

from outputd.cli.main import main


def watch(path: str) -> None:
    began = longest = 0.0

    def note(phase: str, _facts: dict[str, int]) -> None:
        nonlocal began, longest
        if phase == "start":
            began = time.perf_counter()
        elif (took := time.perf_counter() - began) > longest:
            longest = took
            with open(path, "w") as file:
                file.write(repr(longest))

    gc.callbacks.append(note)


if __name__ == "__main__":
    watch(sys.argv[1])
    sys.argv[1:] = sys.argv[2:]
    sys.exit(main())
