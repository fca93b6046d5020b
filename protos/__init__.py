"""The wire contract and the code generated from it; used by the gRPC transport and the protobuf codec alone."""
