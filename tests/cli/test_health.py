from __future__ import annotations

from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc


@pytest.mark.parametrize("service", ["", "tensorcall.v1.HandlerService"])
def test_serving(command: Any, address: str, service: str) -> None:
    ran = command("health", address, "--service", service)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "SERVING\n", "")


def test_unknown_service(command: Any, address: str) -> None:
    ran = command("health", address, "--service", "nosuch")
    assert (ran.returncode, ran.stdout) == (1, "SERVICE_UNKNOWN\n")
    assert ran.stderr == f"{address} has no service 'nosuch'\n"


def test_nobody_there(command: Any, nobody: str) -> None:
    ran = command("health", nobody)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith(f"nobody answers at {nobody}: ")
    assert ran.stderr.count("\n") == 1


def test_nobody_answers_in_time(command: Any) -> None:
    import socket

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        ran = command("health", address, "--timeout", "0.2")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == f"nobody answers at {address}: no answer within 0.2 s\n"


def _other_server(servicer: health.HealthServicer | None) -> tuple[grpc.Server, str]:
    from concurrent.futures import ThreadPoolExecutor

    server = grpc.server(ThreadPoolExecutor(1))
    if servicer is not None:
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    return server, address


def test_not_serving(command: Any) -> None:
    servicer = health.HealthServicer()
    servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    server, address = _other_server(servicer)
    try:
        ran = command("health", address)
    finally:
        server.stop(0).wait()
    assert (ran.returncode, ran.stdout, ran.stderr) == (1, "NOT_SERVING\n", "")


def test_a_server_without_health(command: Any) -> None:
    server, address = _other_server(None)
    try:
        ran = command("health", address)
    finally:
        server.stop(0).wait()
    assert (ran.returncode, ran.stdout, ran.stderr) == (1, "", f"{address} has no health service\n")
