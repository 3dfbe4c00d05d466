"""For all tests: the same surroundings and the same examples, whoever runs them on whatever machine.

What hypothesis finds by chance belongs to the nightly run (OUTPUTD_NIGHTLY=1), which plays other examples each time: a change is
refused for what it did, not for the luck of the draw.
"""

from __future__ import annotations

import os
import resource
import tempfile

from hypothesis import HealthCheck, settings

settings.register_profile(
    "outputd",
    deadline=None,
    derandomize="OUTPUTD_NIGHTLY" not in os.environ,
    # These measure seconds, of a machine that may be doing something else.
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("outputd")

os.umask(0o022)
# Servers of tests are on this machine, and no proxy knows them.
os.environ["no_proxy"] = os.environ["NO_PROXY"] = "localhost,127.0.0.1,::1"
# A thousand readers at once are more than most systems let a process open unasked.
_soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
_wanted = 4096 if _hard == resource.RLIM_INFINITY else min(4096, _hard)
if _soft != resource.RLIM_INFINITY and _soft < _wanted:
    resource.setrlimit(resource.RLIMIT_NOFILE, (_wanted, _hard))
if len(tempfile.gettempdir()) > 32:
    # Sockets lie in temporary directories, and the paths of sockets are short (unix(7): 107 bytes).
    os.environ["TMPDIR"] = tempfile.tempdir = "/tmp"
