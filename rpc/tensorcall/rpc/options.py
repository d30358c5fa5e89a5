"""How a worker takes part: torch's options, and where it listens and is reached.

Checks and their wording follow torch/distributed/rpc/options.py and torch/csrc/distributed/rpc/{rpc_agent,
tensorpipe_agent}.h, since users may match on them.
"""

from __future__ import annotations

import math
from abc import ABCMeta
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from tensorcall.rpc import constants

DeviceType = int | str | torch.device
DeviceMap = dict[torch.device, torch.device]

__all__ = ["RpcBackendOptions", "TensorPipeRpcBackendOptions"]

# What TensorPipe has, by the names of its registries. Here they choose nothing.
_TRANSPORTS = ("ibv", "shm", "uv", "shm_uv")
_CHANNELS = ("basic", "cma", "mpt_uv", "cuda_ipc", "cuda_gdr", "cuda_xth", "cuda_basic")


class RpcBackendOptions(metaclass=ABCMeta):  # noqa: B024 abstract so that torch's can be registered as one
    """The options that every backend has.

    Args:
        rpc_timeout: how long a call may take, in seconds; 0 for any time.
        init_method: the URL where workers meet, as `torch.distributed.init_process_group` takes it.
    """

    def __init__(
        self,
        rpc_timeout: float = constants.DEFAULT_RPC_TIMEOUT_SEC,
        init_method: str = constants.DEFAULT_INIT_METHOD,
    ) -> None:
        self.rpc_timeout = _number("rpc_timeout", rpc_timeout)
        if self.rpc_timeout < 0 or not math.isfinite(self.rpc_timeout):
            raise RuntimeError("RPC Timeout must be non-negative")
        self.init_method = _text("init_method", init_method)


class TensorPipeRpcBackendOptions(RpcBackendOptions):
    """The options of a worker, accepted as torch's are, under torch's name.

    Args:
        num_worker_threads: how many threads run the calls of others; more are started when these wait for calls.
        rpc_timeout: how long a call may take, in seconds; 0 for any time.
        init_method: the URL where workers meet, as `torch.distributed.init_process_group` takes it.
        device_maps: callee's name → this worker's device → the callee's device. Kept and checked; tensors arrive on the
            CPU, from whatever device, and are moved from there by whoever wants them elsewhere.
        devices: the CUDA devices that this worker uses; kept for its name.
        bind: where this worker listens, HOST or HOST:PORT; by default the address that leads to the others, and a
            free port. Only here, not in torch.
        advertise: the address by which the others reach this worker, HOST or HOST:PORT, where it is not the one it
            listens on, as in containers and behind NAT. Only here, not in torch.

    Raises:
        RuntimeError: a number that makes no sense, or an unknown transport or channel.
        TypeError: a value of another type.
        ValueError: a device map is not one to one, or `devices` has one that isn't CUDA's.
    """

    def __init__(
        self,
        *,
        num_worker_threads: int = constants.DEFAULT_NUM_WORKER_THREADS,
        rpc_timeout: float = constants.DEFAULT_RPC_TIMEOUT_SEC,
        init_method: str = constants.DEFAULT_INIT_METHOD,
        device_maps: Mapping[str, Mapping[DeviceType, DeviceType]] | None = None,
        devices: Sequence[DeviceType] | None = None,
        bind: str | None = None,
        advertise: str | None = None,
        _transports: Sequence[str] | None = None,
        _channels: Sequence[str] | None = None,
    ) -> None:
        super().__init__(rpc_timeout, init_method)
        if isinstance(num_worker_threads, bool) or not isinstance(num_worker_threads, int):
            raise _wrong_type("num_worker_threads", num_worker_threads)
        if num_worker_threads <= 0:
            raise RuntimeError(f"num_worker_threads must be positive, got {num_worker_threads}")
        self.num_worker_threads = num_worker_threads
        self.device_maps: dict[str, DeviceMap] = {to: _device_map(each) for to, each in (device_maps or {}).items()}
        self.devices = _device_list(devices or [])
        self.bind = bind
        self.advertise = advertise
        _check_known("transport", _transports, _TRANSPORTS)
        _check_known("channel", _channels, _CHANNELS)

    def set_device_map(self, to: str, device_map: Mapping[DeviceType, DeviceType]) -> None:
        """Adds to the device map for one callee.

        Args:
            to: the callee's name.
            device_map: this worker's device → the callee's device.

        Raises:
            ValueError: it's not one to one, or maps a device elsewhere than before.
        """
        added = _device_map(device_map)
        known = self.device_maps.setdefault(to, {})
        for source, target in added.items():
            if known.get(source, target) != target:
                raise ValueError(
                    "`set_device_map` only supports 1-to-1 mapping, trying to map "
                    f"{source} to {target} and {known[source]}"
                )
        known.update(added)

    def set_devices(self, devices: Sequence[DeviceType]) -> None:
        """Sets the CUDA devices that this worker uses."""
        self.devices = _device_list(devices)


def from_torch(options: Any) -> TensorPipeRpcBackendOptions:
    """Makes ours of torch's own TensorPipeRpcBackendOptions."""
    return TensorPipeRpcBackendOptions(
        num_worker_threads=options.num_worker_threads,
        rpc_timeout=options.rpc_timeout,
        init_method=options.init_method,
        device_maps=options.device_maps,
        devices=options.devices,
    )


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise _wrong_type(name, value)
    return float(value)


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise _wrong_type(name, value)
    return value


def _wrong_type(name: str, value: object) -> TypeError:
    # pybind's words for it.
    return TypeError(f"incompatible constructor arguments: {name} must not be a {type(value).__name__} ({value!r})")


def _device_map(device_map: Mapping[DeviceType, DeviceType]) -> DeviceMap:
    made: DeviceMap = {}
    sources: DeviceMap = {}
    for key, value in device_map.items():
        source, target = torch.device(key), torch.device(value)
        if target in sources:
            raise ValueError(
                f"`device_map` only supports 1-to-1 mapping, trying to map {source} and {sources[target]} to {target}"
            )
        made[source] = target
        sources[target] = source
    return made


def _device_list(devices: Iterable[DeviceType]) -> list[torch.device]:
    made = [torch.device(device) for device in devices]
    for device in made:
        if device.type != "cuda":
            raise ValueError(f"`set_devices` expect a list of CUDA devices, but got device type {device.type}.")
    return made


def _check_known(what: str, names: Sequence[str] | None, known: Sequence[str]) -> None:
    for name in names or ():
        if name not in known:
            raise RuntimeError(f"Unknown {what}: {name}")
