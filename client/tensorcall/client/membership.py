"""Makes this process a worker of a world and keeps it one, whatever becomes of the directory."""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections.abc import Callable, Iterable

from tensorcall.client.directory import Change, DirectoryClient, News, Watch, Worker
from tensorcall.client.roster import Roster
from tensorcall.wire.errors import MembershipLapsed, NameTaken, TensorcallError, WorkerUnknown

_log = logging.getLogger(__name__)

# Between attempts to reach a directory that is gone: at random, so that not all workers come at once.
_RETRY_SECONDS = (0.1, 1.0)
_PATIENCE = 5.0


class Membership:
    """One worker's place in its world. Safe from any thread.

    One thread renews the lease, and joins again where that is no use; another reads the news. While no directory is
    reached the workers that were known stay known.
    """

    def __init__(
        self,
        client: DirectoryClient,
        name: str,
        address: str,
        incarnation: int,
        worker_id: int | None = None,
        *,
        unreachable: Callable[[], DirectoryClient | None] | None = None,
    ) -> None:
        """Joins.

        Args:
            client: where the directory is; closed by `leave`.
            name: this worker's name.
            address: where others reach it.
            incarnation: tells this start of its process from the next; a random number, not 0.
            worker_id: the id that it wants; None: any.
            unreachable: called whenever the directory was not reached, before the next attempt. Returns another client
                if the directory is to be found elsewhere by now.

        Raises:
            NameTaken: a live worker has the name or the id.
            TensorcallError: it failed.
        """
        joined = client.join(name, address, incarnation, worker_id)
        self.worker = joined.worker
        self._client = client
        self._unreachable = unreachable
        self._lease_seconds = joined.lease_seconds
        self._version = joined.version
        self._lock = threading.Lock()
        self._roster = Roster(joined.worker)
        self._roster.apply(News((), joined.members, joined.version), joined.lease_seconds)
        # Held while changes are told, so that they come one after the other.
        self._telling = threading.RLock()
        self._callbacks: list[Callable[[Change], object]] = []
        self._renewing = threading.Lock()
        self._look_again = threading.Event()
        self._over = threading.Event()
        self._watch: Watch | None = None
        # What is wrong, since when, and whether that was logged.
        self._trouble, self._since, self._logged = "", 0.0, False
        self._threads = [
            threading.Thread(target=self._keep, name="tensorcall-membership", daemon=True),
            threading.Thread(target=self._read, name="tensorcall-membership-news", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def directory(self) -> str:
        """Where the directory is, or was when it was last reached."""
        return self._client.address

    def lookup(self, who: str | int) -> Worker:
        """Finds a worker by its name or its id; asks the directory only if it is not known here.

        Raises:
            WorkerUnknown: there is none, or the directory can't be asked.
        """
        with self._lock:
            known = self._roster.find(who)
        if known is not None:
            return known
        try:
            return self._client.lookup(who)
        except WorkerUnknown:
            raise
        except TensorcallError as error:
            raise WorkerUnknown(
                f"no worker {who!r} is known here, and the directory can't be asked: {error}",
                metadata={"worker": str(who)},
            ) from None

    def members(self) -> tuple[Worker, ...]:
        """Returns everybody who is there as far as is known here, this worker included."""
        with self._lock:
            return tuple(self._roster.workers.values())

    def on_change(self, callback: Callable[[Change], object]) -> Callable[[], None]:
        """Has the callback called with each change from now on, but for this worker's own; returns what calls that off.

        The callbacks run on threads of the membership, one change after the other: they should be quick.
        """
        with self._telling:
            self._callbacks.append(callback)

        def call_off() -> None:
            with contextlib.suppress(ValueError):
                self._callbacks.remove(callback)

        return call_off

    def leave(self) -> None:
        """Ends the membership. Waits some seconds for the directory at most. Idempotent."""
        if self._over.is_set():
            return
        self._over.set()
        self._look_again.set()
        # What is on its way must not make it a member again.
        held = self._renewing.acquire(timeout=_PATIENCE)
        try:
            self._client.leave(self.worker.name, self.worker.incarnation)
        except TensorcallError as error:
            _log.info("left without a directory", extra={"worker": self.worker.name, "why": str(error)})
        finally:
            if held:
                self._renewing.release()
        watch = self._watch
        if watch is not None:
            watch.cancel()
        self._client.close()
        # In a callback they would wait for each other.
        if threading.current_thread() not in self._threads:
            for thread in self._threads:
                thread.join(_PATIENCE)

    # --- the lease ---

    def _keep(self) -> None:
        delay = self._lease_seconds / 3
        while True:
            self._look_again.wait(delay)
            self._look_again.clear()
            self._tell(lambda: self._roster.drop_doubtful())
            with self._renewing:
                if self._over.is_set():
                    return
                try:
                    delay = self._renew()
                except Exception:
                    _log.exception("a membership could not be renewed by a defect of tensorcall")
                    delay = _RETRY_SECONDS[1]

    def _renew(self) -> float:
        """Renews the lease, or joins again; returns when to look again."""
        own = self.worker
        try:
            try:
                self._lease_seconds = self._client.renew(own.name, own.incarnation)
            except MembershipLapsed:
                joined = self._client.join(own.name, own.address, own.incarnation, own.id)
                self._lease_seconds = joined.lease_seconds
                _log.info("joined again", extra={"worker": own.name})
        except NameTaken as error:
            # Nobody can help that, but whoever has it may leave.
            self._note("this worker is out of its world", error, patience=0.0)
            return self._lease_seconds / 3
        except TensorcallError as error:
            # One that takes over is found at the next look.
            self._note("no directory, so no news of others until there is one", error, self._lease_seconds / 3)
            self._look_elsewhere()
            return random.uniform(*_RETRY_SECONDS)
        self._note_end()
        return self._lease_seconds / 3

    def _look_elsewhere(self) -> None:
        found = self._unreachable() if self._unreachable is not None and not self._over.is_set() else None
        if found is not None:
            # The watch of the old one ends by that; the next one is the new one's.
            old, self._client = self._client, found
            old.close()

    def _note(self, trouble: str, error: Exception, patience: float) -> None:
        """Logs what is wrong, once, when it has been so for some seconds."""
        now = time.monotonic()
        if trouble != self._trouble:
            self._trouble, self._since, self._logged = trouble, now, False
        if not self._logged and now - self._since >= patience:
            self._logged = True
            _log.warning("%s: %s", trouble, error, extra={"worker": self.worker.name})

    def _note_end(self) -> None:
        if self._trouble and self._logged:
            _log.info("all is well again, which was not: %s", self._trouble, extra={"worker": self.worker.name})
        self._trouble = ""

    # --- the news ---

    def _read(self) -> None:
        while not self._over.is_set():
            try:
                self._watch = watch = self._client.watch(self._version)
                if self._over.is_set():
                    watch.cancel()
                for news in watch:
                    self._take(news)
                    del news
            except TensorcallError as error:
                _log.debug("no news of the directory", extra={"why": str(error)})
            except Exception:
                _log.exception("the news of a directory could not be read by a defect of tensorcall")
            # Whoever was there is gone: better to find out at once than when the lease is to be renewed.
            self._look_again.set()
            self._over.wait(random.uniform(*_RETRY_SECONDS))

    def _take(self, news: News) -> None:
        self._tell(lambda: self._roster.apply(news, self._lease_seconds))
        self._version = news.version

    def _tell(self, change: Callable[[], Iterable[Change]]) -> None:
        """Changes the roster and tells what has changed by that."""
        with self._telling:
            with self._lock:
                changes = tuple(change())
            for each in changes:
                for callback in tuple(self._callbacks):
                    try:
                        callback(each)
                    except Exception:
                        _log.exception("a callback for changes of the membership raised")
