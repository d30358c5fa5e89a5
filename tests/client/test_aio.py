"""The asyncio client, over each carrier."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
import torch
from support.servers import ServerProcess

from tensorcall.client import AsyncRemote, aio, connect_async
from tensorcall.wire import errors


@pytest_asyncio.fixture
async def remote(server: ServerProcess, carrier: Any) -> AsyncIterator[AsyncRemote]:
    async with connect_async(server.address, carrier=carrier) as connected:
        yield connected


async def happened(remote: AsyncRemote, name: str, times: int = 1) -> None:
    async with asyncio.timeout(30):
        while await remote.call("served.happened", name) < times:
            await asyncio.sleep(0.005)


async def test_calls(remote: AsyncRemote) -> None:
    assert await remote.call("served.add", 1, b=2) == 3.0
    results = await asyncio.gather(*(remote.call("served.echo", torch.full((i,), i)) for i in range(50)))
    assert [result.numel() for result in results] == list(range(50))


async def test_submit(remote: AsyncRemote) -> None:
    futures = [remote.submit("served.add", i) for i in range(20)]
    assert [await future for future in futures] == [i + 1.0 for i in range(20)]


async def test_streams(remote: AsyncRemote) -> None:
    assert [item async for item in remote.stream("served.count_async", 100)] == list(range(100))
    with pytest.raises(LookupError, match="no more"):
        async for _ in remote.stream("served.fail_after", 2):
            pass


async def test_leaving_a_stream_early_closes_the_generator(remote: AsyncRemote, carrier: str) -> None:
    name = f"aio left {carrier}"
    async with remote.stream("served.count", 10**9, name) as stream:
        async for item in stream:
            if item == 5:
                break
    await happened(remote, f"{name} closed")


async def test_cancelling_the_task_cancels_the_call(remote: AsyncRemote, carrier: str) -> None:
    name = f"aio cancelled {carrier}"
    task = asyncio.create_task(remote.call("served.sleep_for_ever", name))
    await happened(remote, f"{name} runs")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await happened(remote, f"{name} cancelled")


async def test_the_loop_is_not_held_up(remote: AsyncRemote, carrier: str) -> None:
    name = f"aio gate {carrier}"
    waiting = asyncio.create_task(remote.call("served.wait_for_gate", name))
    assert await remote.call("served.add", 1) == 2.0
    await remote.call("served.open_gate", name)
    assert await waiting == name


async def test_errors(remote: AsyncRemote) -> None:
    with pytest.raises(ValueError, match="bad value") as caught:
        await remote.call("served.raises", "value")
    assert isinstance(caught.value, errors.RemoteError)
    with pytest.raises(errors.NotExposed):
        await remote.call("nothing")
    with pytest.raises(errors.DeadlineExceeded):
        await remote.options(timeout=0.2).call("served.sleep_for_ever", "aio deadline")


async def test_functions(remote: AsyncRemote) -> None:
    assert "served.add" in [function.name for function in await remote.functions()]
    assert (await remote.describe("served.add")).kind == "function"


async def test_nobody_there() -> None:
    async with connect_async("127.0.0.1:1") as remote:
        with pytest.raises(errors.Unreachable):
            await remote.call("x")
        with pytest.raises(errors.Unreachable):
            async for _ in remote.stream("x"):
                pass


async def test_a_stream_fails_once_and_then_has_ended() -> None:
    async with connect_async("127.0.0.1:1") as remote:
        stream = remote.stream("x")
        with pytest.raises(errors.Unreachable):
            await anext(stream)
        async with asyncio.timeout(20):
            assert [item async for item in stream] == []


async def test_cancelled_while_it_starts_a_stream_ends(
    server: ServerProcess, carrier: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"aio cancelled start {carrier}"
    started, goes_on = threading.Event(), threading.Event()
    start_stream = aio.start_stream

    def slowly(*args: Any) -> Any:
        handle = start_stream(*args)
        started.set()
        assert goes_on.wait(30)
        return handle

    monkeypatch.setattr(aio, "start_stream", slowly)
    async with connect_async(server.address, carrier=carrier) as remote:
        stream = remote.options(prefetch=2).stream("served.count", 10**9, name)
        task = asyncio.ensure_future(anext(stream))
        await asyncio.to_thread(started.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await happened(remote, f"{name} made")
        goes_on.set()
        await happened(remote, f"{name} closed")
        assert [item async for item in stream] == []


async def test_closing_a_stream_wakes_who_waits_for_it(remote: AsyncRemote, carrier: str) -> None:
    stream = remote.stream("served.stall_async", f"aio closed {carrier}")
    assert await anext(stream) == 1
    task = asyncio.ensure_future(anext(stream, "ended"))
    await asyncio.sleep(0)
    await stream.aclose()
    async with asyncio.timeout(20):
        assert await task == "ended"
