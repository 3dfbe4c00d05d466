"""`outputd` with its garbage collector watched: `python -m bench.macro.observed FILE COMMAND...`; changes nothing of what it does.

FILE holds the longest collection so far, in seconds of processor time.
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
            began = time.thread_time()
        elif (took := time.thread_time() - began) > longest:
            longest = took
            with open(path, "w") as file:
                file.write(repr(longest))

    gc.callbacks.append(note)


if __name__ == "__main__":
    watch(sys.argv[1])
    sys.argv[1:] = sys.argv[2:]
    sys.exit(main())
