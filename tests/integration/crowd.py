"""A crowd of clients in one process, each with a connection of its own: registers, parks a pull, and tells when it is served.

Usage: crowd.py ADDRESS COUNT. Prints "parked" when all pulls wait, then one line with the moment the last one was answered.
"""

import asyncio
import sys
import time

import grpc.aio

from fedcore.messages import Assigned, Register
from fedcore.protos import fedcore_pb2 as pb
from fedcore.transports.grpc import wire
from fedcore.transports.grpc.framing import without_body
from fedcore.transports.grpc.options import channel_options

PATH = "/fedcore.v1.FederatedLearningService/"


async def register(address, name):
    channel = grpc.aio.insecure_channel(address, options=channel_options(1 << 20))
    request = wire.pack_register(Register(name, accepts=("safetensors",))).SerializeToString()
    answer = await channel.unary_unary(PATH + "RegisterClient")(request)
    return channel, wire.unpack_registered(pb.RegisterClientResponse.FromString(answer)).session


async def pull(channel, session):
    request = pb.GetGlobalModelRequest(session=wire.pack_session(session), wait_seconds=60.0)
    answer = await channel.unary_unary(PATH + "GetGlobalModel")(request.SerializeToString())
    message, _ = without_body(pb.GetGlobalModelResponse, answer)
    assert isinstance(wire.unpack_pulled(message), Assigned)
    return time.monotonic()


async def main(address, count):
    crowd = []
    for start in range(0, count, 50):
        names = [f"crowd-{index}" for index in range(start, min(start + 50, count))]
        crowd += await asyncio.gather(*(register(address, name) for name in names))
    pulls = [asyncio.create_task(pull(*member)) for member in crowd]
    await asyncio.sleep(0)
    sys.stdout.write("parked\n")
    sys.stdout.flush()
    sys.stdout.write(f"{max(await asyncio.gather(*pulls))}\n")
    sys.stdout.flush()
    await asyncio.gather(*(channel.close() for channel, _ in crowd))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
