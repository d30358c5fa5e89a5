"""Calls on a session that have to wait for a value, or for another owner."""

from __future__ import annotations

import queue
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from support.reference import rref_of
from support.rref_client import RRefClient, read, refused
from support.servers import ServerProcess, eventually

from tensorcall.v1 import handler_service_pb2 as pb
from tensorcall.v1.rref_pb2 import RRefId
from tensorcall.v1.value_pb2 import Value
from tensorcall.wire import errors

RREF = pb.RESULT_FORM_RREF


class RawSession:
    """A session whose messages the test writes itself."""

    def __init__(self, client: RRefClient) -> None:
        self.client = client
        self._requests: queue.SimpleQueue[pb.SessionRequest | None] = queue.SimpleQueue()
        self._requests.put(pb.SessionRequest(hello=pb.SessionHello(client_id=client.id)))
        self._responses = client.handler.Session(iter(self._requests.get, None), timeout=60)
        self._replies: dict[int, list[pb.SessionReply]] = {}
        assert next(self._responses).HasField("welcome")

    def send(self, *calls: pb.SessionCall, **fields: Any) -> None:
        self._requests.put(pb.SessionRequest(calls=calls, **fields))

    def reply(self, number: int) -> pb.SessionReply:
        """The next reply to a call, whatever else comes before."""
        while not self._replies.get(number):
            for reply in next(self._responses).replies:
                self._replies.setdefault(reply.id, []).append(reply)
        return self._replies[number].pop(0)

    def quiet(self, number: int) -> bool:
        """Whether nothing was heard of a call when another one that came later is answered."""
        self.send(pb.SessionCall(id=999_999, request=pb.CallRequest(function="served.noop")))
        self.reply(999_999)
        return not self._replies.get(number)

    def abort(self) -> None:
        self._responses.cancel()

    def end(self) -> None:
        self._requests.put(None)
        for _ in self._responses:
            pass


@pytest.fixture
def client(server: ServerProcess) -> Iterator[RRefClient]:
    with RRefClient(server.address) as made:
        yield made


@pytest.fixture
def session(client: RRefClient) -> Iterator[RawSession]:
    made = RawSession(client)
    yield made
    made.abort()


def promised(client: RRefClient) -> tuple[int, RRefId]:
    number = client.next_number()
    lease = client.lease
    return number, RRefId(owner=lease.worker, incarnation=lease.incarnation, sequence=lease.first_sequence + number)


def making(client: RRefClient, gate: str, number: int) -> pb.CallRequest:
    # The session's hello says who it is.
    request = client.request("served.cell_behind_gate", gate, 42, number=number, want=RREF)
    request.client_id = ""
    return request


def test_calls_wait_for_the_value_and_hold_up_nothing(client: RRefClient, session: RawSession) -> None:
    gate = f"session {client.id}"
    number, name = promised(client)
    calls = [
        (name, "get"),
        (name, "get_later"),
        (name, "fail"),
        name,
    ]
    session.send(
        pb.SessionCall(id=1, request=making(client, gate, number)),
        *(pb.SessionCall(id=2 + i, request=client.request(target)) for i, target in enumerate(calls)),
        pb.SessionCall(id=6, request=client.request("served.value_of", name)),
        pb.SessionCall(id=7, request=client.request((name, "items"), 5), stream=True, credit=1),
        pb.SessionCall(id=8, request=client.request((name, "get"), number=client.next_number(), want=RREF)),
    )
    # Credit for what does not run yet.
    session.send(credits=[pb.StreamCredit(id=7, items=2)])
    assert all(session.quiet(number) for number in range(1, 9))
    session.send(pb.SessionCall(id=9, request=client.request("served.open_gate", gate)))
    assert rref_of(session.reply(1).result.rref) == rref_of(name)
    assert read(session.reply(2).result.result) == 42
    assert read(session.reply(3).result.result) == 42
    assert session.reply(4).failure.exception.exceptions[0].type == "LookupError"
    assert session.reply(5).failure.reason == "UNENCODABLE_RESULT"
    assert read(session.reply(6).result.result) == 42
    assert [read(session.reply(7).item) for _ in range(3)] == [0, 1, 2]
    assert session.quiet(7)
    session.send(credits=[pb.StreamCredit(id=7, items=5)])
    assert [read(session.reply(7).item) for _ in range(2)] == [3, 4]
    assert session.reply(7).HasField("end")
    made = session.reply(8).result.rref
    assert client.call(made) == 42
    session.end()


def test_a_call_that_waits_for_a_value_can_be_cancelled_and_ends_in_time(
    client: RRefClient, session: RawSession
) -> None:
    _, name = promised(client)
    late = pb.SessionCall(id=2, request=client.request(name))
    late.timeout.FromMilliseconds(100)
    made = client.next_number()
    session.send(
        pb.SessionCall(id=1, request=client.request(name)),
        late,
        pb.SessionCall(id=3, request=client.request((name, "get"), number=made, want=RREF)),
    )
    assert session.reply(2).failure.reason == "DEADLINE_EXCEEDED"
    assert session.quiet(1)
    session.send(cancels=[1, 3])
    assert session.reply(1).failure.reason == "CANCELLED"
    assert session.reply(3).failure.reason == "CANCELLED"
    # What would have been made of it failed the same way.
    with refused("CANCELLED"):
        client.call(RRefId(owner=name.owner, incarnation=name.incarnation, sequence=client.lease.first_sequence + made))
    session.send(pb.SessionCall(id=4, request=client.request(name)))
    assert session.quiet(4)
    session.abort()


def test_numbers_belong_to_the_client_of_the_hello(client: RRefClient, session: RawSession) -> None:
    request = pb.CallRequest(function="served.cell", number=client.next_number(), want=RREF, client_id="someone else")
    request.args.add().int = 1
    session.send(pb.SessionCall(id=1, request=request), pb.SessionCall(id=2, request=request))
    answers = [session.reply(1), session.reply(2)]
    made = [answer.result.rref for answer in answers if answer.HasField("result")]
    assert [rref.sequence for rref in made] == [client.lease.first_sequence + 1]
    # The same number a second time makes nothing.
    assert [answer.failure.reason for answer in answers if answer.HasField("failure")] == ["DUPLICATE_CALL"]
    payload = pb.CallRequest(function="served.refer")
    payload.args.add().list.items.append(Value(int=1))
    session.send(pb.SessionCall(id=3, request=payload))
    assert session.reply(3).result.result.hold
    info = client.listed(session.client.request(made[0]).fetch)
    assert info is not None
    assert info.holders[0].client_id.startswith(client.id[:16])


def test_a_drain_waits_for_no_value_that_nobody_makes() -> None:
    with ServerProcess(grace=60.0) as server:
        client = RRefClient(server.address)
        session = RawSession(client)
        _, name = promised(client)
        session.send(pb.SessionCall(id=1, request=client.request(name)))
        assert session.quiet(1)
        server.send(signal.SIGTERM)
        assert session.reply(1).failure.reason == "SHUTTING_DOWN"
        session.end()
        assert server.process.wait(30) == 0
        client.channel.close()


# --- references to values of another server ---


@pytest.fixture(scope="module")
def second() -> Iterator[ServerProcess]:
    with ServerProcess(worker="second") as process:
        yield process
        code, log = process.end()
    assert code == 0, log
    assert "defect" not in log, log


@pytest.fixture
def there(second: ServerProcess) -> Iterator[RRefClient]:
    with RRefClient(second.address) as made:
        yield made


def holders(client: RRefClient, rref: RRefId) -> int:
    info = client.listed(rref)
    return 0 if info is None else sum(holder.forks for holder in info.holders)


def test_a_reference_to_another_servers_value(client: RRefClient, there: RRefClient) -> None:
    cell = client.remote("served.cell", 5)
    assert there.call("served.get_of", cell) == 5
    value = client.remote("served.echo", [1, 2])
    assert there.call("served.here", value) == [1, 2]
    owner, worker, name, confirmed = there.call("served.about", cell)
    # The owner has confirmed it before the function began.
    assert (owner, worker, confirmed) == (False, client.lease.worker, True)
    assert name == str(rref_of(cell))
    eventually(lambda: holders(client, cell) == 1 and holders(client, value) == 1)


def test_the_second_server_keeps_the_value_alive(client: RRefClient, there: RRefClient) -> None:
    cell = client.remote("served.cell", 5, f"kept {client.id}")
    there.call("served.keep", "a", cell)
    client.release(numbers=[1])
    assert holders(client, cell) == 1
    # It comes back as a result, and is held until we have a fork of our own.
    payload = there.handler.Call(there.request("served.kept", "a")).result
    assert payload.hold
    assert rref_of(payload.value.rref) == rref_of(cell)
    assert payload.value.rref.address == cell.address
    there.call("served.keep", "a", None)
    assert client.call((payload.value.rref, "get")) == 5
    there.release(holds=[payload.hold])
    eventually(lambda: client.call("served.happened", f"kept {client.id} gone") == 1)


def test_a_reference_that_its_owner_does_not_confirm_stops_the_call(client: RRefClient, there: RRefClient) -> None:
    cell = client.remote("served.cell", 5)
    name = f"unconfirmed {client.id}"
    nothing = RRefId()
    nothing.CopyFrom(cell)
    nothing.sequence = 1 << 39
    restarted = RRefId()
    restarted.CopyFrom(cell)
    restarted.incarnation += 1
    for wrong, reasons in [(nothing, ["RREF_UNKNOWN"]), (restarted, ["OWNER_RESTARTED"])]:
        with refused(reasons[0]):
            there.call("served.keep", name, wrong)
    with pytest.raises(KeyError):
        there.call("served.kept", name)


def test_an_owner_that_is_gone_is_named_in_time(there: RRefClient) -> None:
    with ServerProcess(worker="third") as third:
        with RRefClient(third.address) as client:
            cell = client.remote("served.cell", 5)
        third.kill()
        with pytest.raises((errors.Unreachable, errors.DeadlineExceeded)):
            there.call("served.get_of", cell, timeout=2)
    # It was not run, and nothing hangs.
    assert there.call("served.add", 1) == 2
