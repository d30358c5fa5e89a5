"""What a value takes in memory, as far as its tensors tell."""

from __future__ import annotations

import sys
from typing import Any

# So many objects are looked at; who hides tensors behind more is not counted any further.
_MAX_OBJECTS = 10_000
_PLAIN = frozenset({int, float, complex, bool, type(None), type, range, slice})
# Names of attributes and the like are not counted.
_LONG = 1024
_TEXTS = frozenset({str, bytes, bytearray})


def size_of(value: object) -> int:
    """Returns how many bytes the tensors, arrays and strings take that a value holds: within containers and attributes.

    An estimate for limits and lists: two tensors that share memory count twice, one object never does.
    """
    if type(value) in _PLAIN:
        return 0
    tensor = getattr(sys.modules.get("torch"), "Tensor", ())
    array = getattr(sys.modules.get("numpy"), "ndarray", ())
    total = 0
    # Kept as well, since an id is unique only as long as its object lives.
    seen: dict[int, object] = {}
    left: list[Any] = [value]
    while left and len(seen) < _MAX_OBJECTS:
        obj = left.pop()
        kind = type(obj)
        if kind in _PLAIN or id(obj) in seen:
            continue
        seen[id(obj)] = obj
        try:
            if isinstance(obj, (tensor, array)):
                total += int(obj.nbytes)
            elif kind in _TEXTS:
                total += len(obj) if kind is not str or len(obj) >= _LONG else 0
            elif isinstance(obj, dict):
                left += [*obj.keys(), *obj.values()]
            elif isinstance(obj, (list, tuple, set, frozenset)):
                left += obj
            elif not isinstance(obj, type) and kind.__module__ != "builtins":
                left += list(object.__getattribute__(obj, "__dict__").values())
        except Exception:
            # An object of whatever nature; and another thread may be changing it.
            continue
    return total
