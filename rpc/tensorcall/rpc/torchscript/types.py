"""TorchScript types for annotations: any type that the compiler knows can stand in one."""

from __future__ import annotations

import threading
from typing import Any

import torch

_state: Any = torch.jit._state
_C: Any = torch._C

_annotations: dict[str, type] = {}
_lock = threading.RLock()


def annotation(jit_type: Any) -> Any:
    """Returns a class that stands for a TorchScript type wherever TorchScript reads annotations."""
    key = jit_type.annotation_str
    with _lock:
        made = _annotations.get(key)
        if made is None:
            made = _annotations[key] = type("Stands", (), {"__doc__": f"Stands for {key}."})
            # The table in which TorchScript looks up the type of a class that was scripted.
            _state._script_classes[made] = jit_type
    return made


PY_OBJECT = annotation(_C.PyObjectType.get())
"""Any object of Python, passed by reference."""
