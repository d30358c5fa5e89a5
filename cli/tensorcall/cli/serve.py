"""`tensorcall serve`."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, TypeVar

import click

from tensorcall.cli import listening, modules
from tensorcall.cli.exits import FAILED, WRONG_USAGE, fail
from tensorcall.cli.parameters import Address, examples

if TYPE_CHECKING:
    from tensorcall.server import Server, ServerConfig

_log = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])

# What the extra `server` installs and the server does not start without.
_NEEDED = ("grpc_health", "grpc_reflection", "structlog", "torch")


def _option(name: str, *names: str, **settings: Any) -> Callable[[F], F]:
    """Makes an option that may also be set by the environment. Those without a default leave it to ServerConfig."""
    variable = names[0] if names else name[2:].replace("-", "_")
    return click.option(name, *names, envvar=f"TENSORCALL_{variable.upper()}", show_envvar=True, **settings)


_count = click.IntRange(min=1)


@click.command(
    epilog=examples(
        "tensorcall serve mymodule",
        "tensorcall serve shop.prices shop.orders --bind 0.0.0.0:50051 --log-format json",
        "tensorcall serve mymodule --bind 127.0.0.1:0 --port-file port",
    ),
)
@click.argument("names", metavar="MODULE…", nargs=-1, required=True, envvar="TENSORCALL_MODULES")
@_option(
    "--bind",
    metavar="HOST:PORT",
    type=Address(free_port=True),
    default="127.0.0.1:50051",
    show_default=True,
    help="Where to listen; unix:PATH for a socket. Port 0 picks a free one.",
)
@_option(
    "--port-file",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    help="Write the port here once the server listens; for scripts, with port 0.",
)
@_option("--worker", metavar="NAME", help="How errors and logs name this server.  [default: the host's name]")
@_option(
    "--threads",
    metavar="N",
    type=_count,
    help="How many functions may run at once; those that wait for calls of their own do not count.  "
    "[default: CPUs + 14, at most 32]",
)
@_option(
    "--max-threads",
    metavar="N",
    type=_count,
    help="How many threads there may be, the waiting ones included.  [default: 512]",
)
@_option(
    "--max-queue",
    metavar="N",
    type=_count,
    help="How many calls may wait for a thread, and how many coroutines may run; further ones are turned away.  "
    "[default: 4096]",
)
@_option("--max-sessions", metavar="N", type=_count, help="How many sessions may be open at once.  [default: 1024]")
@_option(
    "--hello-seconds",
    metavar="SECONDS",
    type=click.FloatRange(min=0, min_open=True),
    help="How long a session may be open without its hello.  [default: 10]",
)
@_option(
    "--max-message-bytes",
    metavar="N",
    type=_count,
    help="The largest message to accept, at least 8 MiB. Tensors in chunks may be larger.  [default: 1 GiB]",
)
@_option(
    "--max-gathering-bytes",
    metavar="N",
    type=_count,
    help="How many bytes tensors may take in all whose chunks are still coming.  [default: 80% of the memory]",
)
@_option(
    "--allow-pickle",
    is_flag=True,
    help="Take pickled Python from callers on this machine: they can then run anything.",
)
@_option(
    "--secret-file",
    metavar="FILE",
    type=click.File("r"),
    help="Answer only callers who show the secret in this file, as `authorization: Bearer …`.",
)
@_option(
    "--lease-seconds",
    metavar="SECONDS",
    type=click.FloatRange(min=0, min_open=True),
    help="How long references are kept of a client that gives no sign of life.  [default: 60]",
)
@_option("--max-clients", metavar="N", type=_count, help="How many clients may hold references.  [default: 10000]")
@_option(
    "--max-rrefs-per-client", metavar="N", type=_count, help="How many references a client may hold.  [default: 100000]"
)
@_option(
    "--max-rref-bytes-per-client",
    metavar="N",
    type=_count,
    help="How many bytes the values may take that a client holds.  [default: 80% of the memory]",
)
@_option(
    "--advertise",
    metavar="HOST:PORT",
    type=Address(),
    help="Where others reach this server: references tell it.  [default: --bind, where that is one address]",
)
@_option(
    "--rref-peer",
    "rref_peers",
    metavar="HOST[:PORT]",
    multiple=True,
    help="Take references to values of servers there, too; * stands for any part. Else only of this machine's.",
)
@_option(
    "--tracebacks",
    type=click.Choice(["loopback", "always", "never"]),
    default="loopback",
    show_default=True,
    help="Who may see the frames of exceptions.",
)
@_option(
    "--grace",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    help="How long calls in flight may go on after SIGTERM or Ctrl-C.  [default: 30]",
)
@_option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="With debug there is a line for every call.",
)
@_option(
    "--log-format",
    type=click.Choice(["console", "json"]),
    default="console",
    show_default=True,
    help="How lines on stderr look.",
)
def serve(
    names: tuple[str, ...],
    port_file: str | None,
    log_level: str,
    log_format: Any,
    secret_file: TextIO | None,
    **settings: Any,
) -> int:
    """Serves the functions that modules mark with @expose.

    Modules are imported by name, from the current directory first, as `python -m` does. Nothing else in them can be
    called. Logs go to stderr; stdout belongs to the functions.

    SIGTERM or Ctrl-C drains: new calls are refused, those in flight may end, the exit code is 0. A second one ends
    the server at once.
    """
    missing = next((name for name in _NEEDED if importlib.util.find_spec(name) is None), None)
    if missing is not None:
        fail(f"serving needs {missing}: pip install 'tensorcall[server]'")
        return WRONG_USAGE
    if port_file is not None and settings["bind"].startswith("unix"):
        raise click.UsageError("--port-file is of no use with unix:PATH, which has no port")

    from tensorcall.server import Server, ServerConfig
    from tensorcall.server.logs import configure

    configure(log_level, log_format)
    try:
        if secret_file is not None:
            settings["secret"] = secret_file.read().strip()
            if not settings["secret"]:
                raise click.UsageError(f"{secret_file.name} holds no secret")
        config = ServerConfig(**{name: value for name, value in settings.items() if value is not None})
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    try:
        server = Server(modules=[modules.load(name) for name in names], config=config)
    except modules.NotImported as error:
        fail(str(error))
        click.echo(error.details, nl=False, err=True)
        return error.code
    except ValueError as error:
        fail(str(error))
        return FAILED
    return _run(server, port_file)


def _warn(config: ServerConfig) -> None:
    if not listening.is_loopback(config.bind):
        if config.secret:
            warning = "whoever reads the secret on its way may call: there is no TLS yet"
        else:
            warning = "anyone who reaches this address may call: there is neither TLS nor authentication yet"
        _log.warning(warning, extra={"bind": config.bind})
    if config.allow_pickle:
        who = "callers on this machine" + (", and all who have the secret," if config.secret else "")
        _log.warning("pickle is allowed: %s can run anything as this user", who)


def _run(server: Server, port_file: str | None) -> int:
    from tensorcall.server import serve as run

    with contextlib.ExitStack() as stack:
        file = None
        try:
            if port_file is not None:
                file = listening.PortFile(port_file)
                stack.callback(file.close)
        except OSError as error:
            fail(f"can't write {port_file}: {error.strerror}")
            return FAILED

        def started(server: Server) -> None:
            _warn(server.config)
            count = len(server.core.registry)
            plural, extra = "" if count == 1 else "s", {"worker": server.core.worker}
            _log.info("tensorcall serves %d function%s at %s", count, plural, server.address, extra=extra)
            if file is not None:
                file.write(server.port)

        try:
            code = run(server, on_started=started)
        except OSError as error:
            if server.port:
                # It listens: what failed is the port file after all, for example for want of space.
                fail(f"can't write {port_file}: {error.strerror}")
                stack.close()
                _leave(FAILED)
            reason = listening.why_not(server.config.bind)
            fail(f"can't listen on {server.config.bind}: {reason}" if reason else str(error))
            return FAILED
    if code or server.core.active:
        _leave(code)
    return code


def _leave(code: int) -> NoReturn:
    """Ends the process although functions still run: Python would wait for their threads, or crash under them."""
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)
