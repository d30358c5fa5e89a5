"""A profile of everything that others call on a worker: torch.distributed.rpc's `_server_process_global_profile`."""

from __future__ import annotations

import itertools
from types import TracebackType
from typing import Any, Literal

from torch.autograd import profiler_legacy, profiler_util

from tensorcall.rpc.recording import ServerWide, Settings

__all__: list[str] = []

_profile: Any = profiler_legacy.profile


class _server_process_global_profile(_profile):  # type: ignore[misc] # noqa: N801 torch's name
    """Records, on all threads that run calls of others, what they do; otherwise as torch's legacy `profile`.

    Made and entered on the worker in question, by `remote` and `rref.rpc_sync().__enter__()`.
    """

    _server_wide: ServerWide | None = None

    def __enter__(self) -> _server_process_global_profile | None:
        """Begins with calls that arrive from now on."""
        if not self.enabled:
            return None
        if self._server_wide is not None:
            raise RuntimeError("autograd profiler traces are not reentrant")
        self._server_wide = ServerWide(Settings(*(getattr(self, name) for name in Settings._fields)))
        self._server_wide.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> Literal[False]:
        """Ends.

        Sets `process_global_function_events`, a list of events for each call, and `function_events`, all of them.
        """
        if self._server_wide is None:
            return False
        self.process_global_function_events = self._server_wide.stop()
        make_list: Any = profiler_util.EventList
        self.function_events = make_list(
            list(itertools.chain.from_iterable(self.process_global_function_events)),
            use_device="cuda" if self.use_cuda else None,
            profile_memory=self.profile_memory,
        )
        self.function_events._build_tree()
        return False
