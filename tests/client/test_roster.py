"""What a worker knows of the others, news by news."""

from __future__ import annotations

from tensorcall.client.directory import Change, News, Version, Worker
from tensorcall.client.roster import Roster

OWN, A, B = Worker("own", 0, "h:0", 1), Worker("a", 1, "h:1", 1), Worker("b", 2, "h:2", 1)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def everyone(*workers: Worker, directory: int = 1) -> News:
    return News((), workers, Version(directory=directory, number=1))


def changes(*given: Change) -> News:
    return News(given, None, Version(directory=1, number=1))


def test_a_whole_list_is_told_as_what_it_changes() -> None:
    roster = Roster(OWN)
    assert roster.apply(everyone(OWN, A, B), 10) == [Change("joined", A), Change("joined", B)]
    again = Worker("b", 3, "h:2", 2)
    moved = Worker("a", 1, "h:9", 1)
    assert roster.apply(everyone(moved, again), 10) == [
        Change("moved", moved),
        Change("lapsed", B),
        Change("joined", again),
    ]
    assert roster.find(2) is None
    assert roster.find(3) == roster.find("b") == again
    assert roster.apply(everyone(again), 10) == [Change("left", moved)]
    assert list(roster.workers) == ["own", "b"]


def test_whom_a_new_directory_does_not_know_has_a_lease_to_join_again() -> None:
    clock = Clock()
    roster = Roster(OWN, clock)
    roster.apply(everyone(A, B), 10)
    assert roster.apply(everyone(directory=2), 10) == []
    clock.now = 9
    # A further list of the same directory says nothing new of those who are awaited.
    assert roster.apply(everyone(directory=2), 10) == []
    assert roster.apply(everyone(A, directory=2), 10) == []
    assert roster.drop_doubtful() == []
    clock.now = 10
    assert roster.drop_doubtful() == [Change("lapsed", B)]
    assert roster.find("a") == A


def test_what_a_directory_says_of_the_worker_itself_is_known_better() -> None:
    roster = Roster(OWN)
    assert roster.apply(changes(Change("lapsed", OWN), Change("joined", OWN)), 10) == []
    assert roster.apply(everyone(A), 10) == [Change("joined", A)]
    assert roster.find("own") == OWN


def test_the_end_of_an_earlier_start_is_not_that_of_a_later_one() -> None:
    roster = Roster(OWN)
    again = Worker("a", 5, "h:1", 2)
    roster.apply(everyone(again), 10)
    assert roster.apply(changes(Change("left", A)), 10) == []
    assert roster.find("a") == again
