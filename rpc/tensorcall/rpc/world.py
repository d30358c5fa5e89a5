"""Who is in the world, told through the store of torch's rendezvous.

Each worker starts its server first and then writes down where it is. The keys lie under a prefix that counts how often
this process has called init_rpc, so that it may be called again after shutdown. For its secret see `world_secret`.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tensorcall.rpc import world_secret
from tensorcall.rpc.worker_info import WorkerInfo

_STATIC, _SIZE, _COUNT = "rpcIsStaticGroup", "size", "members"
# Why a static world can't be.
_TROUBLE = "trouble"
# How long it is believed that somebody is still there, in a world where they come and go.
_BELIEVED_SECONDS = 1.0
_MIXED = "RPC group mixes statically and dynamically initialized members which is not supported."

if TYPE_CHECKING:
    from tensorcall.rpc.agent import Agent
    from tensorcall.rpc.options import TensorPipeRpcBackendOptions


@dataclass(frozen=True, slots=True)
class Member:
    """One worker, as the others know it."""

    name: str
    """Its name."""
    id: int
    """Its rank, or its number in a world without ranks."""
    address: str
    """Where its server is reached, HOST:PORT."""
    incarnation: int
    """This start of its process."""

    @property
    def info(self) -> WorkerInfo:
        """Its name and id."""
        return WorkerInfo(self.name, self.id)

    def encode(self) -> str:
        """Writes it down for the others."""
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: bytes | str) -> Member:
        """Reads what another one has written down."""
        return cls(**json.loads(text))


class World(ABC):
    """The workers that know each other. Safe from any thread."""

    is_static: bool = True
    """Whether its members are the same from init_rpc to shutdown."""
    store: Any = None
    """The store of the rendezvous, if there is one."""
    secret: str = ""
    """What its members show each other."""

    @abstractmethod
    def join(self, me: Member) -> None:
        """Makes this worker known; in a static world, waits for all others.

        Raises:
            RuntimeError: the name or id is taken, or the others did not come.
        """

    @abstractmethod
    def members(self) -> list[Member]:
        """Returns who is in the world now, this worker too, by id."""

    def find(self, key: str | int) -> Member | None:
        """Finds a worker by its name or id; None if there is none."""
        for member in self.members():
            if key in (member.name, member.id):
                return member
        return None

    @abstractmethod
    def leave(self) -> None:
        """Takes this worker off the list. Idempotent."""


class StaticWorld(World):
    """A world of fixed size whose members have ranks."""

    def __init__(self, store: Any, rank: int, size: int, timeout: float, init_method: str = "") -> None:
        """Takes part in a world's secret.

        Args:
            store: where all of it is written down, below a prefix of its own.
            rank: this worker's.
            size: how many there are.
            timeout: how many seconds to wait for the others; 0: for ever.
            init_method: where the workers met to share the store; empty: unknown.

        Raises:
            RuntimeError: the others have another kind, size or secret.
        """
        self.store = store
        self._rank = rank
        self._size = size
        self._timeout = timeout
        self._by_name: dict[str, Member] = {}
        self._by_id: dict[int, Member] = {}
        if not 0 <= rank < size:
            raise RuntimeError(f"rank {rank} is not in a world of {size}: ranks go from 0 to {size - 1}")
        _agree(store, _STATIC, "1")
        first = world_secret.agreed(store, _SIZE, str(size))
        if first != str(size):
            # For those who wait, too.
            trouble = f"the workers disagree about their number: rank {rank} has world_size={size}, another has {first}"
            tell_trouble(store, trouble)
            raise RuntimeError(trouble)
        try:
            self.secret = world_secret.of_ranks(store, init_method)
        except RuntimeError as error:
            tell_trouble(store, f"rank {rank} can't join: {error}")
            raise

    def join(self, me: Member) -> None:
        """Makes this worker known and waits for all others."""
        self.store.set(f"worker/{me.id}", me.encode())
        end = time.monotonic() + self._timeout if self._timeout else None
        members = [Member.decode(self._get(f"worker/{number}", end)) for number in range(self._size)]
        first: dict[str, int] = {}
        for member in members:
            other = first.setdefault(member.name, member.id)
            if other != member.id:
                raise RuntimeError(
                    f"RPC worker name {member.name} is not unique. Workers {other} and {member.id} cannot share the "
                    "same name."
                )
        self._by_id = {member.id: member for member in members}
        self._by_name = {member.name: member for member in members}

    def _get(self, key: str, end: float | None) -> bytes:
        """Waits for what another worker writes down."""
        trouble = ""
        try:
            while True:
                left = 10.0 if end is None else end - time.monotonic()
                # In pieces, so that Ctrl-C gets through.
                if _wait(self.store, key, min(left, 0.5)):
                    return bytes(self.store.get(key))
                trouble = told_trouble(self.store)
                if trouble:
                    break
                if end is not None and time.monotonic() >= end:
                    break
        except RuntimeError as error:
            raise RuntimeError(f"the store of the rendezvous failed: {error}{self._who_is_missing()}") from error
        raise RuntimeError(trouble or f"not all workers came within {self._timeout:g} s{self._who_is_missing()}")

    def _who_is_missing(self) -> str:
        try:
            missing = [str(rank) for rank in range(self._size) if not self.store.check([f"worker/{rank}"])]
        except RuntimeError:
            return ""
        return f"; waiting for rank {', '.join(missing)}" if missing else ""

    def members(self) -> list[Member]:
        """Returns all workers by rank."""
        return list(self._by_id.values())

    def find(self, key: str | int) -> Member | None:
        """Finds a worker by its name or rank."""
        return self._by_name.get(key) if isinstance(key, str) else self._by_id.get(key)

    def leave(self) -> None:
        """Does nothing: the others leave, too."""


class GrowingWorld(World):
    """A world without a size, whose members have ranks, and come and go as they like: torch's dynamic group."""

    is_static = False

    def __init__(self, store: Any, rank: int, init_method: str = "") -> None:
        """Takes part in a world's secret.

        Args:
            store: where all of it is written down, below a prefix of its own.
            rank: this worker's id.
            init_method: where the workers met to share the store; empty: unknown.

        Raises:
            RuntimeError: the others have another kind or secret.
        """
        self.store = store
        self._rank = rank
        self._place = 0
        self._lock = threading.Lock()
        # Places that were read, and the members there; None for those who left.
        self._read: dict[int, Member | None] = {}
        # When it was last looked whether they had left.
        self._looked: dict[int, float] = {}
        _agree(store, _STATIC, "0")
        self.secret = world_secret.of_ranks(store, init_method)

    def join(self, me: Member) -> None:
        """Makes this worker known."""
        for other in self.members():
            if other.name == me.name or other.id == me.id:
                shared = "name" if other.name == me.name else "id"
                raise RuntimeError(
                    f"RPC worker name {me.name} is not unique. Workers {other.id} and {me.id} cannot share the same "
                    f"{shared}."
                )
        self._place = self.store.add(_COUNT, 1)
        self.store.set(f"member/{self._place}", me.encode())

    def members(self) -> list[Member]:
        """Returns who is in the world now, by id."""
        with self._lock:
            self._refresh()
            return sorted((member for member in self._read.values() if member is not None), key=lambda m: m.id)

    def find(self, key: str | int) -> Member | None:
        """Finds a worker by its name or id; looks into the store for those not known yet, or not asked for lately."""
        for place, member in list(self._read.items()):
            if member is not None and key in (member.name, member.id) and self._is_there(place):
                return member
        return super().find(key)

    def _is_there(self, place: int) -> bool:
        """Looks whether whoever was at a place has not left; at most once a second."""
        now = time.monotonic()
        if now - self._looked.get(place, now - _BELIEVED_SECONDS) >= _BELIEVED_SECONDS:
            # Before it looks: while one thread does, the others do not wait for the store.
            self._looked[place] = now
            # Whoever hosted the store may have left: those who are known can be called all the same.
            with contextlib.suppress(RuntimeError):
                if self.store.check([f"left/{place}"]):
                    self._read[place] = None
                    return False
        return True

    def _refresh(self) -> None:
        count = self.store.add(_COUNT, 0)
        for place in range(1, count + 1):
            if self._read.get(place, self) is None:
                continue
            self._looked[place] = time.monotonic()
            if self.store.check([f"left/{place}"]):
                self._read[place] = None
            elif place not in self._read and self.store.check([f"member/{place}"]):
                self._read[place] = Member.decode(self.store.get(f"member/{place}"))

    def leave(self) -> None:
        """Takes this worker off the list."""
        place, self._place = self._place, 0
        if place:
            # Whoever hosted the store may have left before.
            with contextlib.suppress(RuntimeError):
                self.store.set(f"left/{place}", "1")


def tell_trouble(store: Any, trouble: str) -> None:
    """Tells all workers of a world why it can't be, as far as they can be told."""
    with contextlib.suppress(RuntimeError):
        store.set(_TROUBLE, trouble)


def told_trouble(store: Any) -> str:
    """Returns why a world can't be, if another worker has told."""
    # Whoever hosted the store may have left before.
    with contextlib.suppress(RuntimeError):
        if store.check([_TROUBLE]):
            return bytes(store.get(_TROUBLE)).decode()
    return ""


def _agree(store: Any, key: str, mine: str) -> None:
    if world_secret.agreed(store, key, mine) != mine:
        raise RuntimeError(_MIXED)


def _wait(store: Any, key: str, seconds: float) -> bool:
    """Waits for a key; False if it isn't there in time."""
    # By looking, not by store.wait: that prints a warning each time it waits in vain, and hears no Ctrl-C.
    end = time.monotonic() + seconds
    pause = 0.005
    while not store.check([key]):
        left = end - time.monotonic()
        if left <= 0:
            return False
        time.sleep(min(pause, left))
        pause = min(2 * pause, 0.2)
    return True


def join(store: Any, name: str, rank: int, world_size: int | None, options: TensorPipeRpcBackendOptions) -> Agent:
    """Makes this process a worker of the world that meets in a store.

    Args:
        store: of the rendezvous; its keys must be this world's own.
        name: the worker's.
        rank: its id; less than 0, without a world_size: a world without ranks, which does without the store, too.
        world_size: how many there are; None or 0: they come and go.
        options: the worker's.

    Raises:
        RuntimeError: the name is none, or taken; the others did not come; or they have another kind of world.
    """
    # Late: the agent knows worlds.
    from tensorcall.rpc import agent

    world: World
    if world_size:
        world = StaticWorld(store, rank, world_size, options.rpc_timeout, options.init_method)
    elif rank < 0:
        from tensorcall.rpc.elastic import ElasticWorld

        world = elastic = ElasticWorld(options.init_method, options.rpc_timeout)
        rank = elastic.worker_id
    else:
        world = GrowingWorld(store, rank, options.init_method)
    return agent.Agent(name, rank, world, options)


def interruptible(wait: Callable[[], Any]) -> Any:
    """Waits for something in C++ code, which knows no signals, so that Ctrl-C ends the waiting."""
    if threading.current_thread() is not threading.main_thread():
        return wait()
    outcome: Future[Any] = Future()

    def run() -> None:
        try:
            outcome.set_result(wait())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, name="tensorcall-rendezvous", daemon=True).start()
    return outcome.result()
