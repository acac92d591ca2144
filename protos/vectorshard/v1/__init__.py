"""Every message and enum of vectorshard.v1, and the stub of its service."""

from vectorshard.v1.vectorshard_pb2 import *  # noqa: F403
from vectorshard.v1.vectorshard_pb2_grpc import VectorServiceStub as VectorServiceStub
