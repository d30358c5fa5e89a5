"""The end of a world: nobody waits for the dead, nobody leaves while calls are in flight."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import ranks

from tensorcall import rpc
from tensorcall.rpc import agent, api, gathering


def slow(seconds: float) -> str:
    time.sleep(seconds)
    return "slept"


def chain(names: list[str], left: int) -> None:
    """Calls on, and returns before that has ended."""
    if left:
        rpc.rpc_async(names[left % len(names)], chain, args=(names, left - 1))


def shut_down_within(seconds: float, **settings: Any) -> str:
    """Shuts down, which must fail; returns how."""
    began = time.monotonic()
    with pytest.raises(RuntimeError) as caught:
        rpc.shutdown(**settings)
    assert time.monotonic() - began < seconds
    assert not rpc._is_current_rpc_agent_set()
    return str(caught.value)


arrived = threading.Semaphore(0)


def arrive() -> None:
    arrived.release()


def die_when_all_have_joined(rank: int, victim: int) -> None:
    """Ends one process; not while it is still needed for the others to join."""
    if rank != victim:
        rpc.rpc_async(f"worker{victim}", arrive)
        return
    for _ in range(2):
        arrived.acquire()
    os.kill(os.getpid(), signal.SIGKILL)


def scenario_dead_follower(rank: int) -> None:
    die_when_all_have_joined(rank, 2)
    # The leader has noticed, and has told the other one.
    assert "worker2) is gone" in shut_down_within(20)


def scenario_dead_leader(rank: int) -> None:
    die_when_all_have_joined(rank, 0)
    assert "worker0" in shut_down_within(20)


def scenario_one_is_late(rank: int) -> None:
    # It lives, and may take its time.
    time.sleep(2.5 if rank == 1 else 0)


def scenario_one_is_too_late(rank: int) -> None:
    if rank == 1:
        time.sleep(3)
        shut_down_within(10)
    elif rank == 0:
        assert "still waiting for worker1" in shut_down_within(3, timeout=0.5)
    else:
        shut_down_within(5, timeout=0.5)


def scenario_calls_in_flight(rank: int) -> None:
    names = [info.name for info in rpc.api._get_current_rpc_agent().get_worker_infos()]
    chain(names, 30)
    pending = rpc.rpc_async(names[(rank + 1) % 3], slow, args=(1.0,))
    rpc.shutdown()
    assert pending.wait() == "slept"


def scenario_call_to_the_dead(rank: int) -> None:
    if rank == 1:
        hanging = rpc.rpc_async("worker2", slow, args=(100,))
        rpc.rpc_async("worker2", arrive)
        with pytest.raises(ConnectionError, match=r"Connection closed by peer WorkerInfo\(id=2, name=worker2\)"):
            hanging.wait()
        with pytest.raises(RuntimeError, match="Connection closed by peer"):
            rpc.rpc_sync("worker2", slow, args=(0,))
    else:
        die_when_all_have_joined(rank, 2)
    assert "worker" in shut_down_within(20)


def scenario_not_graceful(rank: int) -> None:
    pending = rpc.rpc_async(f"worker{(rank + 1) % 3}", slow, args=(100,))
    api._wait_all_workers()
    began = time.monotonic()
    rpc.shutdown(graceful=False)
    assert time.monotonic() - began < 10
    with pytest.raises(RuntimeError):
        pending.wait()


def scenario_interrupted(rank: int) -> None:
    if rank == 0:
        threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            rpc.shutdown()
        assert not rpc._is_current_rpc_agent_set()
    else:
        time.sleep(2)
        assert "worker0" in shut_down_within(20)


@contextlib.contextmanager
def stopped(*names: str) -> Iterator[None]:
    """Stops workers, as a host that hangs would be; and ends them."""
    pids = [rpc.rpc_sync(name, os.getpid) for name in names]
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)


def scenario_stopped_followers(rank: int) -> None:
    if rank:
        time.sleep(50)
    with stopped("worker1", "worker2"):
        assert "still waiting for worker1, worker2" in shut_down_within(5, timeout=2)


def scenario_stopped_leader(rank: int) -> None:
    if rank != 1:
        time.sleep(50)
    with stopped("worker0", "worker2"):
        said = shut_down_within(5, timeout=2)
        assert "worker0 has not answered" in said
        assert "RPC ran for more than set timeout" in said


def impatient() -> None:
    agent.PING_SECONDS = gathering.PING_SECONDS = 0.3  # type: ignore[attr-defined]
    agent._SILENT_SECONDS = 2.0


def scenario_silent_followers(rank: int) -> None:
    impatient()
    if rank:
        time.sleep(50)
    with stopped("worker1", "worker2"):
        said = shut_down_within(10)
        assert "worker1) is gone: it has not answered for 2 s" in said
        assert "worker2) is gone" in said


def scenario_silent_leader(rank: int) -> None:
    impatient()
    if rank != 1:
        time.sleep(50)
    with stopped("worker0", "worker2"):
        assert "worker0) is gone: it has not answered for 2 s" in shut_down_within(10)


def scenario_one_deadline(rank: int) -> None:
    # For the whole of it: the calls that the others wait for end too late.
    hanging = rpc.rpc_async("worker0", slow, args=(3.0,)) if rank == 1 else None
    time.sleep(0.3)
    if rank == 2:
        # It comes late; the rest of the time is not all of it.
        time.sleep(1)
    shut_down_within(2.6, timeout=2)
    del hanging


@pytest.mark.parametrize(
    ("scenario", "codes"),
    [
        ("scenario_dead_follower", [0, 0, -9]),
        ("scenario_dead_leader", [-9, 0, 0]),
        ("scenario_one_is_late", [0, 0, 0]),
        ("scenario_one_is_too_late", [0, 0, 0]),
        ("scenario_calls_in_flight", [0, 0, 0]),
        ("scenario_call_to_the_dead", [0, 0, -9]),
        ("scenario_not_graceful", [0, 0, 0]),
        ("scenario_interrupted", [0, 0, 0]),
        ("scenario_stopped_followers", [0, -9, -9]),
        ("scenario_stopped_leader", [-9, 0, -9]),
        ("scenario_silent_followers", [0, -9, -9]),
        ("scenario_silent_leader", [-9, 0, -9]),
        ("scenario_one_deadline", [0, 0, 0]),
    ],
)
def test_shutdown(scenario: str, codes: list[int], tmp_path: Path) -> None:
    ranks.run(__file__, scenario, tmp_path, size=3, codes=codes)


if __name__ == "__main__":
    ranks.main(globals())
