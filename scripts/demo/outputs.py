"""The outputs of the demo's build: a small C project, generated headers, a thousand object files and one large binary. Never
the same bytes twice in one file, so that nothing is cheaper than in life."""

from __future__ import annotations

import random
from typing import Final

BIN: Final = "k8-fastbuild/bin"
SOURCE: Final = f"{BIN}/app/main.c"
HEADER: Final = f"{BIN}/app/generated/greeting.h"
SCRIPT: Final = f"{BIN}/tools/report.sh"
LARGE: Final = f"{BIN}/app/app.debug"
PROGRAM: Final = f"{BIN}/app/hello"

_MAIN_C: Final = b"""\
#include <stdio.h>
#include "generated/greeting.h"

int main(void) {
    puts(GREETING);
    return 0;
}
"""
_GREETING_H: Final = b"""\
#define GREETING "Hello from a program whose header was fetched when gcc read it."
"""
_REPORT_SH: Final = b"""\
#!/bin/sh
echo "A staged script runs from the tree: $(wc -c < "$(dirname "$0")/../app/main.c") bytes of main.c"
"""


def make_outputs() -> dict[str, bytes]:
    """Path and bytes of each output; the same at every run."""
    chance = random.Random(1)
    outputs = {SOURCE: _MAIN_C, HEADER: _GREETING_H, SCRIPT: _REPORT_SH}
    for number in range(1000):
        path = f"{BIN}/lib{number % 20:02}/object{number:04}.o"
        outputs[path] = chance.randbytes(chance.randrange(2_000, 40_000))
    outputs[LARGE] = chance.randbytes(40 << 20)
    return outputs
