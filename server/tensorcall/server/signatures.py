"""What can be told of a function: how it runs, what it takes, what it is for."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from tensorcall.v1 import handler_service_pb2 as pb

FUNCTION, COROUTINE = pb.FUNCTION_KIND_FUNCTION, pb.FUNCTION_KIND_COROUTINE
GENERATOR, CLASS = pb.FUNCTION_KIND_GENERATOR, pb.FUNCTION_KIND_CLASS

_PARAMETER_KINDS = {
    inspect.Parameter.POSITIONAL_ONLY: pb.PARAMETER_KIND_POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD: pb.PARAMETER_KIND_POSITIONAL_OR_KEYWORD,
    inspect.Parameter.VAR_POSITIONAL: pb.PARAMETER_KIND_VAR_POSITIONAL,
    inspect.Parameter.KEYWORD_ONLY: pb.PARAMETER_KIND_KEYWORD_ONLY,
    inspect.Parameter.VAR_KEYWORD: pb.PARAMETER_KIND_VAR_KEYWORD,
}


def kind(function: Callable[..., Any]) -> pb.FunctionKind.ValueType:
    """Tells how a function runs. An instance with `__call__` runs as that does."""
    if inspect.isclass(function):
        return CLASS
    for candidate in (function, getattr(function, "__call__", None)):  # noqa: B004 (its kind, not whether it has one)
        if inspect.isgeneratorfunction(candidate) or inspect.isasyncgenfunction(candidate):
            return GENERATOR
        if inspect.iscoroutinefunction(candidate):
            return COROUTINE
    return FUNCTION


def signature(function: Callable[..., Any]) -> inspect.Signature | None:
    """Returns the signature; None where Python doesn't know it (some builtins, scripted functions)."""
    try:
        known = inspect.signature(function)
    except (TypeError, ValueError):
        return None
    # A class' is that of __init__, which returns nothing; the class gives an instance.
    return known.replace(return_annotation=inspect.Signature.empty) if inspect.isclass(function) else known


def _annotation(annotation: object) -> str:
    if annotation is inspect.Parameter.empty:
        return ""
    # `from __future__ import annotations` leaves them as text.
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _text(known: inspect.Signature | None) -> str:
    """Writes a signature as one would; annotations that are text already without quotes around them."""
    if known is None:
        return "(...)"
    parameters = [
        p.replace(annotation=_Verbatim(_annotation(p.annotation))) if p.annotation is not p.empty else p
        for p in known.parameters.values()
    ]
    returns = known.return_annotation
    if returns is not inspect.Signature.empty:
        returns = _Verbatim(_annotation(returns))
    return str(known.replace(parameters=parameters, return_annotation=returns))


class _Verbatim:
    """An annotation that prints as the given text."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def describe(name: str, function: Callable[..., Any]) -> pb.FunctionInfo:
    """Returns what ListFunctions tells of a function."""
    info = _describe(name, function, signature(function))
    if inspect.isclass(function):
        info.methods.extend(_methods(function))
    return info


def _describe(name: str, function: Callable[..., Any], known: inspect.Signature | None) -> pb.FunctionInfo:
    info = pb.FunctionInfo(name=name, doc=inspect.getdoc(function) or "", signature=_text(known), kind=kind(function))
    if known is not None:
        info.returns = _annotation(known.return_annotation)
        for parameter in known.parameters.values():
            described = info.parameters.add(
                name=parameter.name, kind=_PARAMETER_KINDS[parameter.kind], type=_annotation(parameter.annotation)
            )
            if parameter.default is not parameter.empty:
                described.default = repr(parameter.default)
    return info


def _methods(cls: type) -> list[pb.FunctionInfo]:
    """Describes the public methods of a class, without `self`."""
    methods = []
    for name, attribute in inspect.getmembers(cls, callable):
        if name.startswith("_") and not (name == "__call__" and name in vars(cls)):
            continue
        known = signature(attribute)
        is_plain = inspect.isfunction(inspect.getattr_static(cls, name))
        if known is not None and known.parameters and is_plain:
            known = known.replace(parameters=list(known.parameters.values())[1:])
        methods.append(_describe(name, attribute, known))
    return methods


def why_not(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Tells why a call does not fit the signature; None if it does, or Python does not know it."""
    known = signature(function)
    if known is None:
        return None
    try:
        known.bind(*args, **kwargs)
    except TypeError as error:
        return str(error)
    return None


def shown(name: str, function: Callable[..., Any]) -> str:
    """Returns name and signature, for messages."""
    return f"{name}{_text(signature(function))}"
