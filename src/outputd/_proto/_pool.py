"""The private descriptor pool of the generated messages; never touches protobuf's default pool.

A pool refuses a second, different definition of the same full name. The default pool is shared by the whole process, so
our own edition of `google.rpc.Status` or of REv2 would make `import` fail, ours or theirs, in every process that also loads
googleapis-common-protos or another REv2 client. Full names cannot change: they are on the wire, in method paths and in the
type URLs of Any. A pool of our own costs nothing at run time, and because only public calls of the protobuf package are
made here, no check between the version of a generator and the version of the runtime stands in the way.
"""

from typing import Any, Final

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FileDescriptor
from google.protobuf.message import Message

_POOL: Final = descriptor_pool.DescriptorPool()


def define(serialized_file: bytes, namespace: dict[str, Any]) -> FileDescriptor:
    """Add a file, whose imports were added before, and put its message classes into the module `namespace`."""
    descriptor = _POOL.AddSerializedFile(serialized_file)
    for name, message in descriptor.message_types_by_name.items():
        namespace[name] = _message_class(message, namespace["__name__"], name)
    return descriptor


def _message_class(descriptor: Descriptor, module: str, qualified_name: str) -> type[Message]:
    message_class = message_factory.GetMessageClass(descriptor)
    message_class.__module__ = module
    message_class.__qualname__ = qualified_name
    for name, nested in descriptor.nested_types_by_name.items():
        setattr(message_class, name, _message_class(nested, module, f"{qualified_name}.{name}"))
    return message_class
