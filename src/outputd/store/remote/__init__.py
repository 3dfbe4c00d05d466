"""A REv2 server as a store of blobs: the client side of CAS, ByteStream and Capabilities; keeps no bytes."""

from outputd.store.remote.client import RemoteStore
from outputd.store.remote.connection import build_id
from outputd.store.remote.endpoint import Endpoint, RemoteOptions, parse_endpoint

__all__ = ["Endpoint", "RemoteOptions", "RemoteStore", "build_id", "parse_endpoint"]
