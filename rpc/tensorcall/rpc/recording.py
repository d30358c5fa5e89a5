"""Records what a function does on this worker, for profiles on others and for server-wide ones.

torch's profiler takes what other workers recorded through its C++ agent alone, so two functions of
torch.autograd.profiler_legacy are wrapped here: the one that starts a profile, to know its settings, and the one that
reads its records, to add what came from other workers.
"""

from __future__ import annotations

import functools
import itertools
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch.autograd import profiler_legacy
from torch.autograd.profiler_util import FunctionEvent

from tensorcall.rpc import functions

_legacy: Any = profiler_legacy
_C: Any = torch._C

# How many recordings wait to be fetched, at most; a caller that died never comes for its own.
_KEPT = 1024


class Settings(NamedTuple):
    """What a profile records, of the settings that matter on another worker."""

    record_shapes: bool = False
    profile_memory: bool = False
    with_stack: bool = False
    with_flops: bool = False
    with_modules: bool = False


class Event(NamedTuple):
    """An event as it travels; times in microseconds since the function was started."""

    name: str
    node_id: int
    thread: int
    start: float
    end: float
    is_async: bool
    more: dict[str, Any]


class Profiled(NamedTuple):
    """A result with what was recorded while it was made."""

    value: Any
    events: list[Event]


@dataclass(slots=True, eq=False)
class Session:
    """A profile that is being recorded in this process."""

    settings: Settings
    thread: int
    began: float
    remote: list[FunctionEvent] = field(default_factory=list)


_sessions: list[Session] = []
_kept: OrderedDict[str, list[Event]] = OrderedDict()
_lock = threading.Lock()


def current_session() -> Session | None:
    """Returns the profile that this thread is being recorded by."""
    me = threading.get_ident()
    with _lock:
        mine = [session for session in _sessions if session.thread == me]
        # TorchScript takes a profile along to other threads.
        found = mine or _sessions
        return found[-1] if found else None


# Functions that run on behalf of a caller that is being profiled.


def run(settings: Settings, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Profiled:
    """Runs a function and gives what was recorded with its result."""
    value, events = _record(settings, func, args, kwargs)
    return Profiled(value, [_event(event) for event in events])


def run_and_keep(
    token: str, settings: Settings, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """Runs a function whose result stays here; what was recorded waits for `take_kept`."""
    profiled = run(settings, func, args, kwargs)
    with _lock:
        _kept[token] = profiled.events
        while len(_kept) > _KEPT:
            _kept.popitem(last=False)
    return profiled.value


def take_kept(token: str) -> list[Event]:
    """Gives what `run_and_keep` recorded."""
    with _lock:
        return _kept.pop(token, [])


def _record(
    settings: Settings, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Any, list[FunctionEvent]]:
    from tensorcall.rpc import callees

    with _legacy.profile(**settings._asdict()) as profile:
        result = callees.run_unprofiled(func, args, kwargs)
        if functions.is_async(func):
            # A profile belongs to its thread, so the thread waits, which it doesn't else.
            result = result.wait()
    return result, list(profile.function_events)


def _event(event: Any) -> Event:
    more = {
        "input_shapes": event.input_shapes,
        "scope": event.scope,
        "cpu_memory_usage": event.cpu_memory_usage,
        "stack": event.stack,
        "sequence_nr": event.sequence_nr,
        "flops": event.flops,
    }
    times = event.time_range
    return Event(event.name, event.node_id, event.thread, times.start, times.end, event.is_async, more)


# Server-wide profiles.


class ServerWide:
    """Records every call that others make to this worker."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._recorded: list[list[FunctionEvent]] = []

    def start(self) -> None:
        """Begins with calls that arrive from now on."""
        with _lock:
            _server_wide.append(self)

    def stop(self) -> list[list[FunctionEvent]]:
        """Ends, and gives what was recorded: one list a call."""
        with _lock:
            if self in _server_wide:
                _server_wide.remove(self)
            return list(self._recorded)

    def add(self, events: list[FunctionEvent]) -> None:
        """Takes what a call did."""
        with _lock:
            self._recorded.append(events)


_server_wide: list[ServerWide] = []


def server_wide() -> bool:
    """Tells whether calls are being recorded server-wide."""
    return bool(_server_wide)


def run_server_wide(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Runs a function and gives what was recorded to all profiles that are on as it begins.

    A function that answers later is recorded until it returned its future.
    """
    from tensorcall.rpc import callees

    with _lock:
        profiles = list(_server_wide)
    if func in (run, run_and_keep) or _C._autograd._profiler_enabled():
        # The caller records it already, and a thread has one profile.
        return callees.run_unprofiled(func, args, kwargs)
    settings = Settings(*(any(values) for values in zip(*(each.settings for each in profiles), strict=True)))
    with _legacy.profile(**settings._asdict()) as profile:
        result = callees.run_unprofiled(func, args, kwargs)
    events = sorted(profile.function_events, key=_order)
    for each in profiles:
        each.add(events)
    return result


def _order(event: Any) -> tuple[float, float]:
    return event.time_range.start, -event.time_range.end


# Into torch's profiler.


@functools.cache
def install() -> None:
    """Has torch's legacy profiler tell its settings, and take what other workers recorded; once a process."""
    start, parse = _legacy.profile._start_trace, _legacy._parse_legacy_records

    @functools.wraps(start)
    def start_and_tell(profile: Any) -> None:
        settings = Settings(*(getattr(profile, name) for name in Settings._fields))
        # Before torch's clock starts, so that what other workers do comes after the call that made them do it.
        session = Session(settings, threading.get_ident(), time.perf_counter())
        start(profile)
        with _lock:
            _sessions.append(session)

    @functools.wraps(parse)
    def parse_with_remote(records: Any) -> list[FunctionEvent]:
        session = _end_session()
        events: list[FunctionEvent] = parse(records)
        if session is not None and session.remote:
            events = sorted(itertools.chain(events, session.remote), key=_order)
        return events

    _legacy.profile._start_trace = start_and_tell
    _legacy._parse_legacy_records = parse_with_remote


def _end_session() -> Session | None:
    me = threading.get_ident()
    with _lock:
        for session in reversed(_sessions):
            if session.thread == me:
                _sessions.remove(session)
                return session
    return None
