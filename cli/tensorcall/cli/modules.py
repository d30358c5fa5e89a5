"""Imports the modules that are to be served."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from types import ModuleType, TracebackType

from tensorcall.cli.exits import FAILED, WRONG_USAGE


class NotImported(Exception):
    """A module can't be imported. The message tells why in one line; `details` is the traceback, if that helps."""

    def __init__(self, message: str, code: int, details: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.details = details


def load(name: str) -> ModuleType:
    """Imports a module, from the current directory first, as `python -m` would.

    Raises:
        NotImported: there is none, or it raises.
    """
    if name.endswith(".py") or not all(part.isidentifier() for part in name.split(".")):
        raise NotImported(f"{name!r} is no name of a module: write {_guess(name)}", WRONG_USAGE)
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and f"{name}.".startswith(f"{error.name}."):
            message = f"there is no module {error.name!r}, neither in {here} nor installed"
            raise NotImported(message, WRONG_USAGE) from None
        raise _raised(name, error) from None
    except (Exception, SystemExit) as error:
        raise _raised(name, error) from None


def _guess(name: str) -> str:
    guess = name.removeprefix("./").removesuffix(".py").replace("/", ".")
    return guess if all(part.isidentifier() for part in guess.split(".")) else "package.module"


def _raised(name: str, error: BaseException) -> NotImported:
    message = str(error).partition("\n")[0]
    headline = f"{type(error).__name__}: {message}" if message else type(error).__name__
    details = "".join(traceback.format_exception(type(error), error, _own_frames(error.__traceback__)))
    return NotImported(f"{name} can't be imported: {headline}", FAILED, details)


def _own_frames(frames: TracebackType | None) -> TracebackType | None:
    """Skips our frames and those of Python's import machinery at the top: the rest is the module's own."""
    while frames is not None:
        code = frames.tb_frame.f_code
        if code.co_filename not in (__file__, importlib.__file__) and not code.co_filename.startswith("<frozen "):
            break
        frames = frames.tb_next
    return frames
