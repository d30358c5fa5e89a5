"""What torch.distributed.rpc._utils has that others use: taking turns at joining and leaving a world without ranks."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_log = logging.getLogger(__name__)

_TURN = "RpcGroupManagementToken"


@contextmanager
def _group_membership_management(store: Any, name: str, is_join: bool) -> Iterator[None]:
    """Lets one worker at a time join or leave, by a key in the store that whoever's turn it is holds.

    Raises:
        RuntimeError: whoever had the turn did not give it back within the store's timeout.
    """
    mine = f"Token_for_{name}_{'join' if is_join else 'leave'}"
    while True:
        holder = store.compare_set(_TURN, "", mine).decode()
        if holder == mine:
            break
        try:
            # Whoever holds it sets this key when done.
            store.wait([holder])
        except RuntimeError:
            _log.error("waited in vain for the turn of %s at joining or leaving to end", holder)
            raise
    try:
        yield
    finally:
        store.set(_TURN, "")
        store.set(mine, "Done")
