"""References as a client holds them, over each carrier and real servers."""

from __future__ import annotations

import contextlib
import copy
import gc
import pickle
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support.servers import ServerProcess, eventually

from tensorcall.client import RemoteClass, RRef, RRefId, connect
from tensorcall.client.references import references
from tensorcall.client.remote import Remote
from tensorcall.client.user_rref import UserRRef
from tensorcall.v1 import rref_service_pb2 as pb
from tensorcall.wire import errors


@pytest.fixture(scope="module")
def other() -> Iterator[ServerProcess]:
    with ServerProcess(worker="other") as process:
        yield process
        code, log = process.end()
    assert code == 0, log
    assert "defect" not in log, log


def held_by(remote: Remote) -> int:
    """How many forks and holds the server keeps for this connection."""
    shown = remote._connection.link.client_id[:16]
    listed = remote._connection.ask_rrefs("ListRRefs", pb.ListRRefsRequest(limit=10_000), 30).result(30)
    return sum(holder.forks for info in listed.rrefs for holder in info.holders if holder.client_id.startswith(shown))


def happened(remote: Remote, name: str) -> int:
    count: int = remote.call("served.happened", name)
    return count


def let_go_of_all(remote: Remote) -> None:
    eventually(lambda: not remote._connection.link.held, "that everything is released")


# --- making, fetching, calling ---


def test_an_object_on_the_server(remote: Remote, carrier: str) -> None:
    name = f"object {carrier}"
    rref = remote.remote("served.Cell", [1, 2], name=name)
    assert isinstance(rref, RRef)
    assert rref.rpc_sync().get() == [1, 2]
    rref.rpc_sync().set("new")
    assert rref.rpc_async().get().result(30) == "new"
    rref.wait_confirmed(30)
    assert rref.confirmed_by_owner()
    assert not rref.is_owner()
    assert rref.owner_name() == rref.owner() == rref.rref_id().owner
    assert rref.rref_id().address == remote.address
    assert happened(remote, f"{name} gone") == 0
    del rref
    eventually(lambda: happened(remote, f"{name} gone"), "that the object goes with its last reference")
    let_go_of_all(remote)


def test_results_that_stay(remote: Remote) -> None:
    rref = remote.remote("served.add", 1, b=2)
    assert rref.to_here() == 3.0
    tensor = remote.remote("served.fill", 3 << 20)
    assert torch.equal(tensor.to_here(30), torch.arange(3 << 20, dtype=torch.uint8))
    assert remote.remote("served.cell_later", 5).rpc_sync().get() == 5  # a coroutine


def test_the_reference_is_there_before_its_value(remote: Remote, carrier: str) -> None:
    name = f"early {carrier}"
    rref = remote.remote("served.cell_behind_gate", name, 7)
    assert not rref.confirmed_by_owner()
    with pytest.raises(errors.DeadlineExceeded):
        rref.wait_confirmed(0.05)
    with pytest.raises(errors.DeadlineExceeded):
        rref.to_here(timeout=0.2)
    waiting = rref.rpc_async().get()
    assert not waiting.done()
    # By then others may have it: here a call that uses it.
    used = remote.submit("served.value_of", rref)
    remote.call("served.open_gate", name)
    assert waiting.result(30) == 7
    assert used.result(30) == 7
    rref.wait_confirmed(30)  # that answer may come last
    assert rref.confirmed_by_owner()


def test_a_reference_that_is_dropped_at_once(remote: Remote, carrier: str) -> None:
    name = f"dropped {carrier}"
    remote.remote("served.cell_behind_gate", name, 7)
    remote.call("served.open_gate", name)
    eventually(lambda: happened(remote, f"{name} gone"), "that it was made, and went")


def test_a_method_whose_reference_is_dropped_at_once(remote: Remote) -> None:
    for i in range(20):
        assert remote.remote("served.Cell", i).rpc_async().get().result(30) == i
        assert remote.remote("served.Cell", i).remote().get().to_here() == i


def test_references_to_results_of_methods(remote: Remote) -> None:
    cell = remote.remote("served.Cell", [1])
    value = cell.remote().get()
    assert value.to_here() == [1]
    number = remote.remote("served.Cell", 40)
    assert number.rpc_sync()(2) == 42
    assert number.rpc_async().get_later().result(30) == 40
    assert number.rpc_sync().another(3).rpc_sync().get() == 3


def test_what_the_function_raised(remote: Remote) -> None:
    rref = remote.remote("served.raises", "value")
    for _ in range(2):
        with pytest.raises(ValueError, match="bad value") as caught:
            rref.to_here()
        assert isinstance(caught.value, errors.RemoteError)
    with pytest.raises(ValueError, match="bad value"):
        rref.rpc_sync().anything()
    with pytest.raises(LookupError, match="the cell fails"):
        remote.remote("served.Cell").rpc_sync().fail()
    del rref, caught
    let_go_of_all(remote)


def test_what_can_not_be_made(remote: Remote) -> None:
    rref = remote.remote("served.nothing_of_that_name")
    with pytest.raises(errors.NotExposed):
        rref.to_here(30)
    with pytest.raises(errors.NotExposed):
        rref.wait_confirmed(30)
    assert not rref.confirmed_by_owner()
    with pytest.raises(errors.Unencodable):
        remote.remote("served.echo", object())
    with pytest.raises(TypeError, match="pass the name"):
        remote.remote(test_what_can_not_be_made)  # type: ignore[arg-type]
    with pytest.raises(errors.NotExposed, match="no method 'nothing'; it has"):
        remote.remote("served.Cell").rpc_sync().nothing()
    with pytest.raises(errors.BadArguments):
        remote.remote("served.Cell", 1, 2, 3, 4).to_here(30)
    del rref
    let_go_of_all(remote)


def test_the_value_is_not_here(remote: Remote) -> None:
    rref = remote.remote("served.add", 1)
    with pytest.raises(RuntimeError, match="can't call localValue"):
        rref.local_value()
    for copied in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(RuntimeError, match="Can not pickle rref"):
            copied(rref)
    assert not hasattr(rref.rpc_sync(), "__getstate_of_mine__")


def test_types(remote: Remote) -> None:
    cell = remote.remote("served.Cell")
    assert cell._get_type() == RemoteClass("served", "Cell")
    assert str(cell._get_type()) == "served.Cell"
    tensor = remote.remote("served.ones", 3)
    future = tensor._get_type(blocking=False)
    assert future.result(30) is torch.Tensor
    assert tensor._get_type(timeout=30) is torch.Tensor
    failed = remote.remote("served.raises", "value")
    with pytest.raises(ValueError, match="bad value"):
        failed._get_type()


# --- references among arguments and in results ---


def test_references_at_any_depth(remote: Remote) -> None:
    rrefs = [remote.remote("served.Cell", i) for i in range(5)]
    told = remote.call("served.about", rrefs[0])
    assert told == (True, rrefs[0].owner_name(), str(rrefs[0].rref_id()), True)
    back = remote.call("served.echo", {"a": [rrefs[1]], "b": (rrefs[2], {"c": rrefs[3]})})
    assert back["a"][0].rpc_sync().get() == 1
    assert back["b"][0].rpc_sync().get() == 2
    assert back["b"][1]["c"].rref_id() == rrefs[3].rref_id()
    back["a"][0].wait_confirmed(30)
    del rrefs
    gc.collect()
    assert back["b"][1]["c"].rpc_sync().get() == 3
    del back
    let_go_of_all(remote)
    assert held_by(remote) == 0


def test_references_in_results(remote: Remote) -> None:
    made = remote.call("served.refer", [1, "two", torch.ones(3)])
    assert [rref.rpc_sync().get() for rref in made[:2]] == [1, "two"]
    future = remote.submit("served.refer", list(range(50)))
    assert [rref.rpc_sync().get() for rref in future.result(30)] == list(range(50))
    del made, future
    let_go_of_all(remote)
    eventually(lambda: held_by(remote) == 0, "that the holds are released")


def test_references_in_streams(remote: Remote) -> None:
    values = [rref.rpc_sync().get() for rref in remote.stream("served.refer_in_turn", 40)]
    assert values == list(range(40))
    for rref in remote.stream("served.refer_in_turn", 10_000):
        if rref.rpc_sync().get() == 5:
            break
    del rref
    eventually(lambda: held_by(remote) == 0, "that what was left is released")
    let_go_of_all(remote)


def test_answers_that_nobody_waits_for(remote: Remote) -> None:
    for i in range(60):
        future = remote.submit("served.refer", list(range(20)))
        if i % 3 == 0:
            threading.Event().wait(0.001 * (i % 7))
        future.cancel()
    for _ in range(20):
        with contextlib.suppress(errors.DeadlineExceeded):
            remote.options(timeout=0.003).call("served.refer", list(range(20)))
    eventually(lambda: held_by(remote) == 0, "that nothing is held")


def test_a_result_that_can_not_be_read_is_released(remote: Remote) -> None:
    with pytest.raises(errors.BadPayload):
        remote.call("served.refer_unreadable")
    eventually(lambda: held_by(remote) == 0, "that nothing is held")


def test_references_to_values_elsewhere(remote: Remote, other: ServerProcess, carrier: Any) -> None:
    name = f"elsewhere {carrier}"
    with connect(other.address, carrier=carrier) as second:
        # A third process uses it; the answer leads back to the second.
        cell = second.remote("served.Cell", 5, name=name)
        assert remote.call("served.about", cell) == (False, "other", str(cell.rref_id()), True)
        back = remote.call("served.echo", [cell])[0]
        assert back.rref_id() == cell.rref_id()
        assert back._connection is second._connection  # type: ignore[attr-defined]
        del cell
        assert back.rpc_sync().get() == 5
        # One value there holds a reference here and the other way round.
        inner = remote.remote("served.Cell", "inner")
        outer = second.remote("served.Cell", inner)
        outer.wait_confirmed(30)
        del inner
        assert outer.rpc_sync().get().rpc_sync().get() == "inner"
        assert happened(second, f"{name} gone") == 0
        del back, outer
        eventually(lambda: happened(second, f"{name} gone"), "that the cell is gone")
    let_go_of_all(remote)


def test_an_owner_that_nobody_connected_to(remote: Remote, other: ServerProcess) -> None:
    second = connect(other.address)
    keeper = remote.remote("served.Cell", second.remote("served.Cell", 6))
    keeper.wait_confirmed(30)
    second.close()
    rref = keeper.rpc_sync().get()
    assert rref.owner_name() == "other"
    assert rref.rpc_sync().get() == 6
    assert rref.rref_id().address == other.address
    assert references()._own[other.address] is rref._connection


def test_a_name_that_came_some_other_way(remote: Remote) -> None:
    rref = remote.remote("served.Cell", 8)
    rref.wait_confirmed(30)
    again = remote.open_rref(rref.rref_id())
    again.wait_confirmed(30)
    del rref
    assert again.rpc_sync().get() == 8
    nobody = remote.open_rref(again.rref_id()._replace(sequence=12345))
    with pytest.raises(errors.RRefUnknown):
        nobody.wait_confirmed(30)
    with pytest.raises(errors.RRefUnknown):
        nobody.to_here()
    with pytest.raises(errors.RRefUnknown, match="does not say where"):
        remote.open_rref(RRefId("nobody", 1, 1))
    with pytest.raises(errors.BadPayload, match="not HOST:PORT"):
        remote.open_rref(RRefId("nobody", 1, 1, "xds:///here"))


# --- how they end ---


def test_closing_lets_go(server: ServerProcess, carrier: Any) -> None:
    name = f"closed {carrier}"
    first, second = connect(server.address, carrier=carrier), connect(server.address, carrier=carrier)
    with second:
        rref = first.remote("served.Cell", name=name)
        shared = first.remote("served.Cell", 9, name=name)
        shared.wait_confirmed(30)
        mine = second.open_rref(shared.rref_id())
        mine.wait_confirmed(30)
        first.close()
        assert eventually(lambda: happened(second, f"{name} gone")) == 1
        for use in (rref.to_here, rref.rpc_sync().get, rref.wait_confirmed, rref._get_type, rref.remote().get):
            with pytest.raises(errors.Cancelled, match="closed"):
                use()
        assert mine.rpc_sync().get() == 9


def test_handles_end_without_the_garbage_collector(remote: Remote) -> None:
    gc.collect()
    gc.disable()
    try:
        made = remote.remote("served.Cell", 1)
        assert made.rpc_sync().get() == 1
        opened = remote.call("served.refer", [1])[0]
        assert opened.rpc_async().get().result(30) == 1
        assert opened._get_type(blocking=False).result(30)
        fork = weakref.ref(made), weakref.ref(opened)
        del made, opened
        eventually(lambda: fork[0]() is None and fork[1]() is None, "that the handles go")
        let_go_of_all(remote)
    finally:
        gc.enable()


def test_a_reference_may_end_anywhere(remote: Remote) -> None:
    # In a callback, and on the thread that brings answers.
    rrefs = [remote.remote("served.Cell", i) for i in range(10)]
    done = threading.Event()

    def end(_: Any) -> None:
        rrefs.clear()
        done.set()

    remote.submit("served.noop").add_done_callback(end)
    assert done.wait(30)
    let_go_of_all(remote)


def test_waiting_in_a_callback_is_refused(remote: Remote) -> None:
    rref = remote.remote("served.Cell", 1)
    rref.wait_confirmed(30)
    told: list[BaseException] = []
    done = threading.Event()

    def wait(_: Any) -> None:
        try:
            rref.rpc_sync().get()
        except BaseException as error:
            told.append(error)
        done.set()

    remote.submit("served.add", 1).add_done_callback(wait)
    assert done.wait(30)
    # The future may have been done before it had the callback.
    assert not told or isinstance(told[0], RuntimeError)


def test_a_lost_session_leaves_references_alone(server: ServerProcess) -> None:
    with connect(server.address) as remote:
        rref = remote.remote("served.Cell", 3)
        rref.wait_confirmed(30)
        remote._connection._carrier.close()  # type: ignore[union-attr]
        assert rref.rpc_sync().get() == 3


def test_a_creation_that_is_lost_with_its_session(server: ServerProcess) -> None:
    with connect(server.address) as remote:
        rref = remote.remote("served.cell_behind_gate", "lost creation", 1)
        remote._connection._carrier._break(errors.ConnectionLost("by the test"))  # type: ignore[union-attr]
        with pytest.raises(errors.ConnectionLost, match="by the test"):
            rref.to_here(30)
        # Who has its name is told, too, and does not wait for ever.
        third = remote.open_rref(rref.rref_id())
        with pytest.raises(errors.RRefError):
            third.to_here(30)
        remote.call("served.open_gate", "lost creation")
    assert isinstance(rref, UserRRef)
