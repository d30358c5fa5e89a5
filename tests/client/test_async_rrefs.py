"""References for asyncio, over each carrier."""

from __future__ import annotations

import asyncio
import gc
import pickle
import weakref
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
import torch
from support.servers import ServerProcess, eventually

from tensorcall.client import AsyncRemote, AsyncRRef, RemoteClass, connect_async
from tensorcall.wire import errors


@pytest_asyncio.fixture
async def remote(server: ServerProcess, carrier: Any) -> AsyncIterator[AsyncRemote]:
    async with connect_async(server.address, carrier=carrier) as connected:
        yield connected


async def released(remote: AsyncRemote) -> None:
    link = remote._connection.link
    await asyncio.to_thread(eventually, lambda: not link.held, "that everything is released")


async def test_an_object_on_the_server(remote: AsyncRemote) -> None:
    for _ in range(2):  # without a connection first, then with one
        rref = remote.remote("served.Cell", [1])
        assert isinstance(rref, AsyncRRef)
        assert await rref.rpc_async().get() == [1]
        await rref.rpc_sync().set("new")
        assert await rref.remote().get().to_here() == "new"
        await rref.wait_confirmed(30)
        assert rref.confirmed_by_owner()
        assert not rref.is_owner()
        assert rref.owner_name() == rref.rref_id().owner
        assert await rref.get_type() == RemoteClass("served", "Cell")
    del rref
    await released(remote)


async def test_as_argument_and_result(remote: AsyncRemote) -> None:
    rref = remote.remote("served.Cell", 5)
    assert await remote.call("served.value_of", rref) == 5
    back = await remote.call("served.echo", {"a": [rref]})
    assert isinstance(back["a"][0], AsyncRRef)
    await back["a"][0].wait_confirmed(30)
    del rref
    assert await back["a"][0].rpc_async().get() == 5
    async for item in remote.stream("served.refer_in_turn", 3):
        assert await item.rpc_async().get() in (0, 1, 2)
    named = remote.open_rref(back["a"][0].rref_id())
    assert await named.rpc_async().get() == 5
    del back, item, named
    await released(remote)


async def test_errors(remote: AsyncRemote) -> None:
    failed = remote.remote("served.raises", "value")
    with pytest.raises(ValueError, match="bad value"):
        await failed.to_here()
    with pytest.raises(errors.NotExposed):
        await remote.remote("served.nothing").to_here()
    with pytest.raises(RuntimeError, match="can't call localValue"):
        failed.local_value()
    with pytest.raises(RuntimeError, match="Can not pickle rref"):
        pickle.dumps(failed)
    gone = remote.open_rref(failed.rref_id()._replace(sequence=12345))
    with pytest.raises(errors.RRefUnknown):
        await gone.wait_confirmed(30)


async def test_waiting_and_giving_up(remote: AsyncRemote, carrier: str) -> None:
    name = f"aio cell {carrier}"
    rref = remote.remote("served.cell_behind_gate", name, 7)
    with pytest.raises(errors.DeadlineExceeded):
        await rref.wait_confirmed(0.05)
    task = asyncio.create_task(rref.to_here())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    waiting = rref.rpc_async().get()
    await remote.call("served.open_gate", name)
    assert await waiting == 7


async def test_nobody_is_there() -> None:
    async with connect_async("127.0.0.1:9", connect_timeout=0.2) as remote:
        rref = remote.remote("served.Cell")
        for use in (rref.to_here, rref.wait_confirmed, rref.get_type):
            with pytest.raises(errors.Unreachable):
                await use()
        assert not rref.confirmed_by_owner()


async def test_results_go_without_the_garbage_collector(remote: AsyncRemote) -> None:
    await remote.call("served.noop")
    gc.collect()
    gc.disable()
    try:
        result = await remote.call("served.fill", 1000)
        rref = remote.remote("served.Cell", 1)
        assert await rref.rpc_async().get() == 1
        assert isinstance(result, torch.Tensor)
        gone = weakref.ref(result), weakref.ref(rref)
        del result, rref
        await asyncio.to_thread(eventually, lambda: gone[0]() is None and gone[1]() is None, "that they go")
        await released(remote)
    finally:
        gc.enable()
