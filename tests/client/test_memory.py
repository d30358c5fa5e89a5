"""Nothing holds on to a call's tensors once it has ended, on either side."""

from __future__ import annotations

import contextlib
import gc
import weakref
from typing import Any

import pytest
import torch
from support.servers import ServerProcess, eventually

from tensorcall.client import connect
from tensorcall.wire import errors

MIB = 1 << 20


@pytest.mark.parametrize("how", ["call", "submit", "stream", "fails", "submit fails", "stream fails", "refused"])
def test_arguments_are_let_go(server: ServerProcess, carrier: Any, how: str) -> None:
    gc.collect()
    gc.disable()  # nothing may need it
    try:
        with connect(server.address, carrier=carrier) as remote:
            tensor = torch.ones(3 * MIB, dtype=torch.uint8)
            gone = weakref.ref(tensor)
            if how == "call":
                assert remote.call("served.tensor_sum", tensor).item() == 3 * MIB
            elif how == "submit":
                assert remote.submit("served.tensor_sum", tensor).result(60).item() == 3 * MIB
            elif how == "stream":
                assert list(remote.stream("served.count", 2)) == [0, 1]
                list(remote.stream("served.rows", tensor.view(3, MIB)))
            else:
                try:
                    if how == "fails":
                        remote.call("served.fail_with", tensor)
                    elif how == "submit fails":
                        remote.submit("served.fail_with", tensor).result(60)
                    elif how == "stream fails":
                        list(remote.stream("served.fail_rows", tensor.view(3, MIB)))
                    else:
                        remote.call("served.addd", tensor)
                except (ValueError, errors.NotExposed):
                    pass
                else:
                    raise AssertionError
            del tensor
            # The thread that wrote the last chunk lets go of it in a moment.
            eventually(lambda: gone() is None, "that the argument is let go")
    finally:
        gc.enable()


def test_results_are_let_go(server: ServerProcess, carrier: Any) -> None:
    gc.collect()
    gc.disable()
    try:
        with connect(server.address, carrier=carrier) as remote:
            future = remote.submit("served.fill", 3 * MIB)
            result = future.result(60)
            gone, future_gone = weakref.ref(result), weakref.ref(future)
            del result, future
            eventually(lambda: gone() is None and future_gone() is None, "that the result is let go")
    finally:
        gc.enable()


def test_the_server_keeps_nothing(carrier: Any) -> None:
    with ServerProcess() as server, connect(server.address, carrier=carrier) as remote:
        tensor = torch.ones(100 * MIB, dtype=torch.uint8)

        def work() -> None:
            remote.call("served.tensor_sum", tensor)
            remote.call("served.add_in_place", tensor)
            for _ in remote.stream("served.rows", tensor.view(4, 25 * MIB)):
                pass
            for _ in range(3):
                with contextlib.suppress(ValueError):
                    remote.call("served.fail_with", tensor)

        # Allocators keep some of what was freed, to use it again; what counts is that it does not go on growing.
        for _ in range(3):
            work()
        before = remote.call("served.resident")
        for _ in range(4):
            work()
        # The thread that answered lets go of the last call a moment later.
        eventually(lambda: remote.call("served.resident") < before + 150 * MIB, "that memory is given back")
