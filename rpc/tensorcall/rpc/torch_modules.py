"""`replace_torch_rpc()`: tensorcall.rpc in torch.distributed.rpc's place, for the whole process."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
import threading
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["replace_torch_rpc", "torch_rpc_is_replaced"]

_THEIRS, _OURS = "torch.distributed.rpc", "tensorcall.rpc"

_SUBMODULES = (
    "_utils",
    "api",
    "backend_registry",
    "constants",
    "functions",
    "internal",
    "options",
    "rref_proxy",
    "server_process_global_profiler",
)
_lock = threading.Lock()


def torch_rpc_is_replaced() -> bool:
    """Tells whether `replace_torch_rpc` was called in this process."""
    return sys.modules.get(_THEIRS) is sys.modules.get(_OURS)


def replace_torch_rpc() -> None:
    """Puts tensorcall.rpc in the place of torch.distributed.rpc, for good and for the whole process.

    From then on `import torch.distributed.rpc` and the attribute `torch.distributed.rpc` give tensorcall.rpc, and its
    submodules with it. What torch itself bound at its own import is exchanged, too: RRef in TorchScript's annotations
    and in DistributedDataParallel, RemoteModule's and DistributedOptimizer's `rpc`. TorchScript learns about calls and
    RRefs (see docs/torchscript.md). What other libraries bound before stays as it is: call this first. To call it again
    does nothing.

    Raises:
        RuntimeError: torch.distributed.rpc is in use: `init_rpc` was called in this process and `shutdown` wasn't.
        ImportError: torch was built without distributed.
    """
    with _lock:
        if torch_rpc_is_replaced():
            return
        theirs = importlib.import_module(_THEIRS)
        if not theirs.is_available():
            raise ImportError("this torch was built without torch.distributed.rpc: there is nothing to replace")
        if theirs.api._is_current_rpc_agent_set():
            raise RuntimeError(
                "torch.distributed.rpc is already initialised in this process: "
                "call replace_torch_rpc() before init_rpc, best of all before anything else imports torch's rpc"
            )
        _replace(theirs)


def _replace(theirs: ModuleType) -> None:
    from tensorcall.rpc import futures
    from tensorcall.rpc.torchscript import hooks

    pairs = [(theirs, importlib.import_module(_OURS))]
    pairs.extend(
        (importlib.import_module(f"{_THEIRS}.{name}"), importlib.import_module(f"{_OURS}.{name}"))
        for name in _SUBMODULES
    )
    _exchange(pairs)
    for old, new in pairs:
        sys.modules[old.__name__] = new
    # Whatever else is imported by torch's name from now on, such as _testing, which registers a backend.
    for name in [name for name in sys.modules if name.startswith(f"{_THEIRS}.")]:
        if name.removeprefix(f"{_THEIRS}.") not in _SUBMODULES:
            del sys.modules[name]
    sys.meta_path.insert(0, _Finder())
    import torch.distributed as dist

    dist.rpc = pairs[0][1]
    _take_reducers(theirs)
    hooks.install()
    futures.install()


def _exchange(pairs: list[tuple[ModuleType, ModuleType]]) -> None:
    """Rebinds in torch's modules what they took from torch.distributed.rpc."""
    new_for: dict[int, Any] = {}
    for old, new in pairs:
        new_for[id(old)] = new
        for name, value in vars(old).items():
            # What was made there, not what was imported from elsewhere, such as modules and plain values.
            if getattr(value, "__module__", None) in _makers and hasattr(new, name):
                new_for[id(value)] = getattr(new, name)
    ours = {id(old) for old, _ in pairs}
    for module_name, module in list(sys.modules.items()):
        if not module_name.startswith("torch.") or module_name.startswith("torch._C") or id(module) in ours:
            continue
        for name, value in list(vars(module).items()):
            if id(value) in new_for and not name.startswith("__"):
                setattr(module, name, new_for[id(value)])


_makers = {_THEIRS, "torch._C._distributed_rpc", *(f"{_THEIRS}.{name}" for name in _SUBMODULES)}


def _take_reducers(theirs: Any) -> None:
    """Takes over how classes are pickled that were registered with torch's pickler, such as RemoteModule."""
    from tensorcall.rpc import internal

    for cls, reducer in theirs.internal._internal_rpc_pickler._class_reducer_dict.items():
        internal._internal_rpc_pickler._register_reducer(cls, reducer)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds tensorcall.rpc's submodules when they are imported by torch's name."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Gives a spec whose loader gives our module."""
        if not name.startswith(f"{_THEIRS}."):
            return None
        return importlib.util.spec_from_loader(name, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Imports our module."""
        module = importlib.import_module(_OURS + spec.name.removeprefix(_THEIRS))
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Undoes what the import did to our module, which has run already."""
        if module.__spec__ is not None and module.__spec__.loader is self:
            module.__spec__ = module.__spec__.loader_state
