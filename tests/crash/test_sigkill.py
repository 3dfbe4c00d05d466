"""SIGKILL of the real daemon at random moments of builds; nothing that was acknowledged may be missing or changed afterwards.

`OUTPUTD_NIGHTLY=1` kills hundreds of times, in another storm each night. `OUTPUTD_SEED` plays one storm again, as far as threads
let it.
"""

from __future__ import annotations

import os
import secrets

import pytest

from tests.crash.storm import Storm
from tests.daemon_fixture import running

NIGHTLY = "OUTPUTD_NIGHTLY" in os.environ
SEED = os.environ.get("OUTPUTD_SEED") or (secrets.token_hex(4) if NIGHTLY else "day")


@pytest.mark.timeout(7200 if NIGHTLY else 300)
@pytest.mark.parametrize("patience", (0.3, 2.0))
def test_nothing_acknowledged_is_lost(patience: float) -> None:
    rounds = 200 if NIGHTLY else {0.3: 12, 2.0: 4}[patience]
    with running(settings={"mount.xattrs": "true"}) as daemon:
        daemon.expects("took off [0-9]+ mounts of dead daemons")
        storm = Storm(daemon, f"{SEED} {patience}", patience=patience)
        try:
            for _ in range(rounds):
                storm.round()
            storm.end()
        except BaseException:
            print(f"OUTPUTD_SEED={SEED}, after {storm.kills} kills and {storm.steps} steps")
            raise
        finally:
            storm.close()
        print(f"{storm.kills} kills, {storm.steps} acknowledged steps")
