"""Every exception survives to_tree → bytes → from_tree, whatever it does, and nobody's code runs on the way back."""

from __future__ import annotations

import abc
import asyncio
import copy
import errno
import json
import pickle
import subprocess
import urllib.error
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from tensorcall.v1 import error_pb2
from tensorcall.wire import errors, exceptions
from tensorcall.wire.errors import RemoteError


def caught(function: Callable[..., object], *args: object) -> BaseException:
    try:
        function(*args)
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def sent(error: BaseException, **description: Any) -> RemoteError:
    tree = exceptions.to_tree(error, **description)
    return exceptions.from_tree(error_pb2.ExceptionTree.FromString(tree.SerializeToString()))


class NeedsArguments(Exception):
    def __init__(self, code: int, *, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


class Unpicklable(Exception):
    def __reduce__(self) -> Any:
        raise TypeError("can't be pickled")


class Reducing(Exception):
    def __reduce__(self) -> Any:
        return print, ("this must never be called",)

    def __setstate__(self, state: object) -> None:
        raise AssertionError("this must never be called")


class BadStr(Exception):
    def __str__(self) -> str:
        raise SystemExit("no text")


class WorseStr(Exception):
    def __str__(self) -> str:
        raise BadStr


class OddStr(Exception):
    def __str__(self) -> str:
        return f"odd {id(self)}"


class BadRepr:
    def __repr__(self) -> str:
        raise ValueError("no repr")


class Slotted(Exception):
    __slots__ = ("code", "unset")

    def __init__(self, code: int) -> None:
        super().__init__("slotted")
        self.code = code


@dataclass
class Data(Exception):  # its instances can't be hashed
    code: int
    text: str = "x"


class Abstract(Exception, abc.ABC):
    @abc.abstractmethod
    def method(self) -> None: ...


class FullDisk(OSError):
    def __init__(self, path: str) -> None:
        super().__init__(errno.ENOSPC, "full", path)


class Hostile(Exception):
    """Raises wherever it can."""

    @property
    def __class__(self) -> Any:
        raise RuntimeError("__class__")

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __setattr__(self, name: str, value: object) -> None:
        raise RuntimeError(name)

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("eq")

    __hash__ = None  # type: ignore[assignment]


class Outer:
    class Inner(Exception):
        pass


class Shadow(Exception):
    """Has what RemoteError has."""

    worker = property(lambda self: "mine")
    metadata = property(lambda self: "mine")
    retry_after = property(lambda self: "mine")

    def __init__(self) -> None:
        super().__init__("shadow")
        self.__dict__.update(tree=1, remote_type=2, retryable="no", add_note=3)


ValueErrorElsewhere = type("ValueError", (Exception,), {"__module__": __name__, "__qualname__": "ValueErrorElsewhere"})


def recursion() -> None:
    recursion()


def cause_chain(length: int) -> BaseException:
    error: BaseException | None = None
    for number in range(length):
        try:
            raise ValueError(number) from error
        except ValueError as raised:
            error = raised
    assert error is not None
    return error


def with_notes(error: BaseException, notes: object) -> BaseException:
    error.__notes__ = notes  # type: ignore[attr-defined]
    return error


# What is raised, and attributes that must arrive. Type, message and args are checked for all.
NASTIES: dict[str, tuple[BaseException, dict[str, object]]] = {
    "plain": (ValueError("bad"), {}),
    "no args": (ValueError(), {}),
    "many args": (ValueError(1, 2.5, None, "x", b"y", (1, [2]), {"a": {1}}), {}),
    "can't be rebuilt": (NeedsArguments(3, detail="x"), {"code": 3, "detail": "x"}),
    "can't be pickled": (Unpicklable("x"), {}),
    "custom reduce": (Reducing("x"), {}),
    "odd str": (OddStr("x"), {}),
    "long": (ValueError("x" * 10_000_000), {}),
    "non-ASCII": (ValueError("größer als ∞ 𝔘\0\n\r\t"), {}),
    "slots": (Slotted(7), {"code": 7}),
    "dataclass": (Data(3), {"code": 3, "text": "x"}),
    "abstract": (Exception.__new__(Abstract, "x"), {}),
    "nested class": (Outer.Inner("x"), {}),
    "shadowed builtin": (ValueErrorElsewhere("x"), {}),
    "recursion": (caught(recursion), {}),
    "key": (KeyError("k"), {}),
    "unhashable key": (KeyError(("a", 1)), {}),
    "unicode": (caught(b"\xff".decode), {"object": b"\xff", "start": 0, "reason": "invalid start byte"}),
    "os": (caught(open, "/nowhere/at/all"), {"errno": 2, "filename": "/nowhere/at/all", "filename2": None}),
    "os subclass": (FullDisk("/x"), {"errno": errno.ENOSPC, "strerror": "full", "filename": "/x"}),
    "os with one arg": (ConnectionResetError("gone"), {"errno": None}),
    "blocking": (BlockingIOError(11, "x", 3), {"errno": 11}),
    "import": (ImportError("m", name="n", path="p"), {"name": "n", "path": "p", "msg": "m"}),
    "attribute": (caught(lambda: (1).nothing), {"name": "nothing"}),  # type: ignore[attr-defined]
    "name": (caught(lambda: nothing), {"name": "nothing"}),  # type: ignore[name-defined]  # noqa: F821
    "syntax": (caught(compile, "1 +", "f.py", "exec"), {"filename": "f.py", "lineno": 1}),
    "json": (caught(json.loads, "{"), {"pos": 1, "doc": "{"}),
    "url": (urllib.error.URLError("because"), {"reason": "because"}),
    "process": (subprocess.CalledProcessError(3, ["ls"]), {"returncode": 3, "cmd": ["ls"]}),
    "pickling": (caught(pickle.dumps, lambda: None), {}),
    "chain": (cause_chain(200), {}),
}


@pytest.fixture(params=NASTIES, ids=str)
def nasty(request: pytest.FixtureRequest) -> tuple[BaseException, dict[str, object]]:
    return NASTIES[request.param]


def test_arrives_as_it_was(nasty: tuple[BaseException, dict[str, object]]) -> None:
    error, attributes = nasty
    arrived = sent(error, worker="w0")
    assert isinstance(arrived, RemoteError)
    assert isinstance(arrived, type(error))
    assert str(arrived) == str(error)
    assert arrived.args == error.args
    assert {name: getattr(arrived, name) for name in attributes} == attributes
    cls = type(error)
    assert (type(arrived).__module__, type(arrived).__qualname__) == (cls.__module__, cls.__qualname__)
    assert (arrived.remote_type, arrived.worker) == (f"{cls.__module__}.{cls.__qualname__}", "w0")
    assert (arrived.metadata, arrived.retry_after, arrived.retryable) == ({}, None, False)
    assert arrived.tree is not None


def test_a_second_journey_changes_nothing(nasty: tuple[BaseException, dict[str, object]]) -> None:
    tree = exceptions.to_tree(nasty[0], worker="w0")
    assert exceptions.to_tree(exceptions.from_tree(tree), worker="another") == tree


def test_is_pickled_and_copied(nasty: tuple[BaseException, dict[str, object]]) -> None:
    arrived = sent(nasty[0])
    for again in (pickle.loads(pickle.dumps(arrived)), copy.copy(arrived)):
        assert type(again) is type(arrived)
        assert again.tree == arrived.tree
        assert str(again) == str(arrived)


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt("now"), SystemExit(3), GeneratorExit(), asyncio.CancelledError()], ids=repr
)
def test_what_interrupts_arrives_as_remote_error_alone(error: BaseException) -> None:
    arrived = sent(error)
    assert isinstance(arrived, RemoteError)
    assert not isinstance(arrived, type(error))
    assert (str(arrived), arrived.args) == (str(error), error.args)
    assert arrived.remote_type.endswith(f".{type(error).__name__}")


def test_texts_that_raise() -> None:
    assert sent(BadStr("x")).args == ("x",)
    assert str(sent(BadStr("x"))) == "<BadStr: str() raised SystemExit: no text>"
    assert str(sent(WorseStr("x"))) == "<WorseStr: str() raised BadStr>"
    arrived = sent(ValueError("x", BadRepr()))
    assert arrived.args == ("x", "<unprintable BadRepr object>")
    assert arrived.tree is not None
    assert list(arrived.tree.exceptions[0].inexact_args) == [1]


def test_arguments_without_a_form_arrive_as_text() -> None:
    deep: list[object] = []
    for _ in range(200):
        deep = [deep]
    args = (object, np.arange(2), deep, "\ud800", 1)
    arrived = sent(ValueError(*args))
    assert arrived.args == (repr(object), "array([0, 1])", repr(deep), "'\\ud800'", 1)
    assert arrived.tree is not None
    assert list(arrived.tree.exceptions[0].inexact_args) == [0, 1, 2, 3]
    assert str(sent(ValueError("\ud800 ä"))) == "\\ud800 ä"
    assert len(sent(ValueError([object()] * 10_000)).args[0]) < 11_000


def test_tensors_in_arguments() -> None:
    torch = pytest.importorskip("torch")
    assert sent(ValueError("x", torch.ones(2))).args == ("x", "tensor([1., 1.])")
    arrived = sent(torch.OutOfMemoryError("2 GiB"))
    assert isinstance(arrived, torch.OutOfMemoryError)
    assert isinstance(arrived, RuntimeError)


def test_hostile_exceptions_are_described() -> None:
    hostile = Hostile("x", 2)
    tree = exceptions.to_tree(hostile)
    assert (tree.exceptions[0].type, len(tree.exceptions[0].args)) == ("Hostile", 2)
    arrived = exceptions.from_tree(tree)
    assert type(arrived).__mro__[-4] is Hostile
    assert exceptions.to_tree(arrived).exceptions[0].type == "Hostile"


def test_classes_without_a_proper_name() -> None:
    cls = type("Odd", (ValueError,), {"__module__": 7})
    assert sent(cls("x")).remote_type.endswith("Odd")


def test_any_shape_of_notes() -> None:
    assert sent(with_notes(ValueError(), ["a", "\ud800"])).__notes__ == ["a", "\\ud800"]  # type: ignore[attr-defined]
    assert sent(with_notes(ValueError(), ("a", 3))).__notes__ == ["a", "3"]  # type: ignore[attr-defined]
    assert sent(with_notes(ValueError(), 3)).__notes__ == ["3"]  # type: ignore[attr-defined]
    assert not hasattr(sent(ValueError()), "__notes__")


def test_retryable() -> None:
    error = ValueError()
    error.retryable = True  # type: ignore[attr-defined]
    assert sent(error).retryable
    error.retryable = 1  # type: ignore[attr-defined]
    assert not sent(error).retryable


def test_attributes_do_not_replace_ours() -> None:
    error = Shadow()
    error.__dict__["__dunder__"] = 1
    error.__dict__["kept"] = 2
    arrived = sent(error, worker="w")
    assert (arrived.worker, arrived.metadata, arrived.retry_after) == ("w", {}, None)
    assert (arrived.remote_type, arrived.retryable) == (f"{__name__}.Shadow", False)
    assert callable(arrived.with_traceback)
    assert not hasattr(arrived, "__dunder__")
    assert arrived.kept == 2  # type: ignore[attr-defined]
    assert arrived.tree is not None
    assert arrived.tree.exceptions[0].attributes["tree"].int == 1


def test_changed_args_show() -> None:
    arrived = sent(ValueError("x"))
    arrived.args = ("x, while reading f",)
    assert str(arrived) == "x, while reading f"
    assert str(sent(arrived)) == "x, while reading f"


def test_a_class_is_used_like_the_original() -> None:
    arrived = sent(FullDisk("/x"))
    again = type(arrived)("/y")
    assert isinstance(again, FullDisk)
    assert (again.filename, again.metadata, again.remote_traceback) == ("/y", {}, "")
    assert sent(again).remote_type == f"{__name__}.FullDisk"


def test_our_own_errors_inside_a_function_are_not_ours() -> None:
    arrived = sent(errors.ConnectionLost("to a third server", retry_after=1))
    assert not isinstance(arrived, errors.NetworkError)
    assert isinstance(arrived, ConnectionError)
    assert arrived.remote_type == "tensorcall.wire.errors.ConnectionLost"
    assert arrived.retry_after is None


class Stopped(StopIteration):
    pass


@pytest.mark.parametrize("error", [StopIteration(5), StopAsyncIteration("x"), Stopped("y")], ids=repr)
def test_what_would_end_a_loop_is_a_plain_remote_error(error: Exception) -> None:
    arrived = sent(error)
    assert not isinstance(arrived, (StopIteration, StopAsyncIteration))
    assert arrived.remote_type.endswith(type(error).__name__)
    assert arrived.args == error.args
