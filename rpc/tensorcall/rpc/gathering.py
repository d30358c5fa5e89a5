"""All workers wait for each other: gathering an object of each, and the agreement that nobody has a call in flight.

Whoever waits looks now and then whether those live that it waits for: a dead one is named, not waited for.
"""

from __future__ import annotations

import collections
import logging
import threading
import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from tensorcall.rpc import callees, constants, serving
from tensorcall.rpc.outgoing import Call
from tensorcall.wire.calls import Target
from tensorcall.wire.waiting import waiting

if TYPE_CHECKING:
    from tensorcall.rpc.agent import Agent
    from tensorcall.rpc.futures import RpcFuture

_log = logging.getLogger(__name__)

# How often those are looked at that others wait for, in seconds.
_LOOK = 1.0


class AllGatherStates:
    """One gathering, as one worker sees it; torch's name for it."""

    def __init__(self) -> None:
        self.gathered_objects: dict[str, Any] = {}
        self.proceed_signal = threading.Event()


class Gatherings:
    """All gatherings that this worker takes part in."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._numbers: dict[str, int] = {}
        self._states: dict[str, AllGatherStates] = collections.defaultdict(AllGatherStates)

    def clear(self) -> None:
        """Begins anew, with a new world."""
        with self.lock:
            self._numbers.clear()
            self._states.clear()

    def next(self, names: Collection[str]) -> str:
        """Names the next gathering of these workers, the same on all of them."""
        joined = "".join(sorted(names))
        with self.lock:
            number = self._numbers.get(joined, 0)
            self._numbers[joined] = number + 1
        return f"{joined}{number}"

    def state(self, sequence: str) -> AllGatherStates:
        """Returns a gathering."""
        with self.lock:
            return self._states[sequence]

    def forget(self, sequence: str) -> AllGatherStates | None:
        """Ends a gathering."""
        with self.lock:
            return self._states.pop(sequence, None)

    def report(self, sequence: str, name: str, obj: Any, names: Collection[str]) -> None:
        """Takes a worker's object; on the leader."""
        with self.lock:
            if name not in names:
                raise AssertionError(f"{name} is not expected by leader.")
            state = self._states[sequence]
            if name in state.gathered_objects:
                raise AssertionError(f"{name} reported intent sequence id {sequence} twice. ")
            state.gathered_objects[name] = obj
            if set(names) == state.gathered_objects.keys():
                state.proceed_signal.set()

    def proceed(self, sequence: str, objects: dict[str, Any]) -> None:
        """Takes everybody's objects; on the followers."""
        state = self.state(sequence)
        if state.proceed_signal.is_set():
            raise AssertionError(f"Termination signal sequence id {sequence} got set twice.")
        state.gathered_objects = objects
        state.proceed_signal.set()


gatherings = Gatherings()


def submit(agent: Agent, name: str, func: Callable[..., Any], args: tuple[Any, ...], timeout: float) -> RpcFuture:
    """Calls one of our own functions on another worker; it is not counted among the user's calls."""
    made = callees.callee(func, args, {})
    call = Call(Target(function=serving.RUN), (made.func, made.args, dict(made.kwargs)), message="INTERNAL")
    return agent.outgoing.submit(agent.member(name), call, agent.seconds(timeout), serving.INTERNAL)


def gather(
    agent: Agent,
    obj: Any,
    names: set[str],
    timeout: float,
    report: Callable[..., Any],
    proceed: Callable[..., Any],
) -> dict[str, Any]:
    """Gives every worker everybody's object.

    Args:
        agent: this worker.
        obj: its object.
        names: the workers that take part; the first of them in order leads.
        timeout: in torch's terms: -1 takes the default for each call and waits for ever for the others; 0 waits for
            ever for both.
        report: what followers call on the leader.
        proceed: what the leader calls on the followers.

    Raises:
        RuntimeError: one of them is gone, or it took too long.
    """
    leader, me = min(names), agent.get_worker_info().name
    sequence = gatherings.next(names)
    if timeout == constants.UNSET_RPC_TIMEOUT:
        per_call, patience = agent.rpc_timeout, None
    else:
        per_call, patience = timeout, timeout or None
    state = gatherings.state(sequence)
    try:
        if me == leader:
            report(sequence, me, obj, names)
            _await(agent, state, patience, lambda: names - set(state.gathered_objects))
            _broadcast(agent, sequence, state, names - {leader}, per_call, proceed)
        else:
            submit(agent, leader, report, (sequence, me, obj, names), per_call).wait()
            _await(agent, state, patience, lambda: {leader})
    finally:
        gatherings.forget(sequence)
    return state.gathered_objects


def _broadcast(
    agent: Agent, sequence: str, state: AllGatherStates, followers: set[str], per_call: float, proceed: Any
) -> None:
    told = {name: submit(agent, name, proceed, (sequence, state.gathered_objects), per_call) for name in followers}
    failed: list[tuple[str, Exception]] = []
    for name, future in told.items():
        try:
            future.wait()
        except Exception as error:
            failed.append((name, error))
    if failed:
        raise RuntimeError(
            f"Followers {[name for name, _ in failed]} timed out in _all_gather after {per_call:.2f} seconds. "
            f"The first exception is {failed[0][1]}"
        ) from failed[0][1]


def _await(
    agent: Agent, state: AllGatherStates, patience: float | None, missing: Callable[[], Collection[str]]
) -> None:
    began = time.monotonic()
    with waiting():
        while True:
            step = _LOOK if patience is None else min(_LOOK, began + patience - time.monotonic())
            if state.proceed_signal.wait(max(0.0, step)):
                return
            suspects = sorted(missing())
            if patience is not None and time.monotonic() >= began + patience:
                raise RuntimeError(
                    f"timed out in _all_gather after {patience:.2f} seconds: still waiting for {', '.join(suspects)}"
                )
            try:
                agent.check_alive(suspects)
            except RuntimeError:
                # It may have had its say just before it left.
                if state.proceed_signal.is_set():
                    return
                raise


def join(agent: Agent, timeout: float, gather_all: Callable[..., dict[str, Any]]) -> None:
    """Waits until no worker has a call of a user in flight, and none can come to make one by another's call.

    Each waits until it has none, and tells how many it has made so far. If in two rounds all tell the same, nobody has
    begun one since the first: it would have been in flight, or would have been counted.
    """
    before: dict[str, Any] | None = None
    while True:
        agent.wait_idle(timeout or None)
        totals = gather_all(agent.totals(), timeout=timeout)
        if totals == before:
            return
        before = totals
