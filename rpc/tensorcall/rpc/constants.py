"""Defaults, under torch.distributed.rpc.constants' names and with its values."""

from __future__ import annotations

from datetime import timedelta

DEFAULT_RPC_TIMEOUT_SEC: float = 60.0
"""How long a call may take, in seconds, unless told otherwise."""

DEFAULT_INIT_METHOD: str = "env://"
"""Where workers meet: MASTER_ADDR and MASTER_PORT of the environment."""

DEFAULT_SHUTDOWN_TIMEOUT: float = 0
"""How long a graceful shutdown waits for the other workers, in seconds; 0 for as long as they live."""

DEFAULT_NUM_WORKER_THREADS: int = 16
"""How many threads run calls. More are started when these wait for calls of their own."""

DEFAULT_PROCESS_GROUP_TIMEOUT: timedelta = timedelta(milliseconds=2**31 - 1)
"""How long torch lets collectives over its process group take. Kept for code that reads it; there is none here."""

UNSET_RPC_TIMEOUT: float = -1.0
"""A call's timeout that stands for the default."""

# What torch imports there from C++, and others import from there.
_DEFAULT_INIT_METHOD = DEFAULT_INIT_METHOD
_DEFAULT_NUM_WORKER_THREADS = DEFAULT_NUM_WORKER_THREADS
_DEFAULT_RPC_TIMEOUT_SEC = DEFAULT_RPC_TIMEOUT_SEC
_UNSET_RPC_TIMEOUT = UNSET_RPC_TIMEOUT

__all__: list[str] = []
