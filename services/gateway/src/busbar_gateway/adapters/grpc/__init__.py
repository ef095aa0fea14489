"""The gRPC edge: KServe v2, as Triton serves it."""
