"""For all tests: hypothesis plays the same examples each time and is not afraid of a slow machine.

What is found by chance belongs to the nightly run (OUTPUTD_NIGHTLY=1), which plays others each time: a change is refused for what
it did, not for the luck of the draw.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "outputd",
    deadline=None,
    derandomize="OUTPUTD_NIGHTLY" not in os.environ,
    # These measure seconds, of a machine that may be doing something else.
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("outputd")
