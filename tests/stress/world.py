"""A world with a clock of its own, and a network that loses, repeats, delays and reorders what it carries."""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from tensorcall.client.asking import Surroundings
from tensorcall.wire.errors import ConnectionLost, DeadlineExceeded


@dataclasses.dataclass
class Faults:
    """How often things go wrong, as shares of messages."""

    lost: float = 0.1
    repeated: float = 0.1
    late: float = 0.05
    latest: float = 8.0
    deaths: bool = True
    """Whether processes die, are cut off, and calls are given up."""

    def __post_init__(self) -> None:
        self.on = True


class Process:
    """What may die: from then on nothing of it happens any more."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.dead = False
        self.cut_off_until = 0.0

    def later(self, seconds: float, what: Callable[[], object]) -> Callable[[], None]:
        """Has something happen in this process, if it still lives then; returns what calls that off."""
        wanted = [what]

        def happen() -> None:
            if wanted and not self.dead:
                wanted.pop()()

        self.world.after(seconds, happen)
        return wanted.clear

    def surroundings(self) -> Surroundings:
        """What a link in this process has around it."""

        def post(household: Any, item: Any) -> None:
            def do() -> None:
                household.take(item)
                household.flush()

            self.later(self.world.random.uniform(0, 0.01), do)

        return Surroundings(lambda: self.world.now, self.later, post, lambda: None)

    def die(self) -> None:
        self.dead = True


class World:
    """Time, chance and the network."""

    def __init__(self, seed: int, faults: Faults) -> None:
        self.random = random.Random(seed)
        self.faults = faults
        self.now = 0.0
        self.counts: Counter[str] = Counter()
        self.incarnations = itertools.count(1)
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()

    def after(self, seconds: float, what: Callable[[], object]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._numbers), what))

    def run(self, until: float) -> None:
        """Lets everything happen that does until then."""
        while self._events and self._events[0][0] <= until:
            self.now, _, what = heapq.heappop(self._events)
            self.counts["events"] += 1
            what()
            del what
        self.now = until

    def delay(self) -> float:
        if self.faults.on and self.random.random() < self.faults.late:
            return self.random.uniform(0.5, self.faults.latest)
        return self.random.expovariate(100.0)

    def carry(self, sender: Process, to: Process, deliver: Callable[[], object]) -> None:
        """Carries a message, or loses it, or carries it twice."""
        random, faults = self.random, self.faults
        copies = 1
        if faults.on:
            if random.random() < faults.lost:
                self.counts["lost"] += 1
                copies = 0
            elif random.random() < faults.repeated:
                self.counts["repeated"] += 1
                copies = 2
        if max(to.cut_off_until, sender.cut_off_until) > self.now:
            self.counts["cut off"] += 1
            copies = 0
        for _ in range(copies):
            to.later(self.delay(), deliver)

    def ask(
        self, asker: Process, asked: Callable[[], Process], answer: Callable[[str, Any], Any], tell_lost: float = 0.2
    ) -> Callable[[str, Any, float], Future[Any]]:
        """Makes what a link asks with.

        Args:
            asker: whose link it is.
            asked: returns the process that answers now.
            answer: answers, or raises.
            tell_lost: how often a lost message is noticed at once.
        """

        def ask(method: str, request: Any, timeout: float) -> Future[Any]:
            self.counts[method] += 1
            future: Future[Any] = Future()

            def end(result: Any, error: BaseException | None) -> None:
                if not future.done():
                    if error is None:
                        future.set_result(result)
                    else:
                        future.set_exception(error)

            def arrive() -> None:
                try:
                    result, error = answer(method, request), None
                except Exception as raised:
                    result, error = None, raised.with_traceback(None)
                self.carry(to, asker, lambda: end(result, error))

            to = asked()
            if self.faults.on and self.random.random() < self.faults.lost * tell_lost:
                asker.later(self.delay(), lambda: end(None, ConnectionLost("by chance")))
                if self.random.random() < 0.5:
                    return future
            self.carry(asker, to, arrive)
            asker.later(timeout, lambda: end(None, DeadlineExceeded("no answer")))
            return future

        return ask
