"""A peer names classes: those that are known here are found, and nobody's code runs."""

from __future__ import annotations

import gc
import importlib.util
import sys
import types
from typing import Any

import pytest

from tensorcall.v1 import error_pb2
from tensorcall.wire import exceptions
from tensorcall.wire.errors import RemoteError


def sent(error: BaseException, **description: Any) -> RemoteError:
    tree = exceptions.to_tree(error, **description)
    return exceptions.from_tree(error_pb2.ExceptionTree.FromString(tree.SerializeToString()))


def node(type_: str, module: str = "builtins", **more: Any) -> error_pb2.ExceptionTree:
    return error_pb2.ExceptionTree(exceptions=[error_pb2.RemoteException(type=type_, module=module, **more)])


def test_unknown_classes_arrive_as_their_nearest_known_base() -> None:
    class NotFound(KeyError):
        pass

    arrived = sent(NotFound("x"))
    assert isinstance(arrived, KeyError)
    assert not isinstance(arrived, NotFound)
    assert repr(arrived) == "NotFound('x')"
    assert str(arrived) == "'x'"
    assert type(sent(type("Odd", (Exception,), {})("x"))).__mro__[1:3] == type(sent(KeyboardInterrupt())).__mro__[1:3]


def test_registered_classes_are_found_wherever_they_are() -> None:
    @exceptions.register_exception
    class Local(ValueError):
        pass

    assert isinstance(sent(Local("x")), Local)
    with pytest.raises(TypeError, match="always arrives as a RemoteError"):
        exceptions.register_exception(KeyboardInterrupt)


def test_nothing_is_imported_and_no_module_asked() -> None:
    module = types.ModuleType("tensorcall_test_module")
    module.__getattr__ = lambda name: pytest.fail(name)  # type: ignore[method-assign]
    sys.modules[module.__name__] = module
    try:
        assert type(exceptions.from_tree(node("Error", module.__name__))).__bases__ == bases_of_unknown()
        assert "this" not in sys.modules
        exceptions.from_tree(node("Error", "this"))
        assert "this" not in sys.modules
    finally:
        del sys.modules[module.__name__]


def test_lazy_modules_stay_unloaded() -> None:
    spec = importlib.util.find_spec("antigravity")  # importing it opens a browser
    assert spec is not None
    assert spec.loader is not None
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    sys.modules["antigravity"] = module
    try:
        spec.loader.exec_module(module)
        exceptions.from_tree(node("geohash.x", "antigravity"))
        assert object.__getattribute__(module, "__class__") is not types.ModuleType
    finally:
        del sys.modules["antigravity"]


def bases_of_unknown() -> tuple[type, ...]:
    return type(exceptions.from_tree(node("Unknown", "nowhere"))).__bases__


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("builtins", "int"),
        ("builtins", "print"),
        ("builtins", "ValueError.__base__"),
        ("builtins", "ValueError.mro"),
        ("builtins", "BaseException"),
        ("builtins", ""),
        ("", "ValueError"),
        ("sys", "modules.json"),
        (__name__, "caught.<locals>.x"),
        ("tensorcall.wire.errors", "NotExposed"),
        ("no\0module", "no\0type"),
    ],
)
def test_names_that_give_no_class(module: str, name: str) -> None:
    arrived = exceptions.from_tree(node(name, module, message="m"))
    assert type(arrived).__bases__ == bases_of_unknown()
    assert str(arrived) == "m"


def test_no_code_runs() -> None:
    calls: list[str] = []

    class Meta(type):
        def __new__(cls, name: str, bases: Any, body: Any) -> Any:
            calls.append("metaclass")
            return super().__new__(cls, name, bases, body)

        def __call__(cls, *args: object, **kwargs: object) -> Any:
            calls.append("call")

    @exceptions.register_exception
    class Loud(Exception, metaclass=Meta):
        def __new__(cls, *args: object) -> Any:
            calls.append("new")
            return super().__new__(cls, *args)

        def __init__(self, *args: object) -> None:
            calls.append("init")

        def __init_subclass__(cls) -> None:
            calls.append("subclass")

        def __setattr__(self, name: str, value: object) -> None:
            calls.append(name)

        def __str__(self) -> str:
            calls.append("str")
            return "loud"

        def __del__(self) -> None:
            calls.append("del")

        @property
        def prop(self) -> int:
            calls.append("prop")
            return 1

    error = Exception.__new__(Loud, "x")
    error.__dict__["prop"] = 5
    tree = exceptions.to_tree(error)
    del error
    gc.collect()
    calls.clear()
    arrived = exceptions.from_tree(tree)
    assert isinstance(arrived, Loud)
    assert str(arrived) == "loud"
    del arrived
    gc.collect()
    assert calls == []


def test_metaclasses_that_would_run_are_passed_by() -> None:
    class Meta(type):
        def mro(cls) -> list[type]:
            return super().mro()

    @exceptions.register_exception
    class Refusing(ValueError, metaclass=Meta):
        pass

    arrived = sent(Refusing("x"))
    assert isinstance(arrived, ValueError)
    assert not isinstance(arrived, Refusing)


def test_a_builtin_that_refuses_its_arguments_gives_way_to_its_base() -> None:
    arrived = exceptions.from_tree(node("UnicodeDecodeError", message="m", bases=["builtins.UnicodeError"]))
    assert isinstance(arrived, UnicodeError)
    assert not isinstance(arrived, UnicodeDecodeError)
    assert (str(arrived), type(arrived).__name__) == ("m", "UnicodeDecodeError")


def test_trees_that_make_no_sense() -> None:
    assert str(exceptions.from_tree(error_pb2.ExceptionTree())) == ""
    tree = node("ValueError", cause=7, context=2**32 - 1, args=[{}], attributes={"a": {}})
    arrived = exceptions.from_tree(tree)
    assert arrived.__cause__ is None
    assert arrived.args == ("<a None that can't be read here>",)
    assert not hasattr(arrived, "a")
