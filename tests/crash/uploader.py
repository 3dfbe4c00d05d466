"""A client of the CAS and of the action cache, until the daemon is killed under it: what was acknowledged is there afterwards."""

from __future__ import annotations

import random
import threading
from typing import Final

import grpc

from outputd._proto import remote_execution_pb2 as reapi
from tests.service_client import SECONDS, Cas, call, digest_of

_CACHE: Final = "/build.bazel.remote.execution.v2.ActionCache/"
_READ: Final = "/build.bazel.remote.execution.v2.ContentAddressableStorage/BatchReadBlobs"


class Uploader:
    """Uploads blobs in batches and as streams, and action results that name them."""

    def __init__(self, seed: str, dead: threading.Event) -> None:
        self._random: Final = random.Random(f"{seed} uploads")
        self._dead = dead
        self._serial = 0
        self._blobs: list[bytes] = []
        self._results: dict[bytes, reapi.ActionResult] = {}
        """By the action, which is just bytes here."""
        self._unsure: tuple[bytes, reapi.ActionResult] | None = None
        """The update in flight."""
        self.steps = 0

    def run(self, channel: grpc.Channel) -> None:
        """Work until the daemon is killed."""
        try:
            while True:
                self._upload(channel)
                self._update(channel)
        except grpc.RpcError as error:
            if not self._dead.wait(SECONDS):
                raise AssertionError(f"{error!r}, and nobody has killed the daemon") from error

    def check(self, channel: grpc.Channel) -> None:
        """Everything acknowledged is there."""
        digests = [digest_of(data) for data in self._blobs]
        lacking = Cas(channel).missing(digests)
        assert not lacking, f"{len(lacking)} blobs are not in the CAS any more"
        some = [
            data for data in self._random.sample(self._blobs, min(len(self._blobs), 30)) if len(data) < 10**5
        ]
        request = reapi.BatchReadBlobsRequest(digests=map(digest_of, some))
        reply = call(channel, _READ, request, reapi.BatchReadBlobsResponse)
        assert sorted(response.data for response in reply.responses) == sorted(set(some))
        for action, result in list(self._results.items()):
            found = self._result(channel, action)
            if self._unsure == (action, found):
                self._results[action] = found
            else:
                assert found == result, f"action {action!r} has another result"
        self._unsure = None

    def _upload(self, channel: grpc.Channel) -> None:
        size = self._random.choice((10, 10, 1000, 3_000_000))  # the largest go as streams
        count = 1 if size > 10**6 else self._random.choice((1, 20))
        blobs = [self._next().ljust(size, b".") for _ in range(count)]
        Cas(channel).put_all(blobs)
        self._blobs = [*self._blobs[-2000:], *blobs]
        self.steps += 1

    def _update(self, channel: grpc.Channel) -> None:
        known = list(self._results)
        action = self._random.choice(known) if len(known) > 40 else self._next()
        result = reapi.ActionResult(exit_code=self._random.randrange(100), stdout_raw=self._next())
        for data in self._random.sample(self._blobs, min(len(self._blobs), 3)):
            result.output_files.add(path=f"out{len(result.output_files)}", digest=digest_of(data))
        request = reapi.UpdateActionResultRequest(action_digest=digest_of(action), action_result=result)
        self._unsure = action, result
        call(channel, f"{_CACHE}UpdateActionResult", request, reapi.ActionResult)
        self._unsure = None
        self._results[action] = result
        self.steps += 1

    @staticmethod
    def _result(channel: grpc.Channel, action: bytes) -> reapi.ActionResult:
        request = reapi.GetActionResultRequest(action_digest=digest_of(action))
        return call(channel, f"{_CACHE}GetActionResult", request, reapi.ActionResult)

    def _next(self) -> bytes:
        self._serial += 1
        return b"upload %d" % self._serial
