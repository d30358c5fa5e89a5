"""What a failed call raises: the original exception, in torch's words and catchable as torch's.

torch.distributed.rpc keeps the types of ValueError and TypeError; whatever else a function raises, and everything that
happens on the way, arrives as a RuntimeError whose text tells worker, exception and traceback. Programs match on that.
So everything raised here is a RuntimeError, too, unless it is one of those two, and prints in torch's words; it still
has the original's type, args, cause, notes and remote traceback.
"""

from __future__ import annotations

import inspect
from functools import lru_cache
from typing import Any, cast

from tensorcall.rpc.worker_info import WorkerInfo
from tensorcall.wire.errors import (
    Cancelled,
    ConnectionLost,
    DeadlineExceeded,
    RemoteError,
    ShuttingDown,
    TensorcallError,
    Unreachable,
)

_MISSING_ADVICE = (
    "Default RPC pickler does not serialize function code. Ensure that UDFs are defined on both caller and callee "
    "modules."
)


class RpcTimeout(DeadlineExceeded, RuntimeError):
    """A call took longer than it may."""


class RpcRemoteError(RemoteError, RuntimeError):
    """A function raised what can't be rebuilt here."""


def timed_out(timeout: float) -> RpcTimeout:
    """Returns what a call raises whose time ran out; in torch's words.

    Args:
        timeout: how long it might take, in seconds.
    """
    return RpcTimeout(f"RPC ran for more than set timeout ({timeout * 1e3:g} ms) and will now be marked with an error")


def told(error: BaseException, to: WorkerInfo, timeout: float | None) -> BaseException:
    """Returns what a call raises, made of what its carrier raised.

    Args:
        error: what the carrier raised; it is changed in place where that can be.
        to: who was called.
        timeout: how long the call might take, in seconds; None: for ever.
    """
    if isinstance(error, RemoteError):
        return _remote(error, to)
    if isinstance(error, DeadlineExceeded):
        return timed_out(timeout) if timeout is not None else RpcTimeout(f"RPC to {to} timed out: {error}")
    if isinstance(error, (Unreachable, ConnectionLost)):
        return _also_runtime(error, f"Connection closed by peer {to}: {error}")
    if isinstance(error, ShuttingDown):
        return _also_runtime(error, f"Connection closed by peer {to}, which is shutting down: {error}")
    if isinstance(error, Cancelled):
        return _also_runtime(error, f"the RPC to {to} was given up: {error}")
    if isinstance(error, TensorcallError):
        return _also_runtime(error, f"the RPC to {to} failed: {error}")
    return error


def _also_runtime(error: TensorcallError, text: str) -> TensorcallError:
    """Returns the same kind of error with another text, as a RuntimeError where torch raises one."""
    kind = type(error)
    made: TensorcallError = _runtime_class(cast(Any, kind))(
        text, metadata=error.metadata, retry_after=error.retry_after
    )
    made.__cause__ = error.__cause__
    return made


@lru_cache(256)
def _runtime_class(kind: Any) -> Any:
    if issubclass(kind, (RuntimeError, ValueError, TypeError)):
        return kind
    return type(kind.__name__, (kind, RuntimeError), {"__module__": kind.__module__, "__doc__": kind.__doc__})


def _remote(error: RemoteError, to: WorkerInfo) -> RemoteError:
    plain = str(error)
    kind = type(error)
    text = f"On {to}:\n{_shown(error, plain)}\n{error.remote_traceback}".rstrip()
    if getattr(error, "missing_here", False):
        text = f"On {to}:\n{_shown(error, plain)} {_MISSING_ADVICE}\n{error.remote_traceback}".rstrip()
    elif not _takes_a_text(cast(Any, kind)):
        # torch rebuilds an exception from its text alone, and says this where it can't.
        text = f"Original exception on remote side was {text}"
    try:
        # Its layout stays; what changes is how it prints, and by what it can be caught.
        error.__class__ = _worded_class(cast(Any, kind))
    except TypeError:
        made = RpcRemoteError(text)
        made.__dict__.update(error.__dict__)
        made.__cause__, made.__context__ = error.__cause__ or error, error.__context__
        error = made
    error.__dict__["_worded"] = (text, error.args)
    return error


def _shown(error: RemoteError, plain: str) -> str:
    name = error.remote_type.rpartition(".")[2] or type(error).__name__
    quote = '"' if "'" in plain and '"' not in plain else "'"
    return f"{name}({quote}{plain}{quote})" if plain else f"{name}()"


@lru_cache(1024)
def _takes_a_text(kind: Any) -> bool:
    """Whether an exception can be made of a text alone, as far as its constructor's signature tells."""
    for base in kind.__mro__:
        made = vars(base).get("__init__")
        # What is derived here has constructors of its own, which say nothing of the original's.
        if base.__module__.startswith("tensorcall.") or issubclass(base, RemoteError) or made is None:
            continue
        try:
            inspect.signature(made).bind(None, "text")
        except TypeError:
            return False
        except ValueError:
            return True  # a builtin's, of which nothing is known
        return True
    return True


@lru_cache(1024)
def _worded_class(kind: Any) -> Any:
    bases = (kind,) if issubclass(kind, (RuntimeError, ValueError, TypeError)) else (kind, RuntimeError)

    def text(self: Any) -> str:
        worded = self.__dict__.get("_worded")
        # Code that changes args to say more is heard.
        return str(worded[0]) if worded is not None and worded[1] is self.args else str(kind.__str__(self))

    body = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__str__": text}
    return type(kind)(kind.__name__, bases, body)
