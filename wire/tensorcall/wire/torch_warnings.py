"""Keeps what torch says about unfinished parts of itself from a user who did not choose to use them here."""

from __future__ import annotations

import threading
import warnings

import torch

# What torch says of its own accord, once in the life of a process.
_SAID_ONCE = r"Sparse \w+ tensor support is in beta|B?Complex\w+ support is experimental|.*quantized tensor creation"

_lock = threading.Lock()
_done: set[object] = set()


def hush(about: torch.dtype | torch.layout) -> None:
    """Has torch say now, to nobody, what it says once about a dtype or layout.

    Cheap from the second time on, and without a change of the filters for warnings, which all threads share.
    """
    if about in _done:
        return
    with _lock, warnings.catch_warnings():
        warnings.filterwarnings("ignore", _SAID_ONCE, UserWarning)
        if isinstance(about, torch.dtype):
            torch.empty(0, dtype=about, device="cpu")
        else:
            none = torch.zeros(0, dtype=torch.int64, device="cpu")
            zero = torch.zeros(1, dtype=torch.int64, device="cpu")
            block = (1, 1) if about in (torch.sparse_bsr, torch.sparse_bsc) else ()
            values = torch.zeros((0, *block), device="cpu")
            torch.sparse_compressed_tensor(
                zero, none, values, (0, 0), layout=about, check_invariants=True, device="cpu"
            )
        _done.add(about)
