"""`ls` and `describe`."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest


def test_ls(command: Any, address: str) -> None:
    ran = command("ls", address)
    assert (ran.returncode, ran.stderr) == (0, "")
    head, *lines = ran.stdout.splitlines()
    assert head.split() == ["NAME", "SIGNATURE", "WHAT", "IT", "DOES"]
    names = [line.split()[0] for line in lines]
    assert names == sorted(names)
    [add] = (line for line in lines if line.startswith("served.add "))
    assert add.split(None, 1)[1].startswith("(a: float, b: float = 1.0, *, scale: float = 1.0) -> float  ")
    # The first line of the docstring, and that as it is.
    assert add.endswith("  Adds two numbers.")
    assert "Predicts [bold]nothing[/bold]." in ran.stdout


def test_ls_by_prefix(command: Any, address: str) -> None:
    ran = command("ls", address, "served.fail")
    assert [line.split()[0] for line in ran.stdout.splitlines()[1:]] == [
        "served.fail",
        "served.fail_after",
        "served.fail_like_click",
    ]


def test_ls_of_nothing(command: Any, address: str) -> None:
    ran = command("ls", address, "nosuch.")
    assert (ran.returncode, ran.stdout) == (0, ""), ran.stderr
    assert ran.stderr == f"{address} exposes no function whose name begins with 'nosuch.'\n"
    assert command("ls", address, "nosuch.", "--json").stdout == "[]\n"


def test_ls_as_json(command: Any, address: str) -> None:
    ran = command("ls", address, "served.C", "--json")
    assert (ran.returncode, ran.stderr) == (0, "")
    [counter] = json.loads(ran.stdout)
    assert (counter["name"], counter["kind"], counter["doc"]) == ("served.Counter", "class", "Counts.")
    [increase] = counter["methods"]
    assert (increase["name"], increase["signature"]) == ("increase", "(by: int = 1) -> int")


def test_describe(command: Any, address: str) -> None:
    ran = command("describe", address, "served.add")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert (
        ran.stdout
        == f"""\
served.add(a: float, b: float = 1.0, *, scale: float = 1.0) -> float

    Adds two numbers.

    And scales them.

Parameters
    a      float  required
    b      float  default 1.0
    scale  float  default 1.0, by name only

From a shell
    tensorcall call {address} served.add a=0.5

From Python
    from tensorcall.client import connect

    with connect("{address}") as remote:
        result = remote.call("served.add", a=0.5)
"""
    )


def test_describe_what_takes_tensors(command: Any, address: str) -> None:
    stdout = command("describe", address, "served.predict").stdout
    assert "images  torch.Tensor  required, by position only" in stdout
    assert f"call {address} served.predict --load images.pt --load labels=labels.npy\n" in stdout
    assert 'remote.call("served.predict", torch.load("images.pt"), labels=numpy.load("labels.npy"))' in stdout
    assert "import torch\n" in stdout


def test_describe_a_generator_function(command: Any, address: str) -> None:
    stdout = command("describe", address, "served.count").stdout
    assert "A generator function" in stdout
    assert 'for item in remote.stream("served.count", stop=1):' in stdout


def test_describe_a_class(command: Any, address: str) -> None:
    stdout = command("describe", address, "served.Counter").stdout
    assert "increase(by: int = 1) -> int  Counts on." in stdout
    assert "From a shell" not in stdout


@pytest.mark.parametrize("name", ["served.add", "served.count"])
def test_the_examples_work(command: Any, address: str, name: str) -> None:
    lines = [line.strip() for line in command("describe", address, name).stdout.splitlines()]
    words = shlex.split(lines[lines.index("From a shell") + 1])
    assert words[0] == "tensorcall"
    ran = command(*words[1:])
    assert ran.returncode == 0, ran.stderr


def test_describe_as_json(command: Any, address: str) -> None:
    described = json.loads(command("describe", address, "served.chatter", "--json").stdout)
    assert described == {
        "name": "served.chatter",
        "signature": "() -> str",
        "kind": "function",
        "doc": "Prints on the server.",
    }


def test_describe_an_unknown_name(command: Any, address: str) -> None:
    ran = command("describe", address, "served.ad")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "served.ad" in ran.stderr
    assert "served.add" in ran.stderr
    assert ran.stderr.count("\n") == 1


@pytest.mark.parametrize("args", [["ls"], ["describe", "f"], ["call", "f"]], ids=lambda args: args[0])
def test_nobody_there(command: Any, nobody: str, args: list[str]) -> None:
    ran = command(args[0], nobody, *args[1:])
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == f"nobody answers at {nobody}: Connection refused\n"
