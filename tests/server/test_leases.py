"""Who holds what until when; by a clock that the tests move."""

from __future__ import annotations

import gc
import random
import time
import weakref
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from tensorcall.server.leases import MAX_NUMBER, Leases, Seen
from tensorcall.server.owned import Owned
from tensorcall.server.rrefs import RRefTable
from tensorcall.wire.errors import (
    BadPayload,
    DuplicateCall,
    Overloaded,
    OwnerRestarted,
    RRefExpired,
    RRefUnknown,
    TooLarge,
)
from tensorcall.wire.rrefs import RRefId

LEASE = 60.0


class Clock:
    """Time, as the tests have it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Thing:
    """A value whose end can be seen."""


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def table(clock: Clock) -> RRefTable:
    return RRefTable("w", 7, "host:1", lease_seconds=LEASE, max_per_client=10, max_bytes_per_client=100, clock=clock)


def made(table: RRefTable, client: str, number: int) -> tuple[RRefId, weakref.ref[Thing]]:
    """Has a client make a thing."""
    owned, thing = table.promise(client, number, "Thing"), Thing()
    owned.set_value(thing)
    return owned.rref_id, weakref.ref(thing)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 40)), max_size=60))
def test_numbers_that_were_seen(steps: list[tuple[bool, int]]) -> None:
    seen, model = Seen(), set()
    for settles, number in steps:
        if settles:
            seen.settle(number)
            model |= set(range(1, number))
        else:
            assert seen.add(number) == (number not in model)
            model.add(number)
        assert {n for n in range(1, 60) if n in seen} == model
        # What lies below the floor takes no memory.
        assert len(seen) == len([n for n in model if n >= seen.floor])
        assert seen.floor not in model


def test_numbers_take_no_memory_however_they_come() -> None:
    seen = Seen()
    numbers = list(range(1, 20_000))
    random.Random(1).shuffle(numbers)
    for number in numbers:
        assert seen.add(number)
    assert (seen.floor, len(seen)) == (20_000, 0)
    for number in range(30_000, 700_000, 2):
        seen.add(number)
    assert len(seen) < 300_000
    seen.settle(1 << 39)
    assert len(seen) == 0


def test_a_value_lives_as_long_as_it_has_forks(table: RRefTable) -> None:
    name, thing = made(table, "a", 1)
    assert (name.owner, name.incarnation, name.address) == ("w", 7, "host:1")
    assert name.sequence == table.grant("a").first_sequence + 1
    table.fork(name, "b", 1)
    table.release("a", numbers=[1])
    assert table.get(name).wait(0) is thing()
    table.release("b", numbers=[1])
    assert thing() is None
    with pytest.raises(RRefUnknown, match="nobody held it"):
        table.get(name)
    assert table.counts() == {"values": 0, "held": 0, "pending": 0, "forks": 0, "holds": 0, "leases": 2}


def test_what_a_local_handle_keeps_alive_is_found_by_name(table: RRefTable) -> None:
    owned = table.own(Thing())
    assert table.get(owned.rref_id) is owned
    assert table.infos() == ([], 0)
    name = owned.rref_id
    table.fork(name, "a", 5)
    del owned
    table.fork(name, "b", 5)
    table.release("a", numbers=[5])
    table.release("b", numbers=[5])
    with pytest.raises(RRefUnknown):
        table.fork(name, "c", 1)


def test_fork_and_release_are_idempotent_in_any_order(table: RRefTable) -> None:
    name, thing = made(table, "a", 1)
    for _ in range(3):
        table.fork(name, "b", 1)
    assert table.counts()["forks"] == 2
    table.release("b", numbers=[1, 1])
    table.release("b", numbers=[1])
    # Late repetitions of both.
    table.fork(name, "b", 1)
    # The release first: there is nothing for the fork to do then, even if the value is long gone.
    table.release("b", numbers=[9])
    table.fork(name, "b", 9)
    assert table.counts()["forks"] == 1
    table.release("a", numbers=[1])
    table.fork(name, "b", 9)
    assert thing() is None


def test_numbers_below_the_settled_one_are_used(table: RRefTable) -> None:
    name, _ = made(table, "a", 1)
    table.fork(name, "b", 3)
    table.release("b", settled_below=10)
    table.fork(name, "b", 4)
    assert table.counts()["forks"] == 2
    table.release("b", numbers=[3])
    table.fork(name, "b", 10)
    assert table.counts()["forks"] == 2


def test_a_client_without_numbers_has_one_fork_of_each_value(table: RRefTable) -> None:
    owned = table.promise("a", 0, "Thing")
    owned.set_value(Thing())
    name, thing = owned.rref_id, weakref.ref(owned.wait(0))
    del owned
    table.fork(name, "a")
    table.fork(name, "a")
    assert table.counts()["forks"] == 1
    table.release("a", rrefs=[name._replace(incarnation=8), name._replace(owner="x")])
    assert thing() is not None
    table.release("a", rrefs=[name, name])
    assert thing() is None


def test_a_name_may_be_passed_on_before_the_value_is_made(table: RRefTable) -> None:
    first = table.grant("a").first_sequence
    name = RRefId("w", 7, first + 3)
    table.fork(name, "b", 1)
    waiting = table.get(name)
    assert not waiting.done
    assert table.counts()["pending"] == 1
    owned = table.promise("a", 3, "Thing")
    assert owned is waiting
    owned.set_value("there")
    assert (table.get(name).wait(0), owned.made_by) == ("there", "Thing")
    with pytest.raises(DuplicateCall, match="nothing was run"):
        table.promise("a", 3, "Thing")


@pytest.mark.parametrize("how", ["lapse", "revoke", "release", "settle"])
def test_a_name_that_nobody_will_make_fails(table: RRefTable, clock: Clock, how: str) -> None:
    name = RRefId("w", 7, table.grant("a").first_sequence + 3)
    clock.now += LEASE / 2
    table.fork(name, "b", 1)
    owned = table.get(name)
    if how == "lapse":
        clock.now += LEASE / 2
        table.expire()
    elif how == "revoke":
        table.revoke("a")
    elif how == "release":
        table.release("a", numbers=[3])
    else:
        table.release("a", settled_below=4)
    with pytest.raises(RRefUnknown, match="never made"):
        owned.wait(0)
    if how in ("release", "settle"):
        with pytest.raises(DuplicateCall):
            table.promise("a", 3)
    table.release("b", numbers=[1])
    del owned
    with pytest.raises(RRefUnknown):
        table.get(name)


def test_a_lease_that_lapses_takes_everything_along(table: RRefTable, clock: Clock) -> None:
    shared, thing = made(table, "a", 1)
    alone, other = made(table, "a", 2)
    unnumbered = table.promise("a", 0)
    unnumbered.set_value(Thing())
    third = unnumbered.rref_id
    del unnumbered
    table.hold("a", [])
    clock.now += LEASE - 1
    table.fork(shared, "b", 1)
    assert table.expire() == clock.now + 1
    clock.now += 1
    assert table.expire() == clock.now + LEASE - 1
    assert other() is None
    assert thing() is not None
    assert table.counts() == {"values": 1, "held": 1, "pending": 0, "forks": 1, "holds": 0, "leases": 1}
    for name in (alone, third):
        with pytest.raises(RRefExpired, match="lapsed"):
            table.get(name)
    with pytest.raises(RRefExpired, match="everything under it is gone"):
        table.keep_alive("a")
    # Let go of in good order, it was not the lease.
    table.release("b", numbers=[1])
    with pytest.raises(RRefUnknown):
        table.get(shared)
    clock.now += LEASE
    assert table.expire() is None


def test_a_lease_that_is_renewed_holds(table: RRefTable, clock: Clock) -> None:
    name, _ = made(table, "a", 1)
    for renew in [lambda: table.keep_alive("a", 7), lambda: table.touch("a"), lambda: table.grant("a")] * 3:
        clock.now += LEASE * 0.9
        renew()
        table.expire()
        table.get(name)
    with pytest.raises(OwnerRestarted):
        table.keep_alive("a", 8)
    table.revoke("a")
    table.revoke("a")
    with pytest.raises(RRefUnknown):
        table.get(name)
    assert not table.touch("a")


def test_messages_of_a_client_whose_lease_ended_are_not_taken_for_new(table: RRefTable, clock: Clock) -> None:
    name, _ = made(table, "keeper", 1)
    table.fork(name, "a", 1)
    first = table.grant("a").first_sequence
    clock.now += LEASE * 0.9
    table.touch("keeper")
    clock.now += LEASE * 0.2
    table.expire()
    # Late: the repetition of a fork, and the fork that a release has overtaken.
    table.release("a", numbers=[2])
    table.fork(name, "a", 1)
    table.fork(name, "a", 2)
    assert table.counts()["forks"] == 1
    table.fork(name, "a", 3)
    assert table.counts()["forks"] == 2
    assert table.grant("a").first_sequence != first


def test_another_start_of_the_process(table: RRefTable) -> None:
    name, _ = made(table, "a", 1)
    with pytest.raises(OwnerRestarted, match="restarted"):
        table.get(name._replace(incarnation=6))
    with pytest.raises(RRefUnknown, match="belongs to 'other'"):
        table.get(name._replace(owner="other"))
    # What another start had is not dropped here.
    table.release("a", incarnation=6, numbers=[1], settled_below=100)
    table.get(name)
    with pytest.raises(RRefUnknown):
        table.get(name._replace(sequence=99))
    with pytest.raises(RRefUnknown):
        table.get(name._replace(sequence=(5 << 40) + 1))


class Handle:
    """A handle of a value here, or of nothing here."""

    def __init__(self, owned: Owned | None) -> None:
        self.owned = owned


def test_holds(table: RRefTable, clock: Clock) -> None:
    def held(client: str) -> tuple[RRefId, int]:
        owned = table.own(Thing())
        handles: list[Any] = [Handle(owned), Handle(owned), Handle(None)]
        return owned.rref_id, table.hold(client, handles)

    (a, hold_a), (b, hold_b), (c, hold_c) = held("a"), held("a"), held("")
    assert len({hold_a, hold_b, hold_c}) == 3
    table.release("b", holds=[hold_a])
    table.release("a", holds=[hold_a, hold_c])
    with pytest.raises(RRefUnknown):
        table.get(a)
    table.get(b)
    table.get(c)
    infos, total = table.infos()
    assert total == 2
    assert [[(holder.client_id, holder.forks) for holder in info.holders] for info in infos] == [[("a", 2)], [("", 2)]]
    clock.now += LEASE
    table.expire()
    for name in (b, c):
        with pytest.raises(RRefExpired):
            table.get(name)
    # Who does not say who it is can release, too, as long as it knows the number.
    d, hold_d = held("")
    table.release("", holds=[hold_d, hold_d])
    with pytest.raises(RRefUnknown):
        table.get(d)
    assert table.counts()["values"] == 0


def test_an_anonymous_call_keeps_its_value_for_the_time_of_a_lease(table: RRefTable, clock: Clock) -> None:
    owned = table.promise("", 0, "f")
    owned.set_value(1)
    name = owned.rref_id
    del owned
    clock.now += LEASE - 1
    table.expire()
    table.get(name)
    clock.now += 1
    assert table.expire() is None
    with pytest.raises(RRefExpired):
        table.get(name)


def test_anonymous_calls_keep_so_many_bytes_together(table: RRefTable) -> None:
    table.promise("", 0, "f").set_value(b"x" * 60)
    with pytest.raises(TooLarge, match="that it may hold"):
        table.promise("", 0, "f").set_value(b"x" * 60)
    table.promise("a", 1, "f").set_value(b"x" * 60)


def test_the_list_takes_no_longer_for_anonymous_holds(clock: Clock) -> None:
    table = RRefTable("w", 7, clock=clock)
    for i in range(20_000):
        table.promise("", 0, "f").set_value(i)
    clock.now += 1
    began = time.process_time()
    infos, total = table.infos(20_000)
    # It was several seconds when each looked at all.
    assert time.process_time() - began < 2
    assert (len(infos), total) == (20_000, 20_000)
    assert infos[0].holders[0].remaining == LEASE - 1


def test_a_client_holds_so_many(table: RRefTable) -> None:
    name, _ = made(table, "a", 1)
    for number in range(2, 11):
        table.fork(name, "a", number)
    for too_many in (
        lambda: table.fork(name, "a", 11),
        lambda: table.fork(name, "a"),
        lambda: table.promise("a", 11),
        lambda: table.promise("a", 0),
        lambda: table.hold("a", [Handle(None)]),  # type: ignore[list-item]
    ):
        with pytest.raises(TooLarge, match=r"holds 10 references, and may hold 10"):
            too_many()
    # It was not used up by that, and others are not concerned.
    table.fork(name, "b", 1)
    table.release("a", numbers=[2])
    table.fork(name, "a", 11)


def test_a_client_holds_so_many_bytes(table: RRefTable) -> None:
    a = table.promise("a", 1)
    a.set_value(bytes(60))
    b = table.promise("a", 2)
    with pytest.raises(TooLarge, match=r"values of 60 bytes; another 60 would be more than the 100"):
        b.set_value(bytes(60))
    with pytest.raises(TooLarge):
        b.wait(0)
    # Forks of what it has take nothing more.
    table.fork(a.rref_id, "a", 3)
    mine = table.own(bytes(60))
    with pytest.raises(TooLarge):
        table.fork(mine.rref_id, "a", 4)
    table.release("a", numbers=[1])
    with pytest.raises(TooLarge):
        table.fork(mine.rref_id, "a", 4)
    table.release("a", numbers=[3])
    table.fork(mine.rref_id, "a", 4)
    assert {info.nbytes for info in table.infos()[0]} == {0, 60}


@pytest.mark.parametrize(
    "wrong",
    [
        lambda table, name: table.fork(name, "", 1),
        lambda table, name: table.fork(name, "x" * 129, 1),
        lambda table, name: table.fork(name, "a", MAX_NUMBER + 1),
        lambda table, name: table.promise("a", MAX_NUMBER + 1),
        lambda table, name: table.promise("", 1),
        lambda table, name: table.grant(""),
    ],
)
def test_impossible_clients_and_numbers(table: RRefTable, wrong: Any) -> None:
    owned = table.own(1)
    with pytest.raises(BadPayload):
        wrong(table, owned.rref_id)
    table.release("nobody", numbers=[0, 1, 1 << 63], holds=[4], settled_below=1 << 63)


def test_infos_tell_the_oldest_first(table: RRefTable, clock: Clock) -> None:
    names = []
    for number in range(1, 4):
        names.append(made(table, "a", number)[0])
        clock.now += 1
    table.promise("b", 1, "slow")
    infos, total = table.infos(2)
    assert total == 4
    assert [info.rref_id for info in infos] == names[:2]
    assert [info.age for info in infos] == [3, 2]
    assert infos[0].type.endswith("Thing")
    assert infos[0].made_by == "Thing"
    assert [(h.client_id, h.forks, h.remaining) for h in infos[0].holders] == [("a", 1, LEASE - 1)]
    last = table.infos()[0][-1]
    assert (last.type, last.made_by, last.nbytes) == ("", "slow", 0)


def test_the_end_of_a_value_may_do_anything(table: RRefTable, clock: Clock) -> None:
    class Wild:
        def __del__(self) -> None:
            table.release("a", numbers=[2])
            done.append(table.own(1).rref_id)

    done: list[RRefId] = []
    for end in (lambda: table.release("a", numbers=[1]), lambda: table.revoke("a")):
        made(table, "a", 2)
        owned = table.promise("a", 1)
        owned.set_value(Wild())
        del owned
        end()
        table.revoke("a")
        table.leases._ended.clear()
    assert len(done) == 2
    gc.collect()
    assert table.counts()["values"] == 0


def test_clients_are_limited_and_ended_ones_take_little_memory() -> None:
    leases = Leases(10.0, max_leases=2)
    first = leases.grant("a", 0.0)
    leases.grant("b", 0.0)
    with pytest.raises(Overloaded, match="2 clients have leases"):
        leases.grant("c", 0.0)
    # One that has a lease may renew it.
    assert leases.grant("a", 1.0) is first
    for number in range(2, 200_000, 2):
        first.seen.add(number)
    leases.end(first)
    assert leases.grant("c", 1.0)
    leases.end(leases.by_client["b"])
    again = leases.grant("a", 1.0)
    assert len(again.seen) <= 1024
    # What was used stays used.
    assert 2 in again.seen
    assert 199_998 in again.seen
    assert 200_000 not in again.seen
