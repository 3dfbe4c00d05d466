"""The gRPC services: one module a protocol, all of them behind one edge that turns our errors into codes."""
