"""The commands, and how they end."""

from __future__ import annotations

import os
import sys

import click

from tensorcall.cli.call import call
from tensorcall.cli.describe import describe
from tensorcall.cli.exits import FAILED, INTERRUPTED, OK
from tensorcall.cli.health import health
from tensorcall.cli.ls import ls
from tensorcall.cli.parameters import examples
from tensorcall.cli.rrefs import rrefs
from tensorcall.cli.serve import serve


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    # Without a command the help is an answer, not an error message.
    invoke_without_command=True,
    epilog=examples("tensorcall serve mymodule", "tensorcall call 127.0.0.1:50051 mymodule.add 1 2"),
)
@click.version_option(package_name="tensorcall", prog_name="tensorcall", message="%(prog)s %(version)s")
@click.pass_context
def app(context: click.Context) -> None:
    """Runs Python functions and torch models on another machine.

    Exit codes: 0, it worked; 1, it failed; 2, the command line is wrong or nobody answers; 130, interrupted.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
        context.exit(OK)


for _command in (serve, ls, describe, call, rrefs, health):
    app.add_command(_command)


def run() -> int:
    """Runs the command that the process was started with and returns its exit code."""
    # gRPC's own lines on stderr say in its terms what we say in ours. Set before anything imports it.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        code = app.main(prog_name="tensorcall", standalone_mode=False)
        # Now, while a reader that is gone (`tensorcall ls … | head -1`) can still be noticed.
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except BrokenPipeError:
        # Or Python would flush again at exit, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    return code if isinstance(code, int) else OK
