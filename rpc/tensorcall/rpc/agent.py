"""This process as a worker: its server, its way to the others, and what it knows of them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tensorcall.rpc import addresses, errors
from tensorcall.rpc.constants import UNSET_RPC_TIMEOUT
from tensorcall.rpc.options import TensorPipeRpcBackendOptions
from tensorcall.rpc.outgoing import Call, Outgoing
from tensorcall.rpc.rref_context import Handle, RRefContext
from tensorcall.rpc.serving import PING, Serving
from tensorcall.rpc.worker_info import WorkerInfo
from tensorcall.rpc.world import Member, World
from tensorcall.server.config import ServerConfig
from tensorcall.server.context import Peer
from tensorcall.server.expose import Registry
from tensorcall.server.handler import Handler
from tensorcall.server.server import Server
from tensorcall.v1 import handler_service_pb2 as pb
from tensorcall.wire.calls import Target
from tensorcall.wire.errors import TensorcallError
from tensorcall.wire.rrefs import RRefId

if TYPE_CHECKING:
    from tensorcall.rpc.futures import RpcFuture

_log = logging.getLogger(__name__)

# torch's names (torch/csrc/distributed/rpc/tensorpipe_agent.cpp).
_THREADS, _IDLE = "agent.thread_pool_size", "agent.num_idle_threads"
_CLIENT, _SERVER, _LATER = "agent.client_active_calls", "agent.server_active_calls", "agent.server_active_async_calls"

# Nobody may be turned away for a queue that is full: torch has no bound.
_MAX_QUEUE = 1 << 20
_MAX_THREADS = 4096
# Nor for references, and for what they refer to.
_MAX_RREFS, _MAX_RREF_BYTES = 1 << 40, 1 << 62
# How long answers that are due may take to leave when this worker does.
_LAST_ANSWERS_SECONDS = 0.5
# How long a worker has to answer, if there is so much time; and for how long it may give no answer at all: a process
# or a host that was stopped keeps its connections, and would be waited for for ever.
PING_SECONDS = 5.0
_SILENT_SECONDS = 60.0
# Silence is counted from one look to the next, if they lie no further apart than this.
_LOOKS_APART_SECONDS = 20.0


class RpcAgent:
    """What stands for this process in its world; torch's name for it."""


class Agent(RpcAgent):
    """A worker of a world. Made by `join`."""

    def __init__(self, name: str, rank: int, world: World, options: TensorPipeRpcBackendOptions) -> None:
        """Starts the worker's server and joins the world.

        Raises:
            RuntimeError: the name is none, or taken; or the others did not come.
            OSError: the address can't be listened on.
            ValueError: an address that was set is none.
        """
        self._info = WorkerInfo(name, rank)
        self._world = world
        self._options = options
        self._rpc_timeout = options.rpc_timeout
        self._serving = Serving()
        self._closing = threading.Lock()
        self._closed = False
        # Whether it was waited for until no call of a user was in flight.
        self._idle = False
        # Those that did not answer when they were looked at: since when, and when the last time.
        self._silent: dict[str, tuple[float, float]] = {}
        secret = world.secret
        config = ServerConfig(
            bind=addresses.to_bind(options),
            worker=name,
            threads=options.num_worker_threads,
            max_threads=max(_MAX_THREADS, options.num_worker_threads),
            max_queue=_MAX_QUEUE,
            allow_pickle=True,
            secret=secret,
            max_rrefs_per_client=_MAX_RREFS,
            max_rref_bytes_per_client=_MAX_RREF_BYTES,
            tracebacks="always",
        )
        self.server = Server([], config=config)
        self.server.core.registry = Registry(self._serving.exposed())
        self._serving.core = self.server.core
        self._open_own = self.server.core.open_rref
        self.server.core.open_rref = self.open_rref
        self.rrefs = RRefContext(rank, self.server.core)
        self.server.start()
        try:
            address = addresses.to_advertise(options, self.server.address)
            self.server.core.rrefs.address = address
            me = Member(name, rank, address, self.server.core.incarnation)
            self.outgoing = Outgoing(me, secret, self._serving, self.open_rref)
            world.join(me)
        except BaseException:
            # Whoever has called already is not left waiting.
            self._serving.ready.set()
            self.server.stop(0)
            raise
        self.me = me

    def start(self) -> None:
        """Lets the others' calls in: what they run may ask for the process' agent, which this is from now on."""
        self._serving.ready.set()

    # --- who is there ---

    @property
    def is_static_group(self) -> bool:
        """Whether the world's members are the same from init_rpc to shutdown."""
        return self._world.is_static

    @property
    def store(self) -> Any:
        """The store of the rendezvous."""
        return self._world.store

    @property
    def world(self) -> World:
        """Who is there."""
        return self._world

    def get_worker_info(self, key: str | int | None = None) -> WorkerInfo:
        """Returns a worker by its name or id, or this one.

        Raises:
            RuntimeError: there is none.
        """
        return self._info if key is None else self.member(key).info

    def get_worker_infos(self) -> list[WorkerInfo]:
        """Returns all workers, this one too, by id."""
        return [member.info for member in self._world.members()]

    def member(self, key: str | int) -> Member:
        """Finds a worker by its name or id.

        Raises:
            RuntimeError: there is none; torch's words, and who there is.
        """
        if key in (self.me.name, self.me.id):
            return self.me
        found = self._world.find(key)
        if found is None:
            there = ", ".join(str(member.info) for member in self._world.members()[:20])
            raise RuntimeError(f"could not find destination {key!r}: there is no such worker, but {there}")
        return found

    # --- calls ---

    @property
    def rpc_timeout(self) -> float:
        """How many seconds a call may take unless it says otherwise; 0: for ever."""
        return self._rpc_timeout

    @rpc_timeout.setter
    def rpc_timeout(self, seconds: float) -> None:
        self._rpc_timeout = seconds

    def seconds(self, timeout: float | None) -> float | None:
        """Turns a timeout in torch's terms, where 0 is none and -1 the default, into seconds; None: for ever."""
        if timeout is None or timeout == UNSET_RPC_TIMEOUT:
            timeout = self._rpc_timeout
        if timeout < 0:
            raise RuntimeError(f"an RPC's timeout is a number of seconds, 0 for none, or -1: not {timeout!r}")
        return timeout or None

    def open_rref(self, rref_id: RRefId, peer: Peer | None = None) -> Any:
        """Makes a handle of a reference that arrived, in arguments or results. Never waits for its owner.

        Args:
            rref_id: the value's name.
            peer: who sent it: of no account, since all of a world trust each other.

        Raises:
            RuntimeError: there is no such worker.
            RRefError, OwnerRestarted: the value should be this worker's, and is not (any more).
        """
        if rref_id.owner == self._info.name:
            return self._open_own(rref_id, peer)
        connection = self.outgoing.connection(self.member(rref_id.owner))
        return Handle(connection, connection.link.fork(rref_id))

    def check_alive(self, names: Iterable[str], seconds: float = PING_SECONDS) -> None:
        """Returns if workers answer, or may be slow.

        Args:
            names: theirs; they are looked at all at once.
            seconds: how long that may take.

        Raises:
            RuntimeError: some are gone; it names them.
        """
        dead = self.find_dead(names, seconds)
        if dead:
            raise RuntimeError("; ".join(dead.values()))

    def find_dead(self, names: Iterable[str], seconds: float = PING_SECONDS) -> dict[str, str]:
        """Returns those workers that are gone, and what is known of it; looks at all at once."""
        began = time.monotonic()
        pings: dict[str, RpcFuture] = {}
        dead: dict[str, str] = {}
        for name in names:
            try:
                pings[name] = self.outgoing.submit(self.member(name), Call(Target(PING), ()), max(seconds, 0.001), None)
            except RuntimeError as error:
                dead[name] = f"{name} is gone: {error}"
        answers = {name: when_done(ping) for name, ping in pings.items()}
        for name, ping in pings.items():
            in_time = answers[name].wait(max(0.0, began + seconds - time.monotonic()))
            if in_time and ping.error is None:
                self._silent.pop(name, None)
            elif in_time and not isinstance(ping.error, errors.RpcTimeout):
                dead[name] = f"{self.member(name).info} is gone: {ping.error}"
            # A worker that is only slow is not gone.
            elif self._is_silent(name, began, seconds):
                dead[name] = f"{self.member(name).info} is gone: it has not answered for {_SILENT_SECONDS:g} s"
        return dead

    @property
    def silent(self) -> set[str]:
        """Those workers that did not answer when they were last looked at."""
        return set(self._silent)

    def _is_silent(self, name: str, began: float, seconds: float) -> bool:
        """Takes note of a worker that has not answered; returns whether it has not for too long."""
        now = time.monotonic()
        since, last = self._silent.get(name, (began, began))
        if began - last > _LOOKS_APART_SECONDS:
            since = began
        self._silent[name] = since, now
        if now - since < _SILENT_SECONDS or seconds < PING_SECONDS:
            return False
        try:
            # It may have more calls to run than it can: this asks past them.
            self.outgoing.connection(self.member(name)).ask(
                "ListFunctions", pb.ListFunctionsRequest(prefix=PING), seconds
            )
        except (TensorcallError, RuntimeError):
            return True
        self._silent.pop(name, None)
        return False

    # --- what is known of it ---

    def get_metrics(self) -> dict[str, str]:
        """Returns metrics under torch's names."""
        pool = self.server.core.pool
        metrics = {
            _THREADS: str(self._options.num_worker_threads),
            _IDLE: str(max(0, self._options.num_worker_threads - self._serving.active)),
            _CLIENT: str(self.outgoing.active),
            _SERVER: str(self._serving.active),
            _LATER: str(self._serving.active_later),
            "agent.threads": str(pool.threads),
        }
        metrics.update((key, str(value)) for key, value in Handler.get_instance().metrics().items())
        return metrics

    def get_debug_info(self) -> dict[str, str]:
        """Returns what there is to know for debugging: the metrics."""
        return self.get_metrics()

    def _get_backend_options(self) -> TensorPipeRpcBackendOptions:
        return self._options

    def _get_device_map(self, dst: WorkerInfo) -> dict[Any, Any]:
        return dict(self._options.device_maps.get(dst.name, {}))

    # --- the end ---

    def totals(self) -> int:
        """Returns how many calls this worker has made for its users."""
        return self.outgoing.started

    def wait_idle(self, timeout: float | None) -> None:
        """Waits until no call of a user is in flight from here or runs here.

        Raises:
            RuntimeError: it took longer.
        """
        end = None if timeout is None else time.monotonic() + timeout
        pause = 0.0005
        while self.outgoing.active or self._serving.active:
            if end is not None and time.monotonic() >= end:
                raise RuntimeError(
                    f"{self._info} still has {self.outgoing.active} calls in flight and runs {self._serving.active} "
                    f"after {timeout:g} s"
                )
            time.sleep(pause)
            pause = min(pause * 2, 0.05)
        self._idle = True

    def join(self, shutdown: bool = False, timeout: float = 0) -> None:
        """Waits until no worker has a call in flight, and none can start one by another's call.

        Args:
            shutdown: only takes part; kept for its name.
            timeout: how many seconds to wait at most; 0: for as long as the others live.
        """
        # Late: they know agents.
        from tensorcall.rpc import api, gathering

        gathering.join(self, timeout, api._all_gather)

    def sync(self) -> None:
        """Does what `join` does."""
        self.join()

    def shutdown(self) -> None:
        """Leaves the world: ends the server and all connections. Idempotent."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
        self._world.leave()
        self.outgoing.close()
        # The others are told that this one has got their last message; unless it leaves without a word.
        self.server.stop(_LAST_ANSWERS_SECONDS if self._idle else 0)


def when_done(future: RpcFuture) -> threading.Event:
    """Returns what is set as soon as a call has ended: unlike the future, it can be waited for for some time only."""
    ended = threading.Event()
    future.add_done_callback(lambda _: ended.set())
    return ended
