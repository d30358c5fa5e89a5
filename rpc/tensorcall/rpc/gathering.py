"""All workers wait for each other: gathering an object of each, and the agreement that nobody has a call in flight.

Whoever waits looks now and then whether those live that it waits for: a dead one is named, not waited for.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from tensorcall.rpc import callees, constants, errors, serving
from tensorcall.rpc.agent import PING_SECONDS, when_done
from tensorcall.rpc.outgoing import Call
from tensorcall.wire.calls import Target
from tensorcall.wire.waiting import waiting

if TYPE_CHECKING:
    from tensorcall.rpc.agent import Agent
    from tensorcall.rpc.futures import RpcFuture

_log = logging.getLogger(__name__)

# How often those are looked at that others wait for, in seconds.
_LOOK = 1.0
# How long the leader waits for those to listen whom it tells that it gives up.
_LAST_WORDS_SECONDS = 1.0
# What is left for a call when no time is left: 0 would be for ever.
_LEAST_SECONDS = 0.001


class AllGatherStates:
    """One gathering, as one worker sees it; torch's name for it."""

    def __init__(self) -> None:
        self.gathered_objects: dict[str, Any] = {}
        self.proceed_signal = threading.Event()
        # Why the leader has given up.
        self.failed: str | None = None


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

    def fail(self, sequence: str, why: str) -> None:
        """Takes it that the leader has given up; on the followers."""
        state = self.state(sequence)
        if not state.proceed_signal.is_set():
            state.failed = why
            state.proceed_signal.set()


gatherings = Gatherings()


def give_up(sequence: str, why: str) -> None:
    """Ends a gathering that can't succeed; the leader calls it on the followers."""
    gatherings.fail(sequence, why)


class Deadline:
    """Until when something may take."""

    def __init__(self, seconds: float | None) -> None:
        """Begins now; None, 0 or less: it may take for ever."""
        self.seconds = seconds if seconds and seconds > 0 else None
        self._end = time.monotonic() + self.seconds if self.seconds else None

    @property
    def over(self) -> bool:
        """Whether the time has come."""
        return self._end is not None and time.monotonic() >= self._end

    def left(self, forever: float = 0) -> float:
        """Returns how many seconds are left, as a timeout, which is never 0; `forever` if that has no end."""
        return forever if self._end is None else max(_LEAST_SECONDS, self._end - time.monotonic())

    def at_most(self, seconds: float) -> float:
        """Returns how long something may take that takes so many seconds at most."""
        return min(seconds, self.left(seconds))


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
    deadline = Deadline(patience)
    state = gatherings.state(sequence)
    try:
        if me == leader:
            report(sequence, me, obj, names)
            try:
                _await(agent, state, deadline, lambda: names - set(state.gathered_objects))
            except RuntimeError as error:
                _tell(agent, sequence, names - {leader}, str(error))
                raise
            _broadcast(agent, sequence, state, names - {leader}, per_call, deadline, proceed)
        else:
            if not state.proceed_signal.is_set():
                _report(agent, state, leader, per_call, deadline, report, (sequence, me, obj, names))
            _await(agent, state, deadline, lambda: {leader})
            if state.failed is not None:
                raise RuntimeError(f"{leader} has given up: {state.failed}")
    finally:
        gatherings.forget(sequence)
    return state.gathered_objects


def _report(
    agent: Agent,
    state: AllGatherStates,
    leader: str,
    per_call: float,
    deadline: Deadline,
    report: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    told = {leader: submit(agent, leader, report, args, deadline.left(per_call))}
    error = _failures(agent, told, deadline).get(leader)
    # If the leader has given up meanwhile, it has said why.
    if error is None or state.failed is not None:
        return
    if isinstance(error, errors.RpcTimeout):
        raise errors.RpcTimeout(
            f"timed out in _all_gather after {per_call:.2f} seconds: {leader} has not answered: {error}"
        ) from error
    raise error


def _tell(agent: Agent, sequence: str, followers: set[str], why: str) -> None:
    """Tells those who live that this has failed: they need not find out for themselves."""
    # Those who do not answer may wake up; nobody waits for them.
    last_words = [(name, name in agent.silent) for name in followers]
    deadline = Deadline(_LAST_WORDS_SECONDS)
    heard = []
    for name, silent in last_words:
        with contextlib.suppress(RuntimeError):
            ended = when_done(submit(agent, name, give_up, (sequence, why), _LAST_WORDS_SECONDS))
            if not silent:
                heard.append(ended)
    for ended in heard:
        ended.wait(deadline.left())


def _broadcast(
    agent: Agent,
    sequence: str,
    state: AllGatherStates,
    followers: set[str],
    per_call: float,
    deadline: Deadline,
    proceed: Any,
) -> None:
    args = sequence, state.gathered_objects
    told = {name: submit(agent, name, proceed, args, deadline.left(per_call)) for name in followers}
    failed = _failures(agent, told, deadline)
    if failed:
        first = next(iter(failed.values()))
        raise RuntimeError(
            f"Followers {list(failed)} timed out in _all_gather after {per_call:.2f} seconds. "
            f"The first exception is {first}"
        ) from first


def _failures(agent: Agent, calls: dict[str, RpcFuture], deadline: Deadline) -> dict[str, BaseException]:
    """Waits for calls to workers; not for those who are gone. Returns those that failed."""
    failed: dict[str, BaseException] = {}
    pending = {name: when_done(future) for name, future in calls.items()}
    with waiting():
        while pending:
            name, ended = next(iter(pending.items()))
            if ended.wait(_LOOK):
                del pending[name]
                error = calls[name].error
                if error is not None:
                    failed[name] = error
                continue
            suspects = [name for name, ended in pending.items() if not ended.is_set()]
            for name, why in agent.find_dead(suspects, deadline.at_most(PING_SECONDS)).items():
                if not pending[name].is_set():
                    del pending[name]
                    failed[name] = RuntimeError(why)
    return failed


def _await(agent: Agent, state: AllGatherStates, deadline: Deadline, missing: Callable[[], Collection[str]]) -> None:
    with waiting():
        while True:
            if state.proceed_signal.wait(deadline.at_most(_LOOK)):
                return
            suspects = sorted(missing())
            if deadline.over:
                raise RuntimeError(
                    f"timed out in _all_gather after {deadline.seconds:.2f} seconds: still waiting for "
                    f"{', '.join(suspects)}"
                )
            try:
                agent.check_alive(suspects, deadline.at_most(PING_SECONDS))
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
    deadline = Deadline(timeout)
    before: dict[str, Any] | None = None
    while True:
        agent.wait_idle(deadline.left() or None)
        totals = gather_all(agent.totals(), timeout=deadline.left())
        if totals == before:
            return
        before = totals
