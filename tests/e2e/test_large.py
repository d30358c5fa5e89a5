"""A tensor beyond protobuf's 2 GiB, and beyond 4 GiB, crosses; and what is too large says so."""

from __future__ import annotations

import os

import pytest
import torch
from support.servers import ServerProcess

from tensorcall.client import connect
from tensorcall.wire import errors

GIB = 1 << 30


def available() -> int:
    with open("/proc/meminfo") as file:
        for line in file:
            if line.startswith("MemAvailable"):
                return int(line.split()[1]) * 1024
    return 0


@pytest.mark.skipif(available() < 13 * GIB, reason="needs 13 GiB of memory")
@pytest.mark.timeout(300)
def test_a_tensor_of_5_gib_crosses() -> None:
    size = 5 * GIB + 3
    with ServerProcess() as server, connect(server.address, timeout=250.0) as remote:
        tensor = torch.empty(size, dtype=torch.uint8)
        tensor[0], tensor[-1] = 7, 9
        assert remote.call("served.ends", tensor) == (size, 7, 9)
        # Both sides together hold it twice, not three times.
        assert remote.call("served.rss") < size + 2 * GIB


def test_a_message_above_the_servers_limit(carrier: str) -> None:
    with ServerProcess(max_message_bytes=8 << 20) as server:
        with connect(server.address, carrier=carrier) as remote:  # type: ignore[arg-type]
            with pytest.raises(errors.TooLarge):
                remote.call("served.echo", os.urandom(9 << 20))
            # The next call is served; and on a session tensors, which go in chunks, have no such limit.
            assert remote.call("served.add", 1) == 2.0
            if carrier == "session":
                assert remote.call("served.ends", torch.zeros(12 << 20, dtype=torch.uint8))[0] == 12 << 20


def test_more_than_the_server_gathers() -> None:
    with ServerProcess(max_gathering_bytes=10 << 20) as server, connect(server.address) as remote:
        with pytest.raises(errors.TooLarge, match="10,485,760"):
            remote.call("served.ends", torch.zeros(11 << 20, dtype=torch.uint8))
        # What was refused, what was cut off and what went through all give back what they had set aside.
        for _ in range(5):
            assert remote.call("served.ends", torch.zeros(9 << 20, dtype=torch.uint8))[0] == 9 << 20
            with pytest.raises(errors.DeadlineExceeded):
                remote.options(timeout=0.001).call("served.ends", torch.zeros(9 << 20, dtype=torch.uint8))
