"""Kinds of parameters that several commands take."""

from __future__ import annotations

import re

import click

_NEGATIVE = re.compile(r"-(\.?\d|Infinity$)")


def examples(*lines: str) -> str:
    """Makes the end of a command's help."""
    # click leaves the lines of a paragraph alone that begins with a backspace.
    return "\n  ".join(("\b\nExamples:", *lines))


class Address(click.ParamType):  # type: ignore[type-arg, unused-ignore]  # generic since click 8.4 only
    """HOST:PORT or unix:PATH."""

    name = "HOST:PORT"

    def __init__(self, *, free_port: bool = False) -> None:
        """Makes the type.

        Args:
            free_port: whether port 0 is one.
        """
        self._lowest = 0 if free_port else 1

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Returns the address, or fails with advice."""
        scheme, _, path = value.partition(":")
        if scheme in ("unix", "unix-abstract"):
            if not path:
                self.fail(f"{value!r} has no path: write {scheme}:PATH", param, ctx)
            return value
        host, _, port = value.rpartition(":")
        if not host or not port.isascii() or not port.isdigit() or not self._lowest <= int(port) < 65536:
            self.fail(
                f"{value!r} is no address: write HOST:PORT, for example 127.0.0.1:50051, or unix:PATH", param, ctx
            )
        if ":" in host and not host.startswith("["):
            self.fail(f"{value!r} is no address: write [{host}]:{port} for IPv6", param, ctx)
        return value


class TakesNegativeNumbers(click.Command):
    """A command whose arguments may be negative numbers without being taken for options."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parses with a blank before negative numbers, which JSON and float() don't mind."""
        return super().parse_args(ctx, [f" {arg}" if _NEGATIVE.match(arg) else arg for arg in args])


address_argument = click.argument("address", metavar="HOST:PORT", type=Address())
timeout_option = click.option(
    "--timeout", "-t", metavar="SECONDS", type=click.FloatRange(0, min_open=True), help="Give up after this."
)
