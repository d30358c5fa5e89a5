"""The threads that run functions, and who takes over when one that reads is held up."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import pytest
from support.servers import ServerProcess, eventually

from tensorcall.client import connect
from tensorcall.server.pool import Pool
from tensorcall.wire.errors import Overloaded
from tensorcall.wire.waiting import waiting


class Gate:
    """Holds tasks until it opens."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.inside = 0
        self.most = 0
        self.done = 0
        self._lock = threading.Lock()

    def task(self) -> None:
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        assert self.event.wait(30)
        with self._lock:
            self.inside -= 1
            self.done += 1

    def waiting_task(self) -> None:
        with waiting():
            self.task()


def test_so_many_at_once_and_so_many_in_the_queue() -> None:
    pool, gate = Pool(3, 3, 5), Gate()
    for _ in range(8):
        pool.submit(gate.task)
    eventually(lambda: gate.inside == 3)
    assert (pool.threads, pool.backlog, pool.full) == (3, 5, True)
    with pytest.raises(Overloaded, match="nothing was run") as caught:
        pool.submit(gate.task)
    assert caught.value.retry_after
    pool.submit_always(gate.task)
    gate.event.set()
    eventually(lambda: gate.done == 9)
    assert gate.most == 3
    assert (pool.threads, pool.backlog) == (3, 0)


def test_threads_that_wait_let_others_start_up_to_the_limit() -> None:
    pool, waiters, others = Pool(2, 5, 100), Gate(), Gate()
    for _ in range(10):
        pool.submit(waiters.waiting_task)
    eventually(lambda: waiters.inside == 5)
    pool.submit(others.task)
    assert (pool.threads, others.inside) == (5, 0)
    waiters.event.set()
    others.event.set()
    eventually(lambda: waiters.done == 10 and others.done == 1)
    # Those that were started only because others waited go again.
    for _ in range(10):
        pool.submit(others.task)
    eventually(lambda: others.done == 11)
    eventually(lambda: pool.threads <= 2)


def test_threads_that_are_stuck_without_saying_so_let_others_start() -> None:
    pool, stuck, key = Pool(2, 20, 100), Gate(), Gate()
    for _ in range(6):
        pool.submit(stuck.task)
    # Only this one would set the others free.
    pool.submit(stuck.event.set)
    assert stuck.event.wait(30)
    eventually(lambda: stuck.done == 6)
    eventually(lambda: pool.threads <= 2 and pool.backlog == 0)
    # Up to the limit, and no further.
    pool = Pool(1, 4, 100)
    for _ in range(8):
        pool.submit(key.task)
    eventually(lambda: key.inside == 4)
    assert pool.threads == 4
    key.event.set()
    eventually(lambda: key.done == 8)
    assert key.most == 4


def test_a_task_that_raises_costs_no_thread(caplog: pytest.LogCaptureFixture) -> None:
    pool, gate = Pool(1, 1, 10), Gate()
    gate.event.set()

    def fails() -> None:
        raise SystemExit

    pool.submit(fails)
    pool.submit(gate.task)
    eventually(lambda: gate.done == 1)
    assert "defect" in caplog.text


@pytest.mark.parametrize("seed", [random.randrange(10**6) for _ in range(3)])
def test_nothing_is_lost_or_run_twice(seed: int) -> None:
    """Tasks that start tasks, and wait for them, from many threads."""
    print("seed", seed)
    rng = random.Random(seed)
    # At the limit of threads nested waits would deadlock, as they must: it is above what can wait at once here.
    pool = Pool(4, 1000, 10**6)
    ran: list[int] = []
    finished = threading.Semaphore(0)

    def task(depth: int, waits: bool) -> None:
        ran.append(1)
        if depth:
            inner = threading.Event()

            def then() -> None:
                task(depth - 1, not waits)
                inner.set()

            pool.submit(then)
            if waits:
                with waiting():
                    assert inner.wait(60)
        else:
            finished.release()

    count, total = 300, 0

    def feed(plans: list[tuple[int, bool]]) -> Callable[[], None]:
        return lambda: [pool.submit(task, *plan) for plan in plans] and None

    feeders = []
    for _ in range(4):
        plans = [(rng.randrange(4), rng.random() < 0.5) for _ in range(count // 4)]
        total += sum(depth + 1 for depth, _ in plans)
        feeders.append(threading.Thread(target=feed(plans)))
    for feeder in feeders:
        feeder.start()
    for _ in range(count):
        assert finished.acquire(timeout=60)
    eventually(lambda: len(ran) == total)
    for feeder in feeders:
        feeder.join()
    eventually(lambda: pool.threads <= 4 and pool.backlog == 0)


# --- quick functions run on the thread that reads ---


def test_a_function_that_was_quick_and_turns_slow_holds_up_nobody(server: ServerProcess) -> None:
    with connect(server.address, carrier="session") as remote:
        for round_ in range(3):
            name = f"turns slow {round_}"
            for _ in range(100):
                assert remote.call("served.wait_if", name, False) == name
            # All in one message, some of them behind the slow one.
            futures = [remote.submit("served.wait_if", name, i == 5) for i in range(20)]
            assert remote.call("served.add", 1) == 2.0
            for i in [*range(5), *range(6, 20)]:
                assert futures[i].result(30) == name
            assert not futures[5].done()
            remote.call("served.open_gate", name)
            assert futures[5].result(30) == name


def test_a_function_that_was_quick_and_calls_the_same_server(server: ServerProcess) -> None:
    with connect(server.address, carrier="session") as remote:
        for _ in range(3):
            for _ in range(100):
                remote.call("served.call_if", server.address, False)
            futures = [remote.submit("served.call_if", server.address, i % 3 == 0) for i in range(12)]
            assert [future.result(30) for future in futures] == [2.0, 0.0, 0.0] * 4


def test_a_session_under_everything_at_once(server: ServerProcess) -> None:
    """Quick, slow, nested, failing, streamed, cancelled and large calls from many threads on one session."""
    seed = random.randrange(10**6)
    print("seed", seed)
    with connect(server.address, carrier="session") as remote:

        def work(i: int) -> int:
            rng = random.Random(seed + i)
            done = 0
            for _ in range(40):
                kind = rng.randrange(7)
                if kind == 0:
                    assert remote.call("served.add", i) == i + 1.0
                elif kind == 1:
                    assert remote.call("served.call_if", server.address, rng.random() < 0.1) in (0.0, 2.0)
                elif kind == 2:
                    with pytest.raises(ValueError, match="bad value"):
                        remote.call("served.raises", "value")
                elif kind == 3:
                    stop = rng.randrange(60)
                    assert list(remote.options(prefetch=rng.randrange(1, 20)).stream("served.count", stop)) == list(
                        range(stop)
                    )
                elif kind == 4:
                    future = remote.submit("served.sleep_for_ever", f"everything {seed}")
                    assert future.cancel()
                elif kind == 5:
                    size = rng.choice([1, 10_000, 3_000_000])
                    assert remote.call("served.fill", size).numel() == size
                else:
                    assert remote.call("served.coroutine", i) == i
                done += 1
            return done

        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(12) as pool:
            assert sum(pool.map(work, range(12))) == 480


def test_threads_with_nothing_to_do_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tensorcall.server.pool._IDLE_SECONDS", 0.01)
    pool, gate = Pool(4, 4, 100), Gate()
    for _ in range(4):
        pool.submit(gate.task)
    eventually(lambda: gate.inside == 4)
    gate.event.set()
    eventually(lambda: pool.threads == 0)
    # Others take their place; none of the tasks that come while threads end is lost.
    for count in range(5, 505):
        pool.submit(gate.task)
        if count % 50 == 0:
            eventually(lambda: pool.threads == 0)
    eventually(lambda: gate.done == 504)
