"""Keeps the exceptions that did not fit a status, for GetError."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict

from tensorcall.v1 import error_pb2
from tensorcall.wire.errors import ErrorUnknown
from tensorcall.wire.limits import MIB

_MAX_BYTES = 64 * MIB
_MAX_ERRORS = 1024


class ErrorStore:
    """The latest exceptions, up to a number of bytes. Safe from any thread."""

    def __init__(self, max_bytes: int = _MAX_BYTES, max_errors: int = _MAX_ERRORS) -> None:
        self._max_bytes = max_bytes
        self._max_errors = max_errors
        self._lock = threading.Lock()
        # Serialised: what is kept is then what it weighs.
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0

    def keep(self, tree: error_pb2.ExceptionTree) -> None:
        """Keeps an exception and gives it an id that can't be guessed. The newest one is kept whatever its size."""
        tree.error_id = secrets.token_hex(16)
        data = tree.SerializeToString()
        with self._lock:
            self._kept[tree.error_id] = data
            self._bytes += len(data)
            while len(self._kept) > 1 and (self._bytes > self._max_bytes or len(self._kept) > self._max_errors):
                _, dropped = self._kept.popitem(last=False)
                self._bytes -= len(dropped)

    def get(self, error_id: str) -> error_pb2.ExceptionTree:
        """Returns an exception that was kept.

        Raises:
            ErrorUnknown: it never was, or has been dropped since.
        """
        with self._lock:
            data = self._kept.get(error_id)
        if data is None:
            raise ErrorUnknown("no error of that id is kept: it was dropped for newer ones, or the server restarted")
        return error_pb2.ExceptionTree.FromString(data)
