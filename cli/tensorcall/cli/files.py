"""Arguments from files, results into files. No format here runs code when it is read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from tensorcall.cli.output import is_array, is_torch


def load(text: str) -> Any:
    """Loads an argument.

    Args:
        text: FILE, or FILE:NAME for one of several arrays: .npy (an array), .npz (a dict of arrays), .safetensors
            (a dict of tensors) or .pt (whatever torch.load reads with weights_only=True).

    Raises:
        click.BadParameter: there is no such file, or it is not what its name says.
    """
    path, _, name = text.rpartition(":")
    if not path or os.path.exists(text):
        path, name = text, ""
    loader = _LOADERS.get(Path(path).suffix)
    if loader is None:
        raise _bad(f"{path!r} must end in {_listed(_LOADERS)}")
    if not os.path.isfile(path):
        raise _bad(f"there is no file {path!r}")
    try:
        loaded = loader(path)
    except ImportError as error:
        raise _bad(f"{path!r} can't be loaded without {error.name}: pip install {error.name}") from None
    except Exception as error:  # what a broken file raises depends on its reader: EOFError, KeyError, RuntimeError, …
        raise _bad(f"{path!r} can't be loaded: {_first_line(error)}") from None
    if not name:
        return loaded
    if not isinstance(loaded, dict) or name not in loaded:
        names = ", ".join(map(str, loaded)) if isinstance(loaded, dict) else "none with a name"
        raise _bad(f"{path!r} holds no {name!r}; it holds: {names}")
    return loaded[name]


def _load_npy(path: str) -> Any:
    import numpy as np

    return np.load(path, allow_pickle=False)


def _load_npz(path: str) -> Any:
    import numpy as np

    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)


def _load_safetensors(path: str) -> Any:
    try:
        import torch  # noqa: F401  (without it safetensors.torch fails in words that don't say so)
    except ModuleNotFoundError:
        from safetensors import numpy

        return numpy.load_file(path)
    from safetensors import torch as safetensors

    return safetensors.load_file(path)


def _load_pt(path: str) -> Any:
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)


_LOADERS: dict[str, Callable[[str], Any]] = {
    ".npy": _load_npy,
    ".npz": _load_npz,
    ".safetensors": _load_safetensors,
    ".pt": _load_pt,
}


def check_target(path: str) -> None:
    """Checks where a result is to be saved: before the call, which may take long.

    Raises:
        click.BadParameter: it can't be.
    """
    if Path(path).suffix not in _SAVERS:
        raise _bad(f"{path!r} must end in {_listed(_SAVERS)}", "--save")
    if not Path(path).absolute().parent.is_dir():
        raise _bad(f"there is no directory {str(Path(path).parent)!r}", "--save")


def save(value: object, path: str) -> None:
    """Saves a result: a tensor or an array as .npy or .pt, either or a dict of them as .safetensors.

    Raises:
        TypeError: the format can't hold it; the message says what can.
        OSError: the file can't be written.
    """
    _SAVERS[Path(path).suffix](value, path)


def _save_npy(value: object, path: str) -> None:
    import numpy as np

    if is_torch(value):
        try:
            value = value.detach().cpu().numpy(force=True)  # type: ignore[attr-defined]
        except (TypeError, RuntimeError) as error:
            raise TypeError(f"{path} can't hold this tensor ({_first_line(error)}): use .pt") from None
    if not isinstance(value, (np.ndarray, np.generic)):
        raise TypeError(f"{path} holds one tensor or array, the result is a {type(value).__name__}")
    np.save(path, value, allow_pickle=False)


def _save_pt(value: object, path: str) -> None:
    import torch

    if not is_array(value):
        raise TypeError(f"{path} holds one tensor or array, the result is a {type(value).__name__}")
    torch.save(value if is_torch(value) else torch.as_tensor(value), path)


def _save_safetensors(value: object, path: str) -> None:
    tensors = value if isinstance(value, dict) else {"result": value}
    if not all(isinstance(name, str) and is_array(tensor) for name, tensor in tensors.items()):
        raise TypeError(f"{path} holds tensors and arrays by name, the result is a {type(value).__name__}")
    try:
        if any(map(is_torch, tensors.values())):
            import torch
            from safetensors import torch as safetensors

            whole = {name: torch.as_tensor(tensor).detach().contiguous() for name, tensor in tensors.items()}
            safetensors.save_file(whole, path)
        else:
            import numpy as np
            from safetensors import numpy

            numpy.save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, path)
    except (KeyError, ValueError, RuntimeError) as error:
        raise TypeError(f"{path} can't hold this ({_first_line(error)}): use .pt or .npy") from None


_SAVERS: dict[str, Callable[[object, str], None]] = {
    ".npy": _save_npy,
    ".pt": _save_pt,
    ".safetensors": _save_safetensors,
}


def _bad(message: str, option: str = "--load") -> click.BadParameter:
    return click.BadParameter(message, param_hint=option)


def _listed(suffixes: dict[str, Any]) -> str:
    *rest, last = suffixes
    return f"{', '.join(rest)} or {last}"


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
