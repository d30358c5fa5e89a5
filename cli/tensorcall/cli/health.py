"""`tensorcall health`."""

from __future__ import annotations

from typing import Any

import click

from tensorcall.cli.exits import FAILED, OK, WRONG_USAGE, fail, told
from tensorcall.cli.parameters import address_argument, examples


@click.command(
    epilog=examples(
        "tensorcall health 127.0.0.1:50051",
        "tensorcall health 127.0.0.1:50051 --service tensorcall.v1.HandlerService",
    ),
)
@address_argument
@click.option(
    "--service", metavar="NAME", default="", help="Ask for this service only; else for the server as a whole."
)
@click.option(
    "--timeout",
    "-t",
    metavar="SECONDS",
    type=click.FloatRange(0, min_open=True),
    default=5.0,
    show_default=True,
    help="Give up after this.",
)
def health(address: str, service: str, timeout: float) -> int:
    """Asks whether a server is ready: prints SERVING or NOT_SERVING.

    Works with every server that has gRPC's health service (grpc.health.v1). Exits with 0 if it is SERVING, with 1 if it
    is anything else, with 2 if nobody answers.
    """
    try:
        import grpc
        from grpc_health.v1 import health_pb2, health_pb2_grpc
    except ModuleNotFoundError as error:
        fail(f"health needs {error.name}: pip install grpcio-health-checking")
        return WRONG_USAGE
    with grpc.insecure_channel(address) as channel:
        try:
            request = health_pb2.HealthCheckRequest(service=service)
            response = health_pb2_grpc.HealthStub(channel).Check(request, timeout=timeout)
        except grpc.RpcError as error:
            return _failed(error, address, service, timeout)
    click.echo(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))
    return OK if response.status == health_pb2.HealthCheckResponse.SERVING else FAILED


def _failed(error: Any, address: str, service: str, timeout: float) -> int:
    import grpc

    from tensorcall.wire import statuses
    from tensorcall.wire.errors import Unreachable

    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.NOT_FOUND:
        click.echo("SERVICE_UNKNOWN")
        fail(f"{address} has no service {service!r}")
        return FAILED
    if code is grpc.StatusCode.UNIMPLEMENTED:
        fail(f"{address} has no health service")
        return FAILED
    with told(address):
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            raise Unreachable(f"no answer within {timeout:g} s")
        raise statuses.from_grpc(code.value[0], details, None, connected=False, address=address)
