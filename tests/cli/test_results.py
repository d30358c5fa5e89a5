"""Results as JSON and as text, for the kinds that few functions return."""

from __future__ import annotations

import dataclasses
import enum
import json
import sys
import types
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from tensorcall.cli import jsonable, output


class Colour(enum.Enum):
    RED = 1


class Pair(NamedTuple):
    first: int
    second: float


@dataclasses.dataclass
class Point:
    x: float
    label: str


def told(value: object) -> Any:
    return json.loads(jsonable.dumps(value, warn=pytest.fail), parse_constant=pytest.fail)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Colour.RED, "RED"),
        (Pair(1, float("nan")), {"first": 1, "second": "NaN"}),
        ([Point(0.5, "p")], [{"x": 0.5, "label": "p"}]),
        (np.array(True), {"dtype": "bool", "shape": [], "data": True}),
        (np.array(["a", "bc"]), {"dtype": "<U2", "shape": [2], "data": ["a", "bc"]}),
        (np.array([1 + 2j]), {"dtype": "complex128", "shape": [1], "data": [{"real": 1, "imag": 2}]}),
        (torch.ones(1, dtype=torch.bfloat16), {"dtype": "bfloat16", "shape": [1], "data": [1.0]}),
        (torch.ones(1, dtype=torch.float8_e5m2), {"dtype": "float8_e5m2", "shape": [1], "data": [1.0]}),
        (torch.ones(1, requires_grad=True), {"dtype": "float32", "shape": [1], "data": [1.0]}),
        (torch.eye(2).to_sparse(), {"dtype": "float32", "shape": [2, 2], "data": [[1, 0], [0, 1]]}),
        (torch.zeros(2, 0), {"dtype": "float32", "shape": [2, 0], "data": [[], []]}),
        (torch.Size([2, 3]), [2, 3]),
        (bytearray(b"\1"), "AQ=="),
        (frozenset(), []),
    ],
    ids=lambda value: type(value).__name__,
)
def test_as_json(value: object, expected: object) -> None:
    assert told(value) == expected


def test_large_tensors_are_left_out_with_a_warning() -> None:
    warnings: list[str] = []
    large = np.broadcast_to(np.uint8(0), (jsonable.MAX_ELEMENTS + 1,))
    text = jsonable.dumps({"large": large}, warn=warnings.append)
    assert json.loads(text)["large"] == {"dtype": "uint8", "shape": [jsonable.MAX_ELEMENTS + 1], "data": None}
    [warning] = warnings
    assert "--save" in warning


def test_while_torch_is_being_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))
    assert not output.is_array(5)
    assert output.is_array(np.zeros(1))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("text\nand more", "text\nand more\n"),
        (5, "5\n"),
        (b"\0", "b'\\x00'\n"),
        ([], "[]\n"),
        ([torch.zeros(2, 3)], "[<float32 [2, 3] [0, 0, 0, 0, 0, 0]>]\n"),
        ((np.arange(9),), "(<int64 [9] [0, 1, 2, 3, 4, 5, …]>,)\n"),
        ({"s": torch.eye(2).to_sparse()}, "{'s': <float32 [2, 2]>}\n"),
        ([torch.tensor(1.0, requires_grad=True)], "[<float32 [] [1]>]\n"),
        (torch.tensor([1, 2]), "int64 tensor of shape [2]\ntensor([1, 2])\n"),
        (np.float32(0.5), "float32 float32 of shape []\n0.5\n"),
        (Point(0.5, "[red]"), "Point(x=0.5, label='[red]')\n"),
        (list(range(1000)), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_as_text(capsys: pytest.CaptureFixture[str], value: object, shown: str | None) -> None:
    output.show(value)
    out = capsys.readouterr().out
    if shown is None:
        assert "... +900" in out
    else:
        assert out == shown


def test_items_are_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    for item in ({"a": list(range(200))}, "text", torch.zeros(100, 100), None):
        output.show_item(item)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[1:] == ["text", "<float32 [100, 100] [0, 0, 0, 0, 0, 0, …]>", "None"]
