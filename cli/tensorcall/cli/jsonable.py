"""Results as programs read them: JSON, which lacks most of Python's types.

Where JSON has no form for a value, this follows the JSON mapping of protobuf: NaN and the infinities are strings, bytes
are base64. A tensor is `{"dtype", "shape", "data"}`.
"""

from __future__ import annotations

import base64
import dataclasses
import enum
import json
import math
from collections.abc import Callable
from typing import Any

from tensorcall.cli.output import dtype_name, is_array, is_torch

MAX_ELEMENTS = 1_000_000
"""Of a larger tensor the elements are left out: as text they would be of no use to anybody."""


def dumps(value: object, *, warn: Callable[[str], None], indent: int | None = None) -> str:
    """Writes a value as JSON.

    Args:
        value: anything that a call may return.
        warn: told what was left out.
        indent: by how many blanks nested values are indented; None: all on one line.
    """
    return json.dumps(_jsonable(value, warn), ensure_ascii=False, allow_nan=False, indent=indent)


def _jsonable(value: Any, warn: Callable[[str], None]) -> Any:
    if is_array(value):
        return _array(value, warn)
    if isinstance(value, enum.Enum):
        return value.name
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return _float(value)
    if isinstance(value, complex):
        return {"real": _float(value.real), "imag": _float(value.imag)}
    if isinstance(value, (bytes, bytearray)):
        return base64.b64encode(value).decode()
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value):
            return {key: _jsonable(item, warn) for key, item in value.items()}
        return [[_jsonable(key, warn), _jsonable(item, warn)] for key, item in value.items()]
    fields = _fields(value)
    if fields is not None:
        return {name: _jsonable(item, warn) for name, item in fields.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_jsonable(item, warn) for item in value]
    # Dates, paths, decimals, UUIDs.
    return str(value)


def _fields(value: Any) -> dict[str, Any] | None:
    if dataclasses.is_dataclass(value):
        # A field may be unset.
        return {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
    names = getattr(value, "_fields", None)
    return dict(zip(names, value, strict=True)) if isinstance(value, tuple) and names is not None else None


def _float(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _array(array: Any, warn: Callable[[str], None]) -> dict[str, Any]:
    shape = list(array.shape)
    described: dict[str, Any] = {"dtype": dtype_name(array), "shape": shape, "data": None}
    if math.prod(shape) > MAX_ELEMENTS:
        warn(f"a tensor of shape {shape} is without its elements here: they are too many; use --save FILE")
        return described
    try:
        elements = _dense(array).tolist() if is_torch(array) else array.tolist()
    except (RuntimeError, TypeError) as error:  # torch has dtypes that it has no Python type for
        warn(f"the elements of a {described['dtype']} tensor are left out: {error}")
        return described
    # Integers need no second look, and may be many.
    plain = described["dtype"].startswith(("int", "uint", "bool"))
    described["data"] = elements if plain else _jsonable(elements, warn)
    return described


def _dense(tensor: Any) -> Any:
    tensor = tensor.detach()
    if tensor.is_quantized:
        return tensor.dequantize()
    return tensor if str(tensor.layout) == "torch.strided" else tensor.to_dense()
