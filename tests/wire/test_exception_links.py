"""Causes, contexts, members of groups, and calls within calls."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tensorcall.v1 import error_pb2
from tensorcall.wire import exceptions
from tensorcall.wire.errors import RemoteError

needs_groups = pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups came with Python 3.11")


def caught(function: Callable[..., object], *args: object) -> BaseException:
    try:
        function(*args)
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def raising(error: BaseException) -> BaseException:
    def raise_it() -> None:
        raise error

    return caught(raise_it)


def sent(error: BaseException, **description: Any) -> RemoteError:
    tree = exceptions.to_tree(error, **description)
    return exceptions.from_tree(error_pb2.ExceptionTree.FromString(tree.SerializeToString()))


def node(type_: str, module: str = "builtins", **more: Any) -> error_pb2.ExceptionTree:
    return error_pb2.ExceptionTree(exceptions=[error_pb2.RemoteException(type=type_, module=module, **more)])


def cause_chain(length: int) -> BaseException:
    error: BaseException | None = None
    for number in range(length):
        try:
            raise ValueError(number) from error
        except ValueError as raised:
            error = raised
    assert error is not None
    return error


def test_links() -> None:
    def fail() -> None:
        try:
            {}["k"]
        except KeyError:
            try:
                raise TypeError("t")
            except TypeError as error:
                raise ValueError("v") from error

    arrived = sent(caught(fail))
    assert isinstance(arrived.__cause__, TypeError)
    assert arrived.__cause__ is arrived.__context__
    assert arrived.__suppress_context__
    assert isinstance(arrived.__cause__.__context__, KeyError)
    assert arrived.__cause__.__cause__ is None
    assert not arrived.__cause__.__suppress_context__
    assert isinstance(arrived.__cause__, RemoteError)


def test_cycles() -> None:
    a, b = ValueError("a"), KeyError("b")
    a.__cause__, b.__cause__, b.__context__ = b, a, b
    arrived = sent(a)
    assert arrived.__cause__ is not None
    assert arrived.__cause__.__cause__ is arrived
    assert arrived.__cause__.__context__ is arrived.__cause__


def test_a_chain_of_5000_says_what_was_left_out() -> None:
    arrived = sent(cause_chain(5000))
    chain = list(causes(arrived))
    assert len(chain) == 1000
    assert chain[-1].__notes__ == ["… (4000 more exceptions that led to this were left out)"]  # type: ignore[attr-defined]
    assert arrived.tree is not None
    assert arrived.tree.truncated


def causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


@needs_groups
def test_groups() -> None:
    group = ExceptionGroup("g", [ValueError(1), ExceptionGroup("h", [TypeError(2), KeyError("k")])])  # noqa: F821
    arrived = sent(raising(group))
    assert isinstance(arrived, ExceptionGroup)  # noqa: F821
    assert str(arrived) == str(group) == "g (2 sub-exceptions)"
    assert arrived.message == "g"
    matched, rest = arrived.split(TypeError)
    assert repr(matched) == repr(group.split(TypeError)[0])
    assert repr(rest) == repr(group.split(TypeError)[1])
    assert all(isinstance(member, RemoteError) for member in arrived.exceptions)
    tree = exceptions.to_tree(group)
    assert exceptions.to_tree(exceptions.from_tree(tree)) == tree


@needs_groups
def test_groups_of_what_interrupts() -> None:
    group = BaseExceptionGroup("g", [KeyboardInterrupt()])  # noqa: F821
    arrived = sent(group)
    assert isinstance(arrived, ExceptionGroup)  # noqa: F821
    assert not isinstance(arrived.exceptions[0], KeyboardInterrupt)
    assert type(arrived).__name__ == "BaseExceptionGroup"


@needs_groups
def test_a_group_whose_members_were_dropped_is_a_group() -> None:
    arrived = exceptions.from_tree(node("ExceptionGroup", message="g (1 sub-exception)"))
    assert isinstance(arrived, ExceptionGroup)  # noqa: F821
    assert str(arrived.exceptions[0]) == "the members of this group were left out"


@needs_groups
def test_groups_that_contain_themselves_or_each_other_are_cut() -> None:
    nodes = [
        error_pb2.RemoteException(type="ExceptionGroup", module="builtins", members=[i + 1] * 15) for i in range(11)
    ]
    nodes.append(error_pb2.RemoteException(type="ExceptionGroup", module="builtins", members=[0]))
    depth, group = 0, exceptions.from_tree(error_pb2.ExceptionTree(exceptions=nodes))
    while isinstance(group, ExceptionGroup):  # noqa: F821
        assert len(group.exceptions) == 1
        depth, group = depth + 1, group.exceptions[0]
    assert depth == 12


@pytest.mark.skipif(sys.version_info >= (3, 11), reason="for Python 3.10")
def test_groups_on_python_3_10() -> None:
    tree = node("ExceptionGroup", message="g (1 sub-exception)", members=[1])
    tree.exceptions.add(type="ValueError", module="builtins")
    arrived: Any = exceptions.from_tree(tree)
    assert isinstance(arrived.exceptions[0], ValueError)
    assert len(exceptions.to_tree(arrived).exceptions) == 2


def test_an_exception_from_a_third_worker_travels_on() -> None:
    class FarAway(KeyError):
        def __init__(self) -> None:
            super().__init__("x")
            self.detail = 3

    def on_c() -> None:
        raise FarAway

    def on_b(error: BaseException) -> None:
        try:
            raise error
        except KeyError as relayed:
            relayed.relay = "b"  # type: ignore[attr-defined]
            raise

    at_b = sent(caught(on_c), worker="c")
    at_a = sent(caught(on_b, at_b), worker="b")
    assert at_a.remote_type == f"{__name__}.test_an_exception_from_a_third_worker_travels_on.<locals>.FarAway"
    assert at_a.worker == "c"
    assert isinstance(at_a, KeyError)
    assert (at_a.detail, at_a.relay) == (3, "b")  # type: ignore[attr-defined]
    functions = [line.split(", in ")[1] for line in at_a.remote_traceback.splitlines() if ", in " in line]
    assert functions == ["caught", "on_b", "caught", "on_c"]

    def wrapping() -> None:
        raise RuntimeError("b failed") from at_b

    arrived = sent(caught(wrapping), worker="b")
    assert arrived.worker == "b"
    assert isinstance(arrived.__cause__, RemoteError)
    assert arrived.__cause__.remote_type == at_b.remote_type
    assert "raise FarAway" in arrived.remote_traceback
