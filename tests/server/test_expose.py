"""What is exposed, under which names, and what is told of it."""

from __future__ import annotations

import functools
import types
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import torch

from tensorcall.server import signatures
from tensorcall.server.expose import Exposed, Pace, Registry, default_name, expose
from tensorcall.v1 import handler_service_pb2 as pb
from tensorcall.wire.errors import NotExposed


class WithCall:
    def __call__(self, x: int) -> int:
        return x


class Model:
    """A model."""

    def __init__(self, hidden: int = 64) -> None: ...

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        """Predicts."""
        return images

    async def later(self) -> None: ...

    @staticmethod
    def help() -> str:
        return ""

    @classmethod
    def make(cls, kind: str) -> None: ...

    def _private(self) -> None: ...


def generator() -> Iterator[int]:
    yield 1


async def async_generator() -> AsyncIterator[int]:
    yield 1


async def coroutine() -> None: ...


@torch.jit.script
def scripted(x: torch.Tensor) -> torch.Tensor:
    return x + 1


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (abs, pb.FUNCTION_KIND_FUNCTION),
        (torch.add, pb.FUNCTION_KIND_FUNCTION),
        (scripted, pb.FUNCTION_KIND_FUNCTION),
        (functools.partial(generator), pb.FUNCTION_KIND_GENERATOR),
        (generator, pb.FUNCTION_KIND_GENERATOR),
        (async_generator, pb.FUNCTION_KIND_GENERATOR),
        (coroutine, pb.FUNCTION_KIND_COROUTINE),
        (WithCall(), pb.FUNCTION_KIND_FUNCTION),
        (Model, pb.FUNCTION_KIND_CLASS),
    ],
)
def test_kinds(function: Any, kind: int) -> None:
    info = signatures.describe("x", function)
    assert info.kind == kind
    assert info.signature.startswith("(")


def test_a_class_is_described_with_its_public_methods() -> None:
    info = signatures.describe("m.Model", Model)
    assert info.signature == "(hidden: int = 64)"
    methods = {method.name: method for method in info.methods}
    assert set(methods) == {"predict", "later", "help", "make"}
    assert methods["predict"].signature == "(images: torch.Tensor) -> torch.Tensor"
    assert methods["predict"].doc == "Predicts."
    assert methods["later"].kind == pb.FUNCTION_KIND_COROUTINE
    assert methods["make"].signature == "(kind: str) -> None"
    assert methods["help"].signature == "() -> str"


def test_parameters() -> None:
    def function(a: int, /, b: str = "x", *args: Any, c: float, d: bool = True, **rest: Any) -> None: ...

    info = signatures.describe("f", function)
    kinds = [(p.name, pb.ParameterKind.Name(p.kind).removeprefix("PARAMETER_KIND_")) for p in info.parameters]
    assert kinds == [
        ("a", "POSITIONAL_ONLY"),
        ("b", "POSITIONAL_OR_KEYWORD"),
        ("args", "VAR_POSITIONAL"),
        ("c", "KEYWORD_ONLY"),
        ("d", "KEYWORD_ONLY"),
        ("rest", "VAR_KEYWORD"),
    ]
    assert [p.default for p in info.parameters if p.HasField("default")] == ["'x'", "True"]
    assert info.parameters[0].type == "int"


def test_names() -> None:
    assert default_name(Model) == "test_expose.Model"
    assert default_name(abs) == "builtins.abs"
    module = types.ModuleType("package.inner.module")
    exec("def function(): ...", vars(module))
    assert default_name(module.function) == "module.function"
    assert default_name(scripted) == "test_expose.scripted"
    assert default_name(functools.partial(functools.partial(module.function))) == "module.function"


def test_only_what_a_module_holds_is_served() -> None:
    helper, user = types.ModuleType("helper"), types.ModuleType("user")
    for module, names in ((helper, ("one", "two")), (user, ("three",))):
        for name in names:
            exec(f"def {name}(): ...", vars(module))
            setattr(module, name, expose(getattr(module, name)))
    user.helper = helper  # type: ignore[attr-defined]
    user.two = helper.two  # type: ignore[attr-defined]
    registry = Registry.of_modules([user])
    # `two` was imported by name; `one` is only reachable through the module.
    assert [exposed.name for exposed in registry.list()] == ["helper.two", "user.three"]
    with pytest.raises(NotExposed, match=r"did you mean .*helper\.two"):
        registry.get("user.two")


def test_the_decorated_function_stays_as_it_is() -> None:
    def function() -> int:
        return 3

    assert expose(function) is function
    assert expose(name="other.name")(function) is function


def test_no_functions_at_all() -> None:
    with pytest.raises(NotExposed, match="nothing is"):
        Registry().get("x")


def test_a_pace_is_earned_and_lost() -> None:
    pace = Exposed("f", abs).pace
    assert not pace.quick
    for _ in range(8):
        pace.ran(0.0001)
    assert pace.quick
    pace.ran(0.1)
    assert not pace.quick
    for _ in range(71):
        pace.ran(0.0001)
    assert not pace.quick
    pace.ran(0.0001)
    assert pace.quick
    assert isinstance(pace, Pace)
