"""A worker whose messages get lost or come late, and its options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tensorcall.rpc import constants
from tensorcall.rpc._testing.faults import Faults
from tensorcall.rpc.agent import Agent
from tensorcall.rpc.options import TensorPipeRpcBackendOptions


class FaultyTensorPipeRpcBackendOptions(TensorPipeRpcBackendOptions):
    """The options of such a worker.

    Args:
        num_worker_threads: see `TensorPipeRpcBackendOptions`.
        rpc_timeout: the same.
        init_method: the same.
        messages_to_fail: names of messages that get lost; see `faults`.
        messages_to_delay: names of messages that come late, and by how many seconds.
        num_fail_sends: how many times in a row a message that is repeated gets lost.
    """

    def __init__(
        self,
        num_worker_threads: int = constants.DEFAULT_NUM_WORKER_THREADS,
        rpc_timeout: float = constants.DEFAULT_RPC_TIMEOUT_SEC,
        init_method: str = constants.DEFAULT_INIT_METHOD,
        messages_to_fail: Sequence[str] = (),
        messages_to_delay: Mapping[str, float] | None = None,
        num_fail_sends: int = 0,
    ) -> None:
        super().__init__(num_worker_threads=num_worker_threads, rpc_timeout=rpc_timeout, init_method=init_method)
        self.messages_to_fail = list(messages_to_fail)
        self.messages_to_delay = dict(messages_to_delay or {})
        self.num_fail_sends = num_fail_sends


class FaultyTensorPipeAgent(Agent):
    """A worker whose messages get lost or come late."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As `Agent`, with `FaultyTensorPipeRpcBackendOptions`."""
        super().__init__(*args, **kwargs)
        options: Any = self._options
        self.outgoing.faults = Faults(options.messages_to_fail, options.messages_to_delay, options.num_fail_sends)
