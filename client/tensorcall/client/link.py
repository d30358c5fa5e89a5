"""What this process holds of one owner's values: its lease there, its forks, and what it lets go of.

Two threads do the work: whichever brings an answer, and the housekeeper (`housekeeping`), which sends releases in
batches. Nothing here waits, apart from `lease` and `close`.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NamedTuple

from tensorcall.client import processes
from tensorcall.client.asking import ATTEMPT_SECONDS, Ask, Done, Request, Surroundings
from tensorcall.client.carrier import closed_error
from tensorcall.client.forks import Fork
from tensorcall.client.futures import CallFuture
from tensorcall.v1 import rref_pb2
from tensorcall.v1 import rref_service_pb2 as pb
from tensorcall.wire.errors import (
    Cancelled,
    InternalError,
    OwnerRestarted,
    RemoteError,
    RRefExpired,
    TensorcallError,
    Unreachable,
)
from tensorcall.wire.rrefs import RRefId

if TYPE_CHECKING:
    from tensorcall.client.rref import RRef

_log = logging.getLogger(__name__)

# For how long an owner is asked for a fork that does not answer, in seconds.
_FORK_PATIENCE = 20.0
# After so many seconds without a word from here an owner lets go by itself, where its leases' time is not known.
_LEASE_SECONDS = 60.0
_MAX_BATCH = 10_000
_REVOKE_PATIENCE = 1.0
_AFTER_FAILURE = 1.0


class Lease(NamedTuple):
    """A lease, as far as it is known here."""

    worker: str
    incarnation: int
    first_sequence: int
    seconds: float
    sure_until: float
    """It holds at least until then, by the clock."""


class AnonymousHold(int):
    """A hold of an answer to a call that did not tell its client: it lapses by itself after the time of one lease."""


class Link:
    """The references to one owner's values, over one connection. Safe from any thread."""

    def __init__(
        self,
        ask: Ask,
        address: str,
        *,
        client_id: str = "",
        way: Callable[[], object] = lambda: None,
        surroundings: Surroundings | None = None,
    ) -> None:
        """Begins without a lease: nothing is sent before there is a reference.

        Args:
            ask: calls methods of the owner's RRefService.
            address: where the owner is, for messages and for names that lack one.
            client_id: names what holds the lease; made up if empty. Whoever knows it may release what it holds.
            way: returns what brings the answers, see `callbacks`.
            surroundings: the process around it.
        """
        self.client_id = client_id or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(16)}"
        self.address = address
        self._ask = ask
        self._way = way
        self._surroundings = surroundings or Surroundings()
        self._clock = self._surroundings.clock
        self._generation = processes.generation
        # Re-entrant: under it garbage may be collected whose callbacks come here.
        self._lock = threading.RLock()
        self._last_number = 0
        self._lease: Lease | None = None
        # Who the owner is, as its session told, and where it says it is.
        self._peer: tuple[str, int] | None = None
        self._told_address = ""
        self._granting: CallFuture | None = None
        # All forks that were not released.
        self._forks: dict[int, Fork] = {}
        # Numbers of which the owner may not have heard yet, in order.
        self._unsettled: OrderedDict[int, None] = OrderedDict()
        # Holds of answers that wait for forks, maybe of other owners' values.
        self._holding = 0
        self._numbers_to_release: list[int] = []
        self._holds_to_release: list[int] = []
        self._anonymous_to_release: list[int] = []
        # How much is in the release that is under way.
        self._releasing = 0
        # Whether the owner does not answer: what is to be released waits until it does, or the lease has lapsed.
        self._silent = False
        self._call_off: Callable[[], None] | None = None
        # Whether the owner may hold anything for this process.
        self._used = False
        self._closed = False

    @property
    def way(self) -> object:
        """What brings answers, to be compared with; see `callbacks`."""
        return self._way()

    def refuse_inherited(self) -> None:
        """Raises a RequestError in a child process of the one that it was made in."""
        processes.refuse_inherited(self._generation, f"the connection to {self.address}")

    @property
    def held(self) -> int:
        """How many forks and holds there are, with those whose release is under way.

        Where the owner does not answer, these are not counted: they lapse with the lease, or go with its end.
        """
        with self._lock:
            if self._silent:
                return len(self._forks) + self._holding
            waiting = len(self._numbers_to_release) + len(self._holds_to_release) + len(self._anonymous_to_release)
            return len(self._forks) + self._holding + waiting + self._releasing

    # --- who the owner is ---

    def met(self, worker: str, incarnation: int, address: str = "") -> None:
        """Takes note of who answers: its name, its start, and where it says that it can be reached."""
        with self._lock:
            old, self._peer = self._peer, (worker, incarnation)
            self._told_address = address
            lost = self._lose(self._restarted(), old[1]) if old is not None and old != self._peer else []
        _settle(lost)

    def is_owner_of(self, rref_id: RRefId) -> bool:
        """Whether it is here that a name leads. Names of earlier starts lead here, too: the owner tells what is wrong.

        Two servers on one machine may have one name, unless they were given others.
        """
        peer = self._peer
        if peer is None:
            return rref_id.address == self.address
        if peer[0] != rref_id.owner:
            return False
        return peer[1] == rref_id.incarnation or rref_id.address in ("", self.address, self._told_address)

    @property
    def met_owner(self) -> bool:
        """Whether it is known who the owner is."""
        return self._peer is not None

    @property
    def worker(self) -> str:
        """The owner's name, if it is known yet."""
        peer = self._peer
        return peer[0] if peer else ""

    # --- the lease ---

    def lease(self, timeout: float | None = None) -> Lease:
        """Returns the lease; asks for one, and waits, where there is none that surely holds.

        Raises:
            Unreachable, DeadlineExceeded: the owner does not answer within `timeout` seconds, or in its own time.
            RequestError: this is a child process.
        """
        self.refuse_inherited()
        lease = self._lease
        if lease is not None and self.has_lease:
            return lease
        self.grant().result(timeout)
        lease = self._lease
        if lease is None:
            raise closed_error()
        return lease

    @property
    def has_lease(self) -> bool:
        """Whether there is one that surely holds, until what is sent now has arrived as well."""
        lease = self._lease
        return lease is not None and self._clock() < lease.sure_until - lease.seconds / 3

    def when_known(self, callback: Callable[[], object]) -> None:
        """Has this called once it is known who the owner is, or never will be."""
        if self._peer is not None:
            callback()
        else:
            self.grant().add_done_callback(lambda _: callback())

    def doubt(self) -> None:
        """Tells that the owner lacks what is held there: before the next name it is asked whether the lease holds."""
        if self._generation != processes.generation:
            return
        with self._lock:
            lease = self._lease
            if lease is None or self._closed:
                return
            self._lease = lease._replace(sure_until=self._clock())
        self.grant()

    def grant(self) -> CallFuture:
        """Asks for a lease, or its renewal, unless somebody does; returns what tells when it is there."""
        self.refuse_inherited()
        with self._lock:
            if self._granting is not None:
                return self._granting
            granting = self._granting = CallFuture(self.way)

        def done(response: pb.GrantLeaseResponse, error: TensorcallError | None, asked_at: float) -> None:
            lost: list[tuple[Fork, TensorcallError]] = []
            with self._lock:
                self._granting = None
                if error is None and not self._closed:
                    lost = self._granted(response, asked_at)
                    self._answered()
            _settle(lost)
            if error is None:
                granting.resolve(None)
            else:
                granting.fail(error)

        self._request("GrantLease", pb.GrantLeaseRequest(client_id=self.client_id), done, 2 * ATTEMPT_SECONDS)
        return granting

    def _granted(self, response: pb.GrantLeaseResponse, asked_at: float) -> list[tuple[Fork, TensorcallError]]:
        # When it was asked for is when it was granted at the earliest.
        seconds = response.duration.ToNanoseconds() / 1e9
        old = self._lease
        lost: list[tuple[Fork, TensorcallError]] = []
        if old is not None and old.incarnation != response.incarnation:
            lost = self._lose(self._restarted(), old.incarnation)
        elif old is not None and old.first_sequence != response.first_sequence:
            lost = self._lose(self._lapsed(old))
        self._lease = Lease(response.worker, response.incarnation, response.first_sequence, seconds, asked_at + seconds)
        self._peer = (response.worker, response.incarnation)
        return lost

    def _answered(self) -> None:
        """Takes note that the owner does answer; with the lock held."""
        if self._silent:
            self._silent = False
            self._surroundings.post(self, None)

    def _keep(self, at_least: float = 0.0) -> None:
        """Has the lease kept alive as long as anything is held."""
        with self._lock:
            if self._call_off is not None or self._closed:
                return
            lease = self._lease
            # A third of its time after it was asked for, not after the answer.
            due = lease.sure_until - lease.seconds * 2 / 3 - self._clock() if lease else 0.0
            following = max(due, at_least, 0.0)
            self._call_off = self._surroundings.after(following, lambda: self._surroundings.post(self, self._tick))
        self._surroundings.start()

    def _tick(self) -> None:
        """Renews the lease.

        Not by KeepAlive: should the lease have lapsed, and a fork have got this process another one since, that would
        not tell.
        """
        with self._lock:
            self._call_off = None
            wanted = not self._closed and bool(self._forks or self._holding)
        if wanted:
            self.grant().add_done_callback(self._renewed)

    def _renewed(self, granting: Future[Any]) -> None:
        error = granting.exception()
        if error is not None and not self._closed:
            _log.warning("the lease at %s could not be renewed: %s", self.address, error)
        self._keep(at_least=_AFTER_FAILURE if error is not None else 0.0)

    def _lose(self, error: TensorcallError, restarted: int = 0) -> list[tuple[Fork, TensorcallError]]:
        """Gives up the lease and all that was held under it; with the lock held.

        Args:
            error: why; what the handles tell from now on.
            restarted: the start of the owner's process that is over; 0: it is the same, the lease lapsed.
        """
        self._lease = None
        lost = []
        for fork in list(self._forks.values()):
            # What was asked for in the meantime may be held anew.
            if not restarted or fork.rref_id.incarnation == restarted:
                lost.append((fork, error))
                self._give_up(fork)
        # What is to be released may be of the new start, too, where its number means nothing else.
        if lost:
            _log.warning("%s references to values at %s are lost: %s", len(lost), self.address, error)
            self._surroundings.post(self, None)
        return lost

    def _restarted(self) -> OwnerRestarted:
        return OwnerRestarted(
            f"the server at {self.address} was restarted, and has lost what references of its earlier start name"
        )

    def _lapsed(self, lease: Lease) -> RRefExpired:
        return RRefExpired(
            f"the lease on values of {lease.worker} at {self.address} lapsed: it was not renewed for "
            f"{lease.seconds:g} s, and what this process held is gone"
        )

    # --- forks ---

    def new_name(self, timeout: float | None = None) -> Fork:
        """Names a value that is still to be made, and its first fork: pass its `number` and WANT_RREF with the call.

        The name may be passed on before the owner has heard of it. Tell what becomes of the call by `follow`, or
        `abandon` the fork.

        Raises:
            Unreachable, DeadlineExceeded: as `lease`.
        """
        lease = self.lease(timeout)
        with self._lock:
            sequence = lease.first_sequence + self._last_number + 1
            return self._new(RRefId(lease.worker, lease.incarnation, sequence, self._told_address or self.address))

    def fork(self, rref_id: RRefId) -> Fork:
        """Takes a fork of a value. Returns at once; the fork is pending until the owner has confirmed it."""
        if not rref_id.address:
            rref_id = rref_id._replace(address=self._told_address or self.address)
        fork = self._new(rref_id)
        request = pb.ForkRequest(rref=message(rref_id), client_id=self.client_id, number=fork.number)
        self._request("Fork", request, lambda _, error, __: self.settle(fork, error), _FORK_PATIENCE)
        return fork

    def _new(self, rref_id: RRefId) -> Fork:
        self.refuse_inherited()
        with self._lock:
            if self._closed:
                raise closed_error()
            if not (self._forks or self._holding or self.has_lease):
                # It may lapse before this arrives, which gets another one then: that is no loss.
                self._lease = None
            self._last_number += 1
            fork = Fork(self, self._last_number, rref_id)
            self._forks[fork.number] = fork
            self._unsettled[fork.number] = None
        if self._call_off is None:
            self._keep()
        return fork

    def follow(self, fork: Fork, call: Future[Any]) -> None:
        """Settles a fork of `new_name` by what becomes of the call that makes its value."""
        call.add_done_callback(lambda ended: self._made(fork, ended))

    def _made(self, fork: Fork, call: Future[Any]) -> None:
        if call.cancelled():
            self.settle(fork, Cancelled("the call that makes it was cancelled"))
            return
        error = call.exception()
        if isinstance(error, RemoteError):
            # That is what the value is now: whoever fetches it is told.
            error = None
        elif error is None and not isinstance(call.result(), RRefId):
            answered = type(call.result()).__name__
            error = InternalError(f"the server at {self.address} answered a {answered}, and not with a value's name")
        elif error is None and call.result() != fork.rref_id:
            made: RRefId = call.result()
            restarted = made.incarnation != fork.rref_id.incarnation
            error = (
                self._restarted()
                if restarted
                else RRefExpired(f"{fork.rref_id} was made under another name: the lease had lapsed in between")
            )
            self.doubt()
        if error is not None and not isinstance(error, TensorcallError):
            error = TensorcallError(f"{type(error).__name__}: {error}")
        self.settle(fork, error)

    def abandon(self, fork: Fork, error: TensorcallError) -> None:
        """Gives up a fork of `new_name` whose call was never sent."""
        self.settle(fork, error)

    def settle(self, fork: Fork, error: TensorcallError | None) -> None:
        """Confirms a fork, or gives it up; what waits for its value at the owner is then told, too."""
        with self._lock:
            if fork.number in self._forks:
                if error is None:
                    self._unsettled.pop(fork.number, None)
                    self._answered()
                elif isinstance(error, Unreachable):
                    self._silent = True
                if error is not None or fork.dropped:
                    self._give_up(fork)
                    self._surroundings.post(self, None)
        fork.settle(error)

    def let_go(self, fork: Fork) -> None:
        """Releases a fork, once it is settled. Only queues that: may be called from `__del__`."""
        if self._generation != processes.generation:
            return  # what the parent holds is not this process' to release
        self._surroundings.post(self, fork)

    def _give_up(self, fork: Fork) -> None:
        # After a restart, too: a call with its number may have been taken by the new start.
        del self._forks[fork.number]
        self._numbers_to_release.append(fork.number)

    def _forget(self, numbers: Iterable[int]) -> None:
        """Takes note that the owner never hears of these any more; with the lock held."""
        for number in numbers:
            self._unsettled.pop(number, None)

    # --- answers that hold references ---

    def hold(self, hold: int, handles: Iterable[RRef]) -> None:
        """Releases a hold that an answer came with as soon as these handles, of all of its references, are settled."""
        left = [handle for handle in handles if not handle.confirmed_by_owner()]
        if not left:
            self.release_hold(hold)
            return
        with self._lock:
            self._holding += 1
        self._keep()
        count = len(left)

        def settled() -> None:
            nonlocal count
            with self._lock:
                count -= 1
                if count:
                    return
                self._holding -= 1
            self.release_hold(hold)

        for handle in left:
            handle.when_confirmed(settled)

    def release_hold(self, hold: int) -> None:
        """Releases a hold of an answer: nobody reads it, or all of its references are held. `__del__` may call it."""
        if self._generation != processes.generation:
            return
        self._surroundings.start()
        self._surroundings.post(self, hold)

    # --- releases; on the housekeeper's thread ---

    def take(self, item: object) -> None:
        """Takes what was posted: a fork whose handle is gone, a hold that is not needed any more, something to do."""
        if isinstance(item, Fork):
            with self._lock:
                item.dropped = True
                if item.settled and item.number in self._forks:
                    self._give_up(item)
        elif isinstance(item, AnonymousHold):
            with self._lock:
                self._anonymous_to_release.append(item)
        elif isinstance(item, int):
            with self._lock:
                self._used = True
                self._holds_to_release.append(item)
        elif callable(item):
            item()

    def flush(self) -> None:
        """Sends what is to be released, unless a release is under way: then it follows that."""
        with self._lock:
            numbers = self._numbers_to_release[:_MAX_BATCH]
            holds = self._holds_to_release[:_MAX_BATCH]
            if self._releasing or self._closed:
                return
            if not (numbers or holds):
                self._flush_anonymous()
                return
            self._releasing = len(numbers) + len(holds)
            del self._numbers_to_release[: len(numbers)], self._holds_to_release[: len(holds)]
            patience = self._lease.seconds if self._lease else _LEASE_SECONDS
            # Numbers that leave just now are said to have been said when they are known to have arrived.
            floor = next(iter(self._unsettled), self._last_number + 1)
        # Of no start in particular: the owner may have been restarted since, and have confirmed forks, unnoticed here.
        request = pb.ReleaseRequest(client_id=self.client_id, numbers=numbers, holds=holds, settled_below=floor)

        def done(_: object, error: TensorcallError | None, asked_at: float) -> None:
            with self._lock:
                self._releasing = 0
                if error is None:
                    self._forget(numbers)
                else:
                    # The lease has lapsed by now, and all is gone with it; unless the owner is heard of again.
                    self._numbers_to_release[:0] = numbers
                    self._holds_to_release[:0] = holds
                more = bool(self._numbers_to_release or self._holds_to_release or self._anonymous_to_release)
                if error is None:
                    self._silent = False
                else:
                    self._silent, more = True, False
            if error is not None and not self._closed:
                _log.warning("references could not be released at %s: %s", self.address, error)
            if more:
                self._surroundings.post(self, None)

        self._request("Release", request, done, patience)

    def _flush_anonymous(self) -> None:
        holds, self._anonymous_to_release = self._anonymous_to_release, []
        if not holds:
            return
        self._releasing = len(holds)

        def done(_: object, error: TensorcallError | None, asked_at: float) -> None:
            # What was not released lapses by itself.
            with self._lock:
                self._releasing = 0
            self._surroundings.post(self, None)

        self._request("Release", pb.ReleaseRequest(holds=holds), done, ATTEMPT_SECONDS)

    def _request(self, method: str, request: Any, done: Done, patience: float) -> None:
        Request(
            self._ask,
            method,
            request,
            done,
            surroundings=self._surroundings,
            patience=patience,
            wanted=lambda: not self._closed,
        )

    # --- the end ---

    def close(self) -> None:
        """Ends the lease: all that is held goes. Waits for a moment for the owner to know. Idempotent.

        In a child process it ends nothing: all is the parent's.
        """
        try:
            revoking = self.leave()
            if revoking is not None:
                revoking.result(_REVOKE_PATIENCE)
        except Exception as error:
            # The lease lapses by itself.
            _log.debug("the lease at %s could not be revoked: %s", self.address, error)
        if self._generation != processes.generation:
            return
        with self._lock:
            forks = list(self._forks.values())
            self._forks.clear()
        for fork in forks:
            fork.settle(closed_error())

    def leave(self) -> Future[Any] | None:
        """Begins `close`, and does not wait: returns the future of the owner's answer, None if it need not know."""
        if self._generation != processes.generation:
            self._closed = True  # without the lock, which the parent may have held
            return None
        with self._lock:
            if self._closed:
                return None
            self._closed = True
            used = self._last_number > 0 or self._lease is not None or self._used
            call_off, self._call_off = self._call_off, None
        if call_off is not None:
            call_off()
        if not used:
            return None
        return self._ask("RevokeLease", pb.RevokeLeaseRequest(client_id=self.client_id), _REVOKE_PATIENCE)


def _settle(lost: list[tuple[Fork, TensorcallError]]) -> None:
    for fork, error in lost:
        fork.settle(error)


def message(rref_id: RRefId) -> rref_pb2.RRefId:
    """Writes a name as the generated message."""
    return rref_pb2.RRefId(
        owner=rref_id.owner, incarnation=rref_id.incarnation, sequence=rref_id.sequence, address=rref_id.address
    )
