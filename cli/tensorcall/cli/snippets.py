"""Examples of a call, ready to paste."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tensorcall.cli.signatures import Parameter, parameters

if TYPE_CHECKING:
    from tensorcall.client import Function

# By a word in the annotation, in this order: an example of such a value, as JSON or text and as Python.
_EXAMPLES = (
    ("Tensor", "", 'torch.load("{name}.pt")'),
    ("ndarray", "", 'numpy.load("{name}.npy")'),
    ("NDArray", "", 'numpy.load("{name}.npy")'),
    ("dict", '{{"key": 1}}', '{{"key": 1}}'),
    ("Mapping", '{{"key": 1}}', '{{"key": 1}}'),
    ("list", "[1, 2]", "[1, 2]"),
    ("Sequence", "[1, 2]", "[1, 2]"),
    ("Iterable", "[1, 2]", "[1, 2]"),
    ("tuple", "[1, 2]", "(1, 2)"),
    ("bool", "true", "True"),
    ("int", "1", "1"),
    ("float", "0.5", "0.5"),
    ("str", "text", '"text"'),
)
_SUFFIXES = {"Tensor": ".pt", "ndarray": ".npy", "NDArray": ".npy"}
_IMPORTS = {"torch.load(": "import torch", "numpy.load(": "import numpy"}


def shell(function: Function, address: str) -> str:
    """Returns a command line that calls the function, with a made-up value for every argument that must be given."""
    words, loads = ["tensorcall", "call", address, function.name], []
    for parameter in _required(function):
        key = "" if parameter.passed == "positional" else f"{parameter.name}="
        word, text, _ = _example(parameter)
        if word in _SUFFIXES:
            loads += ["--load", f"{key}{parameter.name}{_SUFFIXES[word]}"]
        else:
            words.append(key + text)
    return shlex.join(words + loads)


def python(function: Function, address: str) -> list[str]:
    """Returns the lines of a program that calls the function."""
    arguments = [f'"{function.name}"']
    for parameter in _required(function):
        value = _example(parameter)[2]
        arguments.append(value if parameter.passed == "positional" else f"{parameter.name}={value}")
    text = ", ".join(arguments)
    imports = [line for word, line in _IMPORTS.items() if word in text]
    if function.kind == "generator":
        body = [f"    for item in remote.stream({text}):", "        print(item)"]
    else:
        body = [f"    result = remote.call({text})"]
    return [
        *imports,
        "from tensorcall.client import connect",
        "",
        f'with connect("{address}") as remote:',
        *body,
    ]


def _required(function: Function) -> Iterator[Parameter]:
    return (parameter for parameter in parameters(function.signature) or () if parameter.required)


def _example(parameter: Parameter) -> tuple[str, str, str]:
    """Returns the word of _EXAMPLES that fits, the value as a shell has it, and as Python has it."""
    for word, text, value in _EXAMPLES:
        # list[Tensor] is a list: the outermost type comes first. typing has it as List.
        if re.search(rf"\b{word}\b", parameter.type.partition("[")[0], re.IGNORECASE):
            return word, text.format(name=parameter.name), value.format(name=parameter.name)
    return "", "VALUE", "..."
