"""The simulation notices defects: with each of these in the product it fails."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from stress.simulation import simulate
from tensorcall.client.link import Link
from tensorcall.server.leases import Leases, Seen
from tensorcall.server.rrefs import RRefTable

# So many seeds may be tried, with so many operations each.
SEEDS, OPERATIONS = 4, 1000

Break = Callable[[pytest.MonkeyPatch], None]


def no_release(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server ignores releases."""
    monkeypatch.setattr(RRefTable, "release", lambda *_, **__: None)


def half_release(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server ignores every second release."""
    release = RRefTable.release

    def half(self: RRefTable, client_id: str, *, numbers: Iterable[int] = (), **others: Any) -> None:
        release(self, client_id, numbers=[number for number in numbers if number % 2], **others)

    monkeypatch.setattr(RRefTable, "release", half)


def holds_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server never drops holds of answers."""
    release = RRefTable.release

    def forgetful(self: RRefTable, client_id: str, *, holds: Iterable[int] = (), **others: Any) -> None:
        release(self, client_id, **others)

    monkeypatch.setattr(RRefTable, "release", forgetful)


def no_lapse_of_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """What answers hold that got lost stays."""
    monkeypatch.setattr(RRefTable, "let_holds_lapse", lambda *_: None)


def early_drop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server drops forks that it has confirmed."""
    fork = RRefTable.fork

    def dropping(self: RRefTable, rref_id: Any, client_id: str, number: int = 0) -> None:
        fork(self, rref_id, client_id, number)
        lease = self.leases.by_client[client_id]
        oldest = next(iter(lease.forks), 1)
        if oldest % 3 == 0:
            self._detach(lease, lease.forks.pop(oldest))

    monkeypatch.setattr(RRefTable, "fork", dropping)


def early_lapse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases lapse after a fifth of their time."""
    lapsed = Leases.lapsed
    monkeypatch.setattr(Leases, "lapsed", lambda self, now: lapsed(self, now + self.seconds * 0.8))


def no_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server does not know which numbers were used: what comes late is taken for new."""
    monkeypatch.setattr(Seen, "add", lambda *_: True)
    monkeypatch.setattr(Seen, "__contains__", lambda *_: False)


def miscount(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server does not count off what it drops."""
    detach = RRefTable._detach

    def detached(self: RRefTable, lease: Any, owned: Any) -> None:
        nbytes = lease.nbytes
        detach(self, lease, owned)
        lease.nbytes = nbytes

    monkeypatch.setattr(RRefTable, "_detach", detached)


def early_release_of_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client releases holds before its forks are confirmed."""
    monkeypatch.setattr(Link, "hold", lambda self, hold, handles: self.release_hold(hold))


def no_release_of_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client does not release what was let go of before it was confirmed."""
    monkeypatch.setattr(Link, "settle", lambda self, fork, error: fork.settle(error))


def release_of_a_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client says of which start of the owner its releases are, and may not have heard of the latest."""
    request = Link._request

    def dated(self: Link, method: str, message: Any, *others: Any) -> None:
        if method == "Release" and self._lease is not None:
            message.incarnation = self._lease.incarnation
        request(self, method, message, *others)

    monkeypatch.setattr(Link, "_request", dated)


@pytest.mark.parametrize(
    "defect",
    [
        no_release,
        half_release,
        holds_stay,
        no_lapse_of_holds,
        early_drop,
        early_lapse,
        no_seen,
        miscount,
        early_release_of_holds,
        no_release_of_late,
        release_of_a_start,
    ],
)
def test_a_defect_is_noticed(defect: Break, monkeypatch: pytest.MonkeyPatch) -> None:
    logging.getLogger("tensorcall").setLevel(logging.CRITICAL)
    defect(monkeypatch)
    for seed in range(SEEDS):
        try:
            simulate(seed, OPERATIONS)
        except AssertionError as error:
            print(f"seed {seed}: {error}")
            return
    pytest.fail(f"{defect.__doc__} {SEEDS} runs have not noticed")


def test_without_defects_there_is_nothing_to_notice() -> None:
    for seed in range(SEEDS):
        simulate(seed, OPERATIONS)
