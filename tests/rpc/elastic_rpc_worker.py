"""A worker of an elastic world for tests, with rpc: `elastic_rpc_worker.py NAME URL`; told what to do on stdin."""

from __future__ import annotations

import json
import sys
import threading
import time
import traceback
from typing import Any

import torch

from tensorcall import rpc


class Pester:
    """Calls another worker all the time."""

    def __init__(self, to: str) -> None:
        self._to = to
        self._stop = threading.Event()
        self.calls = 0
        self.errors: list[str] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                assert rpc.rpc_sync(self._to, torch.add, args=(torch.ones(2), self.calls))[0] == 1 + self.calls
            except Exception as error:
                self.errors.append(f"{type(error).__name__}: {error}")
                self._stop.wait(0.1)
            self.calls += 1
            time.sleep(0.001)

    def end(self) -> dict[str, Any]:
        self._stop.set()
        self._thread.join()
        return {"calls": self.calls, "errors": self.errors}


class Counter:
    """A value that lives on its owner."""

    def __init__(self) -> None:
        self.count = 0

    def up(self) -> int:
        self.count += 1
        return self.count


def up(counter: Any) -> int:
    return int(counter.rpc_sync().up())


def do(command: str, *args: str) -> Any:
    if command == "call":
        return rpc.rpc_sync(args[0], torch.add, args=(torch.ones(2), 1)).tolist()
    if command == "who":
        return sorted(info.name for info in rpc.api._get_current_rpc_agent().get_worker_infos())
    if command == "info":
        info = rpc.get_worker_info(*args)
        return [info.name, info.id]
    if command == "address":
        return rpc.api._get_current_rpc_agent().me.address
    if command == "pester":
        pesters.append(Pester(args[0]))
        return None
    if command == "end":
        return [pesters.pop().end() for _ in range(len(pesters))]
    if command == "relay":
        # A call from there to a third one.
        return rpc.rpc_sync(args[0], rpc.rpc_sync, args=(args[1], torch.add, (torch.ones(2), 1))).tolist()
    if command == "count":
        # A reference to a value of one worker, used by another one.
        counter = rpc.remote(args[0], Counter)
        return [rpc.rpc_sync(args[1], up, args=(counter,)), counter.rpc_sync().up(), counter.owner_name()]
    if command == "again":
        rpc.shutdown()
        init()
        return None
    raise AssertionError(command)


def init() -> None:
    name, url = sys.argv[1:3]
    options = rpc.TensorPipeRpcBackendOptions(init_method=url, rpc_timeout=20)
    rpc.init_rpc(name, world_size=None, rpc_backend_options=options)


def main() -> None:
    sys.modules["elastic_rpc_worker"] = sys.modules["__main__"]
    Counter.__module__ = up.__module__ = "elastic_rpc_worker"

    def tell(**what: object) -> None:
        print(json.dumps(what), flush=True)

    try:
        init()
    except Exception as error:
        tell(error=f"{type(error).__name__}: {error}")
        return
    tell(result=None)
    for line in sys.stdin:
        command = line.split()
        if command == ["quit"]:
            break
        try:
            tell(result=do(*command))
        except Exception as error:
            traceback.print_exc()
            tell(error=f"{type(error).__name__}: {error}")
    rpc.shutdown()
    tell(result="quit")


pesters: list[Pester] = []

if __name__ == "__main__":
    main()
