"""Who is there: the table of the workers of worlds, under leases. See directory_service.proto; knows no gRPC."""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace

from tensorcall.server.members import Change, Kind, Member, News, Version, check_join, check_world
from tensorcall.wire.errors import MembershipLapsed, NameTaken, TooLarge, WorkerUnknown

LEASE_SECONDS = 15.0
_MAX_MEMBERS = 10_000
# Who is further behind gets the whole list instead.
_REMEMBERED_CHANGES = 1024
# Ids that nobody asked for lie above all ranks, and at random: a directory that took another one's place must not give
# out the id of a worker that has not joined again yet. JSON and floats hold such numbers exactly.
_FIRST_FREE_ID, _LAST_FREE_ID = 1 << 32, 1 << 48


class _World:
    """The workers of one world, in the order in which they joined."""

    __slots__ = ("by_id", "expires", "members", "watchers")

    def __init__(self) -> None:
        self.members: dict[str, Member] = {}
        self.by_id: dict[int, str] = {}
        self.expires: dict[str, float] = {}
        self.watchers: set[Callable[[], object]] = set()


class Directory:
    """The workers of all worlds. Safe from any thread."""

    def __init__(
        self,
        lease_seconds: float = LEASE_SECONDS,
        *,
        max_members: int = _MAX_MEMBERS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begins with nobody.

        Args:
            lease_seconds: who does not renew its membership for so long is dropped.
            max_members: how many workers there may be, in all worlds.
            clock: tells the time, in seconds.
        """
        if not lease_seconds > 0:
            raise ValueError(f"lease_seconds is {lease_seconds}: it must be more than 0")
        self.lease_seconds = lease_seconds
        self.incarnation = secrets.randbits(63) + 1
        self._max_members = max_members
        self._clock = clock
        self._lock = threading.Lock()
        self._worlds: dict[str, _World] = {}
        self._count = 0
        self._number = 0
        # The latest changes, with their numbers; of those up to the floor some are not there any more.
        self._changes: deque[tuple[int, str, Change]] = deque()
        self._floor = 0

    # --- members ---

    def join(
        self, world: str, name: str, address: str, incarnation: int, worker_id: int | None = None
    ) -> tuple[Member, tuple[Member, ...], Version]:
        """Makes a worker a member, or renews its membership.

        Args:
            world: its world.
            name: its name.
            address: where others reach it.
            incarnation: tells this start of its process from the next.
            worker_id: the id that it wants; None: any.

        Returns:
            The member, everybody who is there, and the version of that list.

        Raises:
            NameTaken: a live worker has the name or the id.
            TooLarge: there are as many as there may be.
            BadPayload: the name, the address or a number can't be one.
        """
        check_join(world, name, address, incarnation, worker_id)
        with self._lock:
            found = self._without_late(world)
            member = found.members.get(name)
            if member is not None and member.incarnation != incarnation:
                raise self._taken(found, member, f"the name {name!r}")
            holder = None if worker_id is None else found.by_id.get(worker_id)
            if holder is not None and holder != name:
                raise self._taken(found, found.members[holder], f"the id {worker_id}")
            if member is None:
                if self._count >= self._max_members:
                    raise TooLarge(
                        f"there are {self._count:,} workers already, as many as there may be",
                        metadata={"limit": "max_members"},
                    )
                chosen = self._free_id(found) if worker_id is None else worker_id
                member = Member(name, chosen, address, incarnation)
                self._add(world, found, member)
            elif member.address != address:
                member = found.members[name] = replace(member, address=address)
                self._note(world, "moved", member)
            found.expires[name] = self._clock() + self.lease_seconds
            answer = member, tuple(found.members.values()), self._version()
        self._wake(world)
        return answer

    def adopt(self, world: str, members: Iterable[Member]) -> None:
        """Takes in workers that another directory had, with a fresh lease; those that are here stay as they are.

        They need not join again, and nobody can take their names.
        """
        with self._lock:
            found = self._without_late(world)
            for member in members:
                if member.name not in found.members and member.worker_id not in found.by_id:
                    self._add(world, found, member)
                    found.expires[member.name] = self._clock() + self.lease_seconds
        self._wake(world)

    def renew(self, world: str, name: str, incarnation: int) -> None:
        """Renews a membership.

        Raises:
            MembershipLapsed: there is none.
        """
        with self._lock:
            found = self._worlds.get(world)
            member = found.members.get(name) if found is not None else None
            now = self._clock()
            if found is None or member is None or member.incarnation != incarnation or found.expires[name] <= now:
                raise MembershipLapsed(f"{name!r} is not a member (any more): join again")
            found.expires[name] = now + self.lease_seconds

    def leave(self, world: str, name: str, incarnation: int) -> None:
        """Ends a membership, if there is one."""
        with self._lock:
            found = self._worlds.get(world)
            member = found.members.get(name) if found is not None else None
            if found is None or member is None or member.incarnation != incarnation:
                return
            self._drop(world, found, member, "left")
        self._wake(world)

    def look_up(self, world: str, who: str | int) -> Member:
        """Finds a worker by its name or its id.

        Raises:
            WorkerUnknown: there is none.
        """
        with self._lock:
            found = self._worlds.get(world)
            name = who if isinstance(who, str) or found is None else found.by_id.get(who)
            member = found.members.get(name) if found is not None and isinstance(name, str) else None
            if found is None or member is None or found.expires[member.name] <= self._clock():
                raise WorkerUnknown(f"no worker {who!r} is there", metadata={"worker": str(who)})
            return member

    def members(self, world: str) -> tuple[tuple[Member, ...], Version]:
        """Returns everybody who is there, in the order in which they joined, and the version of that list."""
        with self._lock:
            found = self._worlds.get(world)
            return tuple(found.members.values()) if found is not None else (), self._version()

    # --- watchers ---

    def watch(self, world: str, wake: Callable[[], object]) -> Callable[[], None]:
        """Has `wake` called after each change, on whatever thread made it; returns what calls that off."""
        check_world(world)
        with self._lock:
            self._worlds.setdefault(world, _World()).watchers.add(wake)

        def call_off() -> None:
            with self._lock:
                found = self._worlds.get(world)
                if found is not None:
                    found.watchers.discard(wake)
                    self._forget_empty(world, found)

        return call_off

    def news(self, world: str, after: Version | None) -> News:
        """Tells what has changed since a version, or the whole list if that is not known any more."""
        with self._lock:
            version = self._version()
            if after is None or after[0] != self.incarnation or not self._floor <= after[1] <= self._number:
                found = self._worlds.get(world)
                return News(version, everyone=tuple(found.members.values()) if found is not None else ())
            changes = []
            for number, of, change in reversed(self._changes):
                if number <= after[1]:
                    break
                if of == world:
                    changes.append(change)
            return News(version, changes=tuple(reversed(changes)))

    # --- time ---

    def expire(self) -> float | None:
        """Drops who did not renew its lease in time; returns when the next lease lapses, None if there is none."""
        with self._lock:
            changed = [world for world, found in list(self._worlds.items()) if self._lapse(world, found)]
            ends = [when for found in self._worlds.values() for when in found.expires.values()]
        for world in changed:
            self._wake(world)
        return min(ends, default=None)

    # --- with the lock held ---

    def _without_late(self, world: str) -> _World:
        """Returns a world without those whose time is over; a new one, not on the list yet, if it is not there."""
        found = self._worlds.get(world)
        if found is None:
            return _World()
        self._lapse(world, found)
        return found

    def _lapse(self, world: str, found: _World) -> bool:
        now = self._clock()
        late = [found.members[name] for name, when in found.expires.items() if when <= now]
        for member in late:
            self._drop(world, found, member, "lapsed")
        return bool(late)

    def _add(self, world: str, found: _World, member: Member) -> None:
        self._worlds[world] = found
        found.members[member.name] = member
        found.by_id[member.worker_id] = member.name
        self._count += 1
        self._note(world, "joined", member)

    def _drop(self, world: str, found: _World, member: Member, kind: Kind) -> None:
        del found.members[member.name], found.by_id[member.worker_id], found.expires[member.name]
        self._count -= 1
        self._note(world, kind, member)
        self._forget_empty(world, found)

    def _forget_empty(self, world: str, found: _World) -> None:
        if not found.members and not found.watchers:
            self._worlds.pop(world, None)

    def _note(self, world: str, kind: Kind, member: Member) -> None:
        self._number += 1
        self._changes.append((self._number, world, Change(kind, member)))
        if len(self._changes) > _REMEMBERED_CHANGES:
            self._floor = self._changes.popleft()[0]

    def _version(self) -> Version:
        return self.incarnation, self._number

    def _free_id(self, found: _World) -> int:
        while True:
            chosen = _FIRST_FREE_ID + secrets.randbelow(_LAST_FREE_ID - _FIRST_FREE_ID)
            if chosen not in found.by_id:
                return chosen

    def _taken(self, found: _World, member: Member, what: str) -> NameTaken:
        seconds = max(0.0, found.expires[member.name] - self._clock())
        return NameTaken(
            f"{what} is taken: the worker {member.name!r} at {member.address} has it, which is alive as far as the "
            f"directory knows; if it has died, it is dropped in {seconds:.1f} s",
            metadata={
                "name": member.name,
                "worker_id": str(member.worker_id),
                "address": member.address,
                "lease_seconds": f"{seconds:.3f}",
            },
        )

    # --- without the lock ---

    def _wake(self, world: str) -> None:
        with self._lock:
            found = self._worlds.get(world)
            watchers = list(found.watchers) if found is not None else []
        for wake in watchers:
            wake()
