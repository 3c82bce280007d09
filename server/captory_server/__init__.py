"""The service around the engine: one gRPC server on loopback or a Unix socket."""
