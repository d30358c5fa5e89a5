"""Who is there, as one worker knows it: kept by the news of a directory, and through the times when there is none."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from tensorcall.client.directory import Change, News, Worker


class Roster:
    """The workers that a worker knows. Not safe from several threads by itself.

    A directory that took another one's place knows only those who have joined again so far. Whoever it does not know
    yet stays on the roster for the time of a lease, in which it joins again if it is alive. The worker itself is always
    on it: it knows better than any directory whether it is there.
    """

    def __init__(self, own: Worker, clock: Callable[[], float] = time.monotonic) -> None:
        self._own = own
        self._clock = clock
        self._directory = 0
        self.workers: dict[str, Worker] = {own.name: own}
        self._by_id: dict[int, str] = {own.id: own.name}
        # Until when those stay that the directory has not confirmed.
        self._doubtful: dict[str, float] = {}

    def find(self, who: str | int) -> Worker | None:
        """Returns the worker of this name or id."""
        name = who if isinstance(who, str) else self._by_id.get(who)
        return None if name is None else self.workers.get(name)

    def apply(self, news: News, lease_seconds: float) -> list[Change]:
        """Takes in news; returns what has changed by them."""
        new_directory = news.version.directory != self._directory
        self._directory = news.version.directory
        if news.everyone is None:
            return [change for each in news.changes for change in self._take(each)]
        changes = [change for each in news.everyone for change in self._take(Change("joined", each))]
        there = {worker.name for worker in news.everyone}
        for name in [name for name in self.workers if name not in there and name != self._own.name]:
            if new_directory:
                self._doubtful.setdefault(name, self._clock() + lease_seconds)
            elif name not in self._doubtful:
                changes += self._drop(name, "left")
        return changes

    def drop_doubtful(self) -> list[Change]:
        """Drops those whose time to join again is over."""
        late = [name for name, until in self._doubtful.items() if until <= self._clock()]
        return [change for name in late for change in self._drop(name, "lapsed")]

    def _take(self, change: Change) -> Iterable[Change]:
        worker = change.worker
        if worker.name == self._own.name:
            return
        known = self.workers.get(worker.name)
        if change.kind in ("left", "lapsed"):
            # One that has come again since is not meant.
            if known is not None and known.incarnation == worker.incarnation:
                yield from self._drop(worker.name, change.kind)
            return
        self._doubtful.pop(worker.name, None)
        if known == worker:
            return
        if known is not None and (known.incarnation, known.id) == (worker.incarnation, worker.id):
            self.workers[worker.name] = worker
            yield Change("moved", worker)
            return
        if known is not None:
            yield from self._drop(worker.name, "lapsed")
        self.workers[worker.name] = worker
        self._by_id[worker.id] = worker.name
        yield Change("joined", worker)

    def _drop(self, name: str, kind: str) -> list[Change]:
        worker = self.workers.pop(name)
        self._doubtful.pop(name, None)
        if self._by_id.get(worker.id) == name:
            del self._by_id[worker.id]
        return [Change("left" if kind == "left" else "lapsed", worker)]
