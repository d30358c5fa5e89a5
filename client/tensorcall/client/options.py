"""What may be set for calls. Apart from the functions' own arguments, whose names they never take."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from tensorcall.wire.limits import MAX_CALL_ID_BYTES

# Longer deadlines than this (ten years) gRPC can't count.
_MAX_GRPC_SECONDS = 10 * 365 * 86_400.0
_MAX_PREFETCH = 2**31 - 1


def seconds(name: str, value: object) -> float:
    """Returns a number of seconds, maybe infinite.

    Raises:
        TypeError, ValueError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} is a number of seconds, not {value!r}")
    try:
        number = float(value)
    except OverflowError:
        number = -math.inf if value < cast("numbers.Real", 0) else math.inf
    if math.isnan(number):
        raise ValueError(f"{name} is a number of seconds, not NaN")
    return number


def grpc_timeout(timeout: float | None) -> float | None:
    """Returns a timeout as gRPC can count it."""
    return None if timeout is None else min(timeout, _MAX_GRPC_SECONDS)


@dataclass(frozen=True, slots=True)
class CallOptions:
    """Settings of calls; see `Remote.options`.

    Raises:
        TypeError, ValueError: a setting is of another type, or out of bounds.
    """

    timeout: float | None = None
    """How many seconds a call may take; None, or infinity: for ever."""

    call_id: str = ""
    """Any unique string of at most 128 bytes: the server then runs the call at most once. For one call only."""

    pickle: bool = False
    """Send arguments pickled, and take a pickled result. Only where the server allows it, and only from a server that
    you trust: reading a pickle runs what it says."""

    prefetch: int = 16
    """How many items of a stream may be under way or waiting here before the server pauses the function."""

    progress: Callable[[int, int], object] | None = None
    """Called as large tensors leave in chunks, with the bytes that have left and the bytes in all of the call. On a
    thread of the connection: it must be quick."""

    def __post_init__(self) -> None:
        if self.timeout is not None:
            timeout = seconds("timeout", self.timeout)
            object.__setattr__(self, "timeout", None if timeout == math.inf else timeout)
        if not isinstance(self.call_id, str):
            raise TypeError(f"call_id is a str, not {self.call_id!r}")
        if (length := len(self.call_id.encode("utf-8", "surrogatepass"))) > MAX_CALL_ID_BYTES:
            raise ValueError(f"call_id has at most {MAX_CALL_ID_BYTES} bytes of UTF-8, not {length}")
        if not isinstance(self.pickle, bool):
            raise TypeError(f"pickle is True or False, not {self.pickle!r}")
        if isinstance(self.prefetch, bool) or not isinstance(self.prefetch, int):
            raise TypeError(f"prefetch is an int, not {self.prefetch!r}")
        if not 1 <= self.prefetch <= _MAX_PREFETCH:
            raise ValueError(f"prefetch is a number of items from 1 to {_MAX_PREFETCH:,}, not {self.prefetch}")
        if self.progress is not None and not callable(self.progress):
            raise TypeError(f"progress is something to call, or None, not {self.progress!r}")
