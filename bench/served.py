"""What the benchmark's servers expose, and the servers themselves: `python -m bench.served` tells both ports."""

from __future__ import annotations

from typing import Any

from tensorcall.server import Server, ServerConfig


def noop() -> None:
    """Does nothing."""


def echo(tensor: Any) -> Any:
    """Returns what it gets."""
    return tensor


def size(tensor: Any) -> int:
    """Takes a tensor in."""
    return int(tensor.numel())


def peak() -> int:
    """Returns the most memory that this process has had since the last `reset_peak`, in bytes."""
    return memory("VmHWM")


def resident() -> int:
    """Returns the memory that this process has, in bytes, and forgets the peak."""
    return reset_peak()


def memory(field: str) -> int:
    """Reads a field of /proc/self/status, in bytes."""
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(field):
                return int(line.split()[1]) * 1024
    raise LookupError(field)


def reset_peak() -> int:
    """Sets the peak to what is resident now, and returns that."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return memory("VmRSS")


def main() -> None:
    """Serves until stdin ends."""
    from bench import bare

    echo_server, echo_port = bare.serve()
    config = ServerConfig(bind="127.0.0.1:0")
    with Server([noop, echo, size, peak, resident], config=config) as server:
        print(server.port, echo_port, flush=True)
        input()
    echo_server.stop(None)


if __name__ == "__main__":
    main()
