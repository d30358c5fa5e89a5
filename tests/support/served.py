"""The functions that the tests' servers expose."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import functools
import gc
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import torch

from tensorcall import wire
from tensorcall.client import connect
from tensorcall.server import current_call, expose
from tensorcall.wire import errors

# What became of calls that nobody waits for: functions count here, tests ask with `happened`.
_happened: Counter[str] = Counter()
_gates: dict[str, threading.Event] = {}
_lock = threading.Lock()


@wire.register(name="served.Point")
@dataclasses.dataclass
class Point:
    x: float
    y: float


@wire.register(name="served.Colour")
class Colour(enum.Enum):
    RED = 1
    GREEN = 2


class Unregistered:
    def __repr__(self) -> str:
        return "an Unregistered"


class Awkward(Exception):
    """Can't be rebuilt from its args, nor be pickled."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")
        self.lock = threading.Lock()
        self.first = first

    def __reduce__(self) -> Any:
        raise RuntimeError("no pickle")


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def gate(name: str) -> threading.Event:
    with _lock:
        return _gates.setdefault(name, threading.Event())


@expose
def noop() -> None:
    return None


@expose
def echo(*args: Any, **kwargs: Any) -> Any:
    """Returns what it is given: one argument alone, or all of them."""
    if len(args) == 1 and not kwargs:
        return args[0]
    return (args, kwargs) if kwargs else args


@expose
def add(a: float, b: float = 1.0, *, scale: float = 1.0) -> float:
    """Adds.

    More than one line of doc.
    """
    return (a + b) * scale


@expose(name="team.named")
def given_a_name() -> str:
    return "named"


@expose
def keywords(timeout: str, call_id: str, pickle: str, function: str, self: str) -> list[str]:
    return [timeout, call_id, pickle, function, self]


@expose
def tensor_sum(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.sum()


@expose
def fill(size: int) -> torch.Tensor:
    return torch.arange(size, dtype=torch.uint8)


@expose
def add_in_place(tensor: torch.Tensor) -> torch.Tensor:
    tensor += 1
    return tensor


@expose
def array(array: np.ndarray) -> tuple[str, np.ndarray]:
    return type(array).__name__, array * 2


@expose
def happened(name: str) -> int:
    return _happened[name]


@expose
def open_gate(name: str) -> None:
    gate(name).set()


@expose
def wait_for_gate(name: str) -> str:
    """Holds its thread until the gate opens."""
    _happened[f"{name} waits"] += 1
    assert gate(name).wait(60), "nobody opened the gate"
    _happened[f"{name} passed"] += 1
    return name


@expose
def until_cancelled(name: str) -> None:
    """Computes on a thread until it is told to stop."""
    _happened[f"{name} runs"] += 1
    call = current_call()
    end = time.monotonic() + 60
    try:
        while time.monotonic() < end:
            call.check()
            time.sleep(0.002)
    except errors.Cancelled:
        _happened[f"{name} cancelled"] += 1
        raise
    except errors.DeadlineExceeded:
        _happened[f"{name} expired"] += 1
        raise


@expose
async def coroutine(value: Any) -> Any:
    await asyncio.sleep(0)
    return value


@expose
async def sleep_for_ever(name: str) -> None:
    _happened[f"{name} runs"] += 1
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        _happened[f"{name} cancelled"] += 1
        raise


@expose
async def coroutine_that_exits() -> None:
    raise SystemExit(3)


@expose
def count(stop: int, name: str = "") -> Iterator[int]:
    try:
        for i in range(stop):
            if name:
                _happened[f"{name} made"] += 1
            yield i
    finally:
        if name:
            _happened[f"{name} closed"] += 1


@expose
async def count_async(stop: int, name: str = "") -> AsyncIterator[int]:
    try:
        for i in range(stop):
            await asyncio.sleep(0)
            yield i
    finally:
        if name:
            _happened[f"{name} closed"] += 1


@expose
async def stall_async(name: str) -> AsyncIterator[int]:
    try:
        # Within: a caller who leaves at once finds the generator still here.
        yield 1
        await asyncio.sleep(3600)
    finally:
        _happened[f"{name} closed"] += 1


@expose
def tensors(count: int, size: int) -> Iterator[torch.Tensor]:
    for i in range(count):
        yield torch.full((size,), i, dtype=torch.uint8)


@expose
def fail_after(items: int) -> Iterator[int]:
    yield from range(items)
    raise LookupError("no more")


@expose
def deadline() -> float | None:
    return current_call().time_remaining()


@expose
def who() -> tuple[str, str, str]:
    call = current_call()
    return call.function, call.peer.address, call.call_id


@expose
def remote_type(values: list[Any]) -> list[str]:
    return [f"{type(value).__module__}.{type(value).__qualname__}" for value in values]


@expose
def unsendable() -> object:
    return {"inside": [1, Unregistered()]}


@expose
def raises(kind: str) -> None:
    """Raises what the tests of errors ask for."""
    _RAISERS[kind]()


def _value_error() -> None:
    error = ValueError("bad value", 7)
    error.hint = "try 8"  # type: ignore[attr-defined]
    if hasattr(error, "add_note"):
        error.add_note("noted")
    raise error from KeyError("why")


def _awkward() -> None:
    raise Awkward(1, 2)


def _unprintable() -> None:
    raise Unprintable


def _long() -> None:
    raise ValueError("é" * 5_000_000)


def _chain() -> None:
    error: Exception = ValueError("0")
    for i in range(1, 201):
        following = ValueError(str(i))
        following.__cause__ = error
        error = following
    raise error


def _group() -> None:
    raise ExceptionGroup("several", [ValueError("one"), ExceptionGroup("more", [KeyError("two")])])  # noqa: F821


def _non_ascii() -> None:
    raise ValueError("日本語 \udcff ✓")


def _keyboard_interrupt() -> None:
    raise KeyboardInterrupt


def _system_exit() -> None:
    raise SystemExit(1)


def _deep() -> None:
    _deep()


def _stop_iteration() -> None:
    raise StopIteration(5)


def _memory() -> None:
    raise MemoryError("much")


def _os_error() -> None:
    open("/nonexistent/file")  # noqa: SIM115


def _not_exposed() -> None:
    raise errors.NotExposed("raised by the function itself")


def _type_error() -> None:
    len(5)  # type: ignore[arg-type]


_RAISERS = {
    "value": _value_error,
    "awkward": _awkward,
    "unprintable": _unprintable,
    "long": _long,
    "chain": _chain,
    "group": _group,
    "non-ascii": _non_ascii,
    "keyboard interrupt": _keyboard_interrupt,
    "system exit": _system_exit,
    "deep": _deep,
    "stop iteration": _stop_iteration,
    "memory": _memory,
    "os": _os_error,
    "not exposed": _not_exposed,
    "type": _type_error,
}


@expose
def call_back(address: str, depth: int) -> int:
    """Calls itself on the same server until the depth is used up; returns how deep it went."""
    if depth == 0:
        return 0
    with connect(address) as remote:
        return 1 + remote.call("served.call_back", address, depth - 1)


@expose
def raise_through(address: str) -> None:
    """Fails in a call of its own."""
    with connect(address) as remote:
        remote.call("served.raises", "value")


@expose
class Counted:
    """Counts."""

    def __init__(self, start: int = 0) -> None:
        self.value = start

    def increase(self, by: int = 1) -> int:
        """Counts on."""
        self.value += by
        return self.value

    def _hidden(self) -> None: ...


def not_exposed() -> None: ...


@expose
def rss() -> int:
    """The most memory that this process ever had, in bytes."""
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    raise AssertionError


@expose
def wait_if(name: str, waits: bool) -> str:
    """Is quick, or holds its thread until the gate opens."""
    if waits:
        return wait_for_gate(name)
    return name


@expose
def call_if(address: str, calls: bool) -> float:
    """Is quick, or makes a call of its own."""
    if not calls:
        return 0.0
    with connect(address) as remote:
        result: float = remote.call("served.add", 1)
        return result


@expose
def ends(tensor: torch.Tensor) -> tuple[int, int, int]:
    """Tells the size of a tensor, and what it begins and ends with."""
    return tensor.numel(), int(tensor[0]), int(tensor[-1])


@expose
def rows(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    yield from tensor


@expose
def fail_with(tensor: torch.Tensor) -> None:
    """Fails while it holds a tensor."""
    held = tensor + 1
    raise ValueError(f"held {held.numel()}")


@expose
def resident() -> int:
    """The memory of this process, in bytes."""
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith("VmRSS"):
                return int(line.split()[1]) * 1024
    raise AssertionError


@wire.register(name="served.Broken")
@dataclasses.dataclass
class Broken:
    """Can't be sent: its attribute raises."""

    x: int = 0

    def __getattribute__(self, name: str) -> Any:
        if name == "x":
            raise RuntimeError("no x")
        return super().__getattribute__(name)


@expose
def broken() -> Broken:
    return Broken()


@expose
async def broken_later() -> Broken:
    return Broken()


@expose
def exits_midway() -> Iterator[int]:
    yield 1
    raise SystemExit(4)


@expose
def fail_rows(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Gives one row, and fails while it holds the tensor."""
    yield tensor[0].clone()
    raise ValueError(f"held {tensor.numel()}")


@expose
def blob(size: int) -> bytes:
    """Makes a large result that is no tensor, and so goes in one message."""
    return bytes(size)


@expose
def collected() -> int:
    """The same after a garbage collection."""
    gc.collect()
    return resident()


# --- references ---


@expose
class Cell:
    """Holds a value."""

    def __init__(self, value: Any = None, name: str = "") -> None:
        self.value = value
        self._name = name
        if name:
            _happened[f"{name} made"] += 1

    def get(self) -> Any:
        """Returns the value."""
        return self.value

    def set(self, value: Any) -> None:
        """Changes the value."""
        self.value = value

    def fail(self) -> None:
        raise LookupError("the cell fails")

    async def get_later(self) -> Any:
        await asyncio.sleep(0)
        return self.value

    def items(self, stop: int) -> Iterator[int]:
        yield from range(stop)

    def another(self, value: Any) -> Any:
        """Returns a reference to another cell."""
        return current_call().own(Cell(value))

    @property
    def secret(self) -> str:
        raise AssertionError("a property's code ran")

    def _hidden(self) -> str:
        return "hidden"

    def __call__(self, by: int) -> int:
        return int(self.value) + by

    def __del__(self) -> None:
        if self._name:
            _happened[f"{self._name} gone"] += 1


class Base:
    """Not exposed."""

    def inherited(self) -> int:
        return 1


@expose
class Derived(Base):
    def own(self) -> int:
        return self.inherited()


@expose
def cell(value: Any, name: str = "") -> Cell:
    """Makes a cell, which can't be sent."""
    return Cell(value, name)


@expose
async def cell_later(value: Any) -> Cell:
    await asyncio.sleep(0)
    return Cell(value)


@expose
def cell_behind_gate(name: str, value: Any) -> Cell:
    wait_for_gate(name)
    return Cell(value, name)


@expose
def refer(values: list[Any]) -> list[Any]:
    """Returns references to new cells of these values."""
    return [current_call().own(Cell(value)) for value in values]


@expose
def refer_in_turn(count: int) -> Iterator[Any]:
    for i in range(count):
        yield current_call().own(Cell(i))


@expose
def value_of(rref: Any) -> Any:
    """Takes a reference and returns what the cell holds."""
    return rref.to_here().value


@expose
def about(rref: Any) -> tuple[bool, str, str, bool]:
    return rref.is_owner(), rref.owner_name(), str(rref.rref_id()), rref.confirmed_by_owner()


@expose
def linear() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Linear(2, 3)


@expose
def ones(size: int) -> torch.Tensor:
    return torch.ones(size)


@expose
def unexposed() -> Base:
    return Base()


@expose
def refer_unreadable() -> Any:
    """Returns a reference, and beside it what its caller can't read."""
    _register_secret()
    return [current_call().own(Cell(1)), Secret(1)]


@dataclasses.dataclass
class Secret:
    value: int


@functools.cache
def _register_secret() -> None:
    # Only where it is called: other tests import this module in the caller's process, too.
    wire.register(name="served.Secret")(Secret)


_kept: dict[str, Any] = {}


@expose
def here(rref: Any) -> Any:
    """Fetches what a reference stands for."""
    return rref.to_here()


@expose
def get_of(rref: Any) -> Any:
    """Calls a method of what a reference stands for, wherever that is."""
    return rref.rpc_sync().get()


@expose
def keep(name: str, rref: Any) -> None:
    """Keeps a reference; the next one of that name takes its place, None just ends it."""
    _kept[name] = rref


@expose
def kept(name: str) -> Any:
    return _kept[name]


@expose
def value_in(rref: Any) -> Any:
    """Takes a reference to a cell of any server and returns what it holds."""
    return rref.rpc_sync().get()
