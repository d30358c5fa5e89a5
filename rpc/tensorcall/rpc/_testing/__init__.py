"""The backend FAULTY_TENSORPIPE: a worker whose messages get lost or come late, for tests; torch's name for it."""

from __future__ import annotations

from tensorcall.rpc._testing import faulty_agent_backend_registry
from tensorcall.rpc._testing.faulty_agent import FaultyTensorPipeAgent, FaultyTensorPipeRpcBackendOptions

__all__ = [
    "FaultyTensorPipeAgent",
    "FaultyTensorPipeRpcBackendOptions",
    "faulty_agent_backend_registry",
    "is_available",
]


def is_available() -> bool:
    """Tells whether there is such a backend: always."""
    return True
