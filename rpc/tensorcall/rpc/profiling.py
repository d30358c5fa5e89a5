"""Profiles of calls: what torch's legacy autograd profiler shows of a call, and of what it did on the other worker.

As in torch, a call is an event named `rpc_sync#function(caller -> callee)`, and what the function did on the other
worker are events named after that: `…#remote_op: aten::add`. `torch.profiler` (Kineto) records no calls; nor does it in
torch.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.autograd.profiler import record_function
from torch.autograd.profiler_util import FunctionEvent

from tensorcall.rpc import recording
from tensorcall.rpc.futures import RpcFuture
from tensorcall.rpc.recording import Event, Settings

_C: Any = torch._C

REMOTE_OP = "#remote_op: "

_quiet = threading.local()


def should_profile() -> bool:
    """Tells whether calls of this thread are to be recorded."""
    return bool(
        _C._autograd._profiler_enabled()
        and _C._autograd._profiler_type() == _C._profiler.ActiveProfilerType.LEGACY
        and not getattr(_quiet, "on", False)
    )


def build_key(exec_type: Any, func_name: str, caller: str, callee: str) -> str:
    """Names a call as torch does; `exec_type` is an RPCExecMode."""
    return f"rpc_{exec_type.value}#{func_name}({caller} -> {callee})"


class Span:
    """A call that is being recorded."""

    def __init__(self, key: str, record: Any) -> None:
        self._key = key
        self._record = record
        self._session = recording.current_session()
        self._began = time.perf_counter()
        self._token = secrets.token_hex(16)

    def wrap(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], *, keep: bool = False
    ) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Gives the function to send instead, and its arguments: it is recorded while it runs.

        Args:
            func: the function.
            args: its arguments.
            kwargs: the same by name.
            keep: the result stays on the other worker; what was recorded is fetched by `fetch`.
        """
        settings = self._session.settings if self._session else Settings()
        if keep:
            return recording.run_and_keep, (self._token, settings, func, args, kwargs)
        return recording.run, (settings, func, args, kwargs)

    def finish(self, future: Any) -> Any:
        """Gives a future of the call's result, made of the future of what `wrap`'s function returned."""
        result = RpcFuture()
        ended = self._ended()

        def done(call: Any) -> None:
            error = profiled = None
            try:
                profiled = call.value()
            except BaseException as raised:
                error = raised
            else:
                self._add(profiled.events)
            # The event ends first, so that who has waited for the call finds it in the profile.
            ended.set_result(None)
            if error is not None:
                result.fail(error)
            elif profiled is not None:
                result.resolve(profiled.value)

        future.add_done_callback(done)
        return result

    def fetch(self, created: Any, rpc_async: Callable[..., Any], owner: Any) -> Any:
        """Gives a future that is done when a call that `keep`s its result was recorded.

        Args:
            created: a future that is done when the value was made.
            rpc_async: what calls the owner.
            owner: the worker that owns the value.
        """
        result = RpcFuture()
        ended = self._ended()

        def end() -> None:
            ended.set_result(None)
            result.resolve(None)

        def take(future: Any) -> None:
            with contextlib.suppress(Exception):
                self._add(future.value())
            end()

        def ask(future: Any) -> None:
            try:
                future.value()
                with unprofiled():
                    asked = rpc_async(owner, recording.take_kept, args=(self._token,))
            except Exception:
                # There is no value, or nobody to ask: the call has ended, and nothing is known of it.
                end()
            else:
                asked.add_done_callback(take)

        created.add_done_callback(ask)
        return result

    def _ended(self) -> Any:
        """Gives a future that ends the event when it is done."""
        future: Any = torch.futures.Future()
        self._record._call_end_callbacks_on_future(future)
        return future

    def _add(self, events: list[Event]) -> None:
        session = self._session
        if session is None:
            return
        offset = (self._began - session.began) * 1e6
        session.remote.extend(_remote_event(event, self._key, offset) for event in events)


@contextlib.contextmanager
def span(exec_type: Any, func_name: str, caller: str, callee: str) -> Iterator[Span | None]:
    """Records a call if this thread is being profiled; gives None if not.

    The event ends with the future that `Span.finish` or `Span.fetch` gives.
    """
    if not should_profile():
        yield None
        return
    key = build_key(exec_type, func_name, caller, callee)
    with record_function(key) as record:
        yield Span(key, record)


@contextlib.contextmanager
def unprofiled() -> Iterator[None]:
    """Calls that are made inside are not recorded: they are ours, not the user's."""
    before = getattr(_quiet, "on", False)
    _quiet.on = True
    try:
        yield
    finally:
        _quiet.on = before


def _remote_event(event: Event, key: str, offset: float) -> FunctionEvent:
    made: Any = FunctionEvent
    name = f"{key}{REMOTE_OP}{event.name}"
    result: FunctionEvent = made(
        id=0,
        node_id=event.node_id,
        name=name,
        trace_name=name,
        thread=event.thread,
        start_us=event.start + offset,
        end_us=event.end + offset,
        is_async=event.is_async,
        is_remote=True,
        is_legacy=True,
        **event.more,
    )
    return result
