"""Results as people read them."""

from __future__ import annotations

import sys
from typing import Any

import click

# How many elements of a tensor stand for it within other values, and by how many lines, or parts of a list, the rest.
_PREVIEW = 6
_MAX_LENGTH = 100
_MAX_STRING = 2000


def is_torch(value: object) -> bool:
    """Whether a value is a torch tensor. Does not import torch: if it was not, there are none."""
    # The client's reading thread may be in the midst of importing it, for a result on its way.
    return isinstance(value, getattr(sys.modules.get("torch"), "Tensor", ()))


def is_array(value: object) -> bool:
    """Whether a value is a tensor, an array or a numpy scalar."""
    if is_torch(value):
        return True
    numpy: Any = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, (numpy.ndarray, numpy.generic))


def dtype_name(array: Any) -> str:
    """Returns the name of an array's dtype, the same for torch and numpy where they have it both: "float32"."""
    return str(array.dtype).removeprefix("torch.")


def show(value: object) -> None:
    """Prints a result on stdout: strings as they are, tensors with type and shape, nested values indented."""
    if isinstance(value, str):
        click.echo(value)
    elif is_array(value):
        click.echo(f"{_heading(value)}\n{_shortened(value)}")
    elif isinstance(value, (list, tuple, dict, set, frozenset)) or hasattr(value, "__dataclass_fields__"):
        from rich.console import Console
        from rich.pretty import Pretty

        view = Pretty(_view(value), max_length=_MAX_LENGTH, max_string=_MAX_STRING, indent_guides=False)
        # A terminal wraps what is too long; in a file or a pipe lines stay whole.
        Console(soft_wrap=not sys.stdout.isatty()).print(view)
    else:
        click.echo(repr(value))


def show_item(item: object) -> None:
    """Prints an item of a stream, on one line unless it is a string with several."""
    click.echo(item if isinstance(item, str) else repr(_view(item)))
    # Items are to be seen as they come, in a pipe, too.
    sys.stdout.flush()


def summary(value: object) -> str:
    """Returns what a value is in a few words."""
    return _heading(value) if is_array(value) else f"a {type(value).__name__}"


class _Brief:
    """A tensor within other values: its type, shape and first elements."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __repr__(self) -> str:
        array = self._array
        elements = ", ".join(map(_number, _first_elements(array)))
        more = ", …" if _count(array) > _PREVIEW else ""
        shown = f" [{elements}{more}]" if elements else ""
        return f"<{dtype_name(array)} {list(array.shape)}{shown}>"


def _view(value: Any) -> Any:
    """Returns the value with its tensors replaced by what prints briefly."""
    if is_array(value):
        return _Brief(value)
    kind = type(value)
    if kind is dict:
        return {_view(key): _view(item) for key, item in value.items()}
    if kind in (list, tuple, set, frozenset):
        return kind(_view(item) for item in value)
    return value


def _count(array: Any) -> int:
    return int(array.numel() if is_torch(array) else array.size)


def _heading(array: Any) -> str:
    kind = "tensor" if is_torch(array) else "array" if array.shape else type(array).__name__
    layout = f", {str(array.layout).removeprefix('torch.')}" if is_torch(array) and not _is_dense(array) else ""
    return f"{dtype_name(array)} {kind} of shape {list(array.shape)}{layout}"


def _shortened(array: Any) -> str:
    """Returns the elements as torch or numpy print them, the middle of a large one left out."""
    if is_torch(array):
        torch: Any = sys.modules["torch"]
        torch.set_printoptions(threshold=_MAX_LENGTH, edgeitems=3, linewidth=100)
        return str(array)
    import numpy as np

    with np.printoptions(threshold=_MAX_LENGTH, edgeitems=3, linewidth=100):
        return str(array)


def _is_dense(tensor: Any) -> bool:
    return str(tensor.layout) == "torch.strided" and not tensor.is_quantized


def _first_elements(array: Any) -> list[Any]:
    if is_torch(array):
        if not _is_dense(array):
            return []
        array = array.detach()
    try:
        # A view or a copy of a few elements, however large the whole.
        return list(array.reshape(-1)[:_PREVIEW].tolist())
    except (RuntimeError, TypeError):  # torch has dtypes that it has no Python type for
        return []


def _number(element: object) -> str:
    return f"{element:.4g}" if isinstance(element, float) else repr(element)
