"""A server: its life from the first bind to the last answer."""

from __future__ import annotations

import logging
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterable
from types import FrameType, ModuleType, TracebackType
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from tensorcall.client.rref import RRef
from tensorcall.server.config import ServerConfig
from tensorcall.server.core import Core
from tensorcall.server.directory import LEASE_SECONDS, Directory
from tensorcall.server.directory_service import SERVICE as DIRECTORY_SERVICE
from tensorcall.server.directory_service import DirectoryServicer
from tensorcall.server.expose import Registry, named
from tensorcall.server.grpc_methods import GrpcExecutor
from tensorcall.server.pool import Pool
from tensorcall.server.rref_hooks import install
from tensorcall.server.rref_service import SERVICE as RREF_SERVICE
from tensorcall.server.rref_service import RRefServicer
from tensorcall.server.servicer import SERVICE, HandlerServicer
from tensorcall.wire.limits import KIB

_log = logging.getLogger(__name__)

# A reflection stream or a health watch has one as long as it is open.
_ASKING_THREADS = 256


class Server:
    """Serves functions. Use as a context manager, or call `start` and `stop`."""

    def __init__(
        self,
        functions: Iterable[Callable[..., Any]] | None = None,
        *,
        modules: Iterable[ModuleType] | None = None,
        config: ServerConfig | None = None,
    ) -> None:
        """Prepares a server.

        Args:
            functions: what to expose, under their default names.
            modules: modules of which to expose what they mark with @expose. With neither: all that was marked in this
                process.
            config: the settings.

        Raises:
            ValueError: two functions have one name, or a module exposes nothing.
        """
        self.config = config or ServerConfig()
        if functions is not None:
            registry = Registry(named(function) for function in functions)
        elif modules is not None:
            registry = Registry.of_modules(modules)
        else:
            registry = Registry.of_process()
        self.core = Core(registry, self.config)
        self.port = 0
        self._stopping = threading.Lock()
        self._stopped = threading.Event()
        self._servicer = HandlerServicer(self.core)
        self._rrefs = RRefServicer(self.core)
        self._directory: DirectoryServicer | None = None
        self._services = [SERVICE, RREF_SERVICE]
        self._health = health.HealthServicer()
        self._grpc = grpc.server(
            # Who only asks (health, reflection, listings) is answered even while functions have all threads.
            GrpcExecutor(Pool(_ASKING_THREADS, _ASKING_THREADS, 0)),
            handlers=[self._servicer, self._rrefs],
            options=[
                # The limit is meant for a call; on a session a few bytes go around it.
                ("grpc.max_receive_message_length", self.config.max_message_bytes + 64 * KIB),
                ("grpc.max_send_message_length", -1),
                # gRPC would shed load at random, as bare CANCELLED, when its own queue grows; ours does it in words.
                ("grpc.server.max_pending_requests", 1 << 20),
                ("grpc.server.max_pending_requests_hard_limit", 1 << 20),
                # Two servers on one port would share its callers at random.
                ("grpc.so_reuseport", 0),
                # Clients ping every 30 s to notice a dead connection; the default would answer with GOAWAY.
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.keepalive_time_ms", 60_000),
                ("grpc.keepalive_timeout_ms", 20_000),
            ],
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)

    def host_directory(self, lease_seconds: float = LEASE_SECONDS) -> Directory:
        """Has it keep the directory of the workers of a world, or of several. Call it once, before `start`.

        Args:
            lease_seconds: a worker that does not renew its membership for so long is dropped.

        Returns:
            The directory, which nobody has joined yet.

        Raises:
            RuntimeError: it has one, or has started.
        """
        if self._directory is not None or self.port:
            raise RuntimeError("host_directory() is called once, before start()")
        directory = Directory(lease_seconds)
        self._directory = DirectoryServicer(self.core, directory)
        self._grpc.add_generic_rpc_handlers((self._directory,))
        self._services.append(DIRECTORY_SERVICE)
        return directory

    @property
    def address(self) -> str:
        """Where it listens, as a client would write it."""
        if self.config.bind.startswith("unix:"):
            return self.config.bind
        return f"{self.config.bind.rpartition(':')[0]}:{self.port}"

    def _reachable_address(self) -> str:
        """Returns where it can be reached as far as `bind` tells; empty if that is all of the machine's addresses."""
        host = self.address.rpartition(":")[0]
        return "" if host in ("0.0.0.0", "[::]", "::", "*", "") else self.address

    def own(self, value: object) -> RRef:
        """Makes a reference to a value of this process, for results or calls of its own.

        The value lives as long as somebody holds the reference, here or elsewhere. A function that runs for a caller
        may use `current_call().own(value)`.
        """
        return self.core.own(value)

    def start(self) -> int:
        """Binds, begins to serve, and returns the port.

        Raises:
            OSError: the address can't be bound.
        """
        try:
            self.port = self._grpc.add_insecure_port(self.config.bind)
        except RuntimeError as error:
            raise OSError(f"can't listen on {self.config.bind}: {error}") from None
        self.core.rrefs.address = self.config.advertise or self._reachable_address()
        reflection.enable_server_reflection((*self._services, health.SERVICE_NAME, reflection.SERVICE_NAME), self._grpc)
        self._grpc.start()
        if self._directory is not None:
            self._directory.begin()
        for service in ("", *self._services):
            self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        install()
        extra = {"address": self.address, "functions": len(self.core.registry), "worker": self.core.worker}
        _log.debug("serving", extra=extra)
        return self.port

    def stop(self, grace: float | None = None) -> None:
        """Refuses new calls, waits `grace` seconds for those in flight, then cancels what is left. Idempotent."""
        grace = self.config.grace if grace is None else grace
        with self._stopping:
            if self._stopped.is_set():
                return
            self._health.enter_graceful_shutdown()
            _log.info("draining", extra={"calls": self.core.active, "grace": grace})
            drained = self.core.drain(grace)
            if not drained:
                _log.warning("calls are cancelled", extra={"calls": self.core.active})
            self._servicer.end_sessions()
            if self._directory is not None:
                self._directory.close()
            self._grpc.stop(1.0 if drained else 0.0).wait(timeout=10.0)
            self.core.close()
            self._stopped.set()
        _log.info("stopped")

    def wait(self) -> None:
        """Waits until it has stopped."""
        self._stopped.wait()

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def serve(server: Server, on_started: Callable[[Server], None] | None = None) -> int:
    """Serves until SIGTERM or SIGINT and returns the process' exit code. Only from the main thread.

    The first signal drains: new calls are refused, those in flight may end. The second one ends the process at once,
    with 128 + its number.

    Args:
        server: what to serve.
        on_started: called when it listens.

    Raises:
        OSError: the address can't be bound.
    """
    # Numbers of signals, or None when the drain is over. A SimpleQueue may be put to from within a signal handler.
    events: queue.SimpleQueue[int | None] = queue.SimpleQueue()

    def note(number: int, frame: FrameType | None) -> None:
        events.put(number)

    def drain() -> None:
        server.stop()
        events.put(None)

    previous = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.start()
        if on_started is not None:
            on_started(server)
        first = events.get()
        assert first is not None
        _log.info("signal", extra={"signal": signal.Signals(first).name, "advice": "again to end at once"})
        threading.Thread(target=drain, name="tensorcall-drain", daemon=True).start()
        second = events.get()
        if second is not None:
            _log.warning("ended at once", extra={"calls": server.core.active})
            logging.shutdown()
            # A return would wait for the threads that functions run on.
            os._exit(128 + second)
        return 0
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
