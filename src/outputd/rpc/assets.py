"""Remote Asset, passed on to the remote; never fetches anything itself.

What a Fetch finds is a blob of the remote's CAS, which comes here when somebody reads it.
"""

from __future__ import annotations

from typing import Final

from outputd._proto import remote_asset_pb2 as asset
from outputd.rpc.edge import Context
from outputd.rpc.passing import Passing

_FETCH: Final = asset.DESCRIPTOR.services_by_name["Fetch"].methods_by_name
_PUSH: Final = asset.DESCRIPTOR.services_by_name["Push"].methods_by_name

_DOWNLOAD: Final = 600.0
"""Seconds for a fetch: the server may have to download first."""
_PATIENCE: Final = 60.0


class Fetch:
    """The service."""

    def __init__(self, passing: Passing) -> None:
        self._passing = passing

    async def fetch_blob(self, request: asset.FetchBlobRequest, context: Context) -> asset.FetchBlobResponse:
        instance = request.instance_name
        request.instance_name = self._passing.instance(instance)
        return await self._passing.call(
            _FETCH["FetchBlob"], request, asset.FetchBlobResponse, context, _DOWNLOAD, instance
        )

    async def fetch_directory(
        self, request: asset.FetchDirectoryRequest, context: Context
    ) -> asset.FetchDirectoryResponse:
        instance = request.instance_name
        request.instance_name = self._passing.instance(instance)
        return await self._passing.call(
            _FETCH["FetchDirectory"], request, asset.FetchDirectoryResponse, context, _DOWNLOAD, instance
        )


class Push:
    """The service."""

    def __init__(self, passing: Passing) -> None:
        self._passing = passing

    async def push_blob(self, request: asset.PushBlobRequest, context: Context) -> asset.PushBlobResponse:
        instance = request.instance_name
        request.instance_name = self._passing.instance(instance)
        return await self._passing.call(
            _PUSH["PushBlob"], request, asset.PushBlobResponse, context, _PATIENCE, instance
        )

    async def push_directory(
        self, request: asset.PushDirectoryRequest, context: Context
    ) -> asset.PushDirectoryResponse:
        instance = request.instance_name
        request.instance_name = self._passing.instance(instance)
        return await self._passing.call(
            _PUSH["PushDirectory"], request, asset.PushDirectoryResponse, context, _PATIENCE, instance
        )
