"""Generated protobuf messages, all defined in one private descriptor pool; never edited by hand.

`python scripts/regenerate_protos.py` writes every `*_pb2.py` and `*_pb2.pyi` from `protos/`. The well-known types are here
too (`any_pb2`, `duration_pb2`, ...), because a message of another pool, such as `google.protobuf.any_pb2.Any`, cannot be
put into a field of these.
"""
