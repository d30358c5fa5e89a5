"""Reads the parameters out of a signature's text, which is what a listing has of them."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a function elsewhere."""

    name: str
    """Its name."""

    type: str = ""
    """Its annotation as Python would write it; empty if there is none."""

    default: str | None = None
    """Its default as Python would write it; None if it must be given."""

    passed: Literal["positional", "either", "keyword"] = "either"
    """Whether it is passed by position, by name, or as one likes."""

    stars: Literal["", "*", "**"] = ""
    """What stands before a parameter that takes any number of arguments."""

    @property
    def required(self) -> bool:
        """Whether a call must give it."""
        return self.default is None and not self.stars


def parameters(signature: str) -> list[Parameter] | None:
    """Returns the parameters of `(images: Tensor, *, k: int = 1) -> list[int]`.

    None where the text is no Python: a default such as `<object object at 0x7f…>` isn't, nor is `(...)`, which stands
    for a signature that nobody knows.
    """
    text = f"def f{signature}: pass"
    try:
        [definition] = ast.parse(text).body
    except (SyntaxError, ValueError):
        return None
    assert isinstance(definition, ast.FunctionDef)
    args = definition.args

    def source(node: ast.expr | None) -> str | None:
        return None if node is None else ast.get_source_segment(text, node)

    def read(arg: ast.arg, default: ast.expr | None = None, **fields: str) -> Parameter:
        return Parameter(arg.arg, source(arg.annotation) or "", source(default), **fields)  # type: ignore[arg-type]

    positional = [*args.posonlyargs, *args.args]
    # Defaults belong to the last ones.
    defaults = [None] * (len(positional) - len(args.defaults)) + list(args.defaults)
    read_positional = [
        read(arg, default, passed="positional" if number < len(args.posonlyargs) else "either")
        for number, (arg, default) in enumerate(zip(positional, defaults, strict=True))
    ]
    return [
        *read_positional,
        *([read(args.vararg, stars="*")] if args.vararg else []),
        *(read(arg, default, passed="keyword") for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True)),
        *([read(args.kwarg, stars="**")] if args.kwarg else []),
    ]
