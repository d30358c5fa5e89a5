from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file


@pytest.mark.parametrize(
    ("args", "shown"),
    [
        (["served.add", "1", "2"], "3.0"),
        (["served.add", "-1", "b=-2.5"], "-3.5"),
        (["served.add", "a=1", "scale=3"], "6.0"),
        (["served.echo", "cat"], "cat"),
        (["served.echo", '"5"'], "5"),
        (["served.echo", "5"], "5"),
        (["served.echo", "null"], "None"),
        (["served.echo", "[1, -2, true]"], "[1, -2, True]"),
        (["served.echo", '"a=b"'], "a=b"),
        (["served.echo", "[bold]text[/bold]"], "[bold]text[/bold]"),
        (["served.echo", "x=1", "--string", "y=5"], "[[], {'x': 1, 'y': '5'}]"),
        (["served.kinds", "1", "1.0", "x", "--string", "s=1"], "['int', 'float', 'str', 'str']"),
        (["served.chatter"], "done"),
        (["served.echo", "--", "-x"], "-x"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_arguments_and_results(command: Any, address: str, args: list[str], shown: str) -> None:
    ran = command("call", address, *args)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == f"{shown}\n"


def test_json(command: Any, address: str) -> None:
    ran = command("call", address, "served.odd_values", "--json")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.count("\n") == 1
    assert json.loads(ran.stdout, parse_constant=pytest.fail) == {
        "nan": "NaN",
        "infinities": ["Infinity", "-Infinity"],
        "bytes": "AP8=",
        "complex": {"real": 1.0, "imag": 2.0},
        "set": [1],
        "keys": [[1, "one"], [[2, 3], "two"]],
        "big": 1 << 70,
        "text": "日本",
        "array": {"dtype": "float32", "shape": [2, 2], "data": [[1.5, "NaN"], ["Infinity", 2.0]]},
        "scalar": {"dtype": "int64", "shape": [], "data": 7},
        "date": "2024-01-02",
        "decimal": "1.10",
    }


def test_tensors(command: Any, address: str) -> None:
    ran = command("call", address, "served.tensor", "100000")
    assert ran.stdout.splitlines()[0] == "float32 tensor of shape [100000]"
    assert len(ran.stdout) < 300


def test_nested_arrays_are_brief(command: Any, address: str) -> None:
    stdout = command("call", address, "served.odd_values").stdout
    assert "'array': <float32 [2, 2] [1.5, nan, inf, 2]>" in stdout


# --- streams ---


def test_streams_are_recognised(command: Any, address: str) -> None:
    ran = command("call", address, "served.tensors", "2")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.splitlines() == [
        "{'step': 0, 'loss': <float32 [2, 8] [0, 0, 0, 0, 0, 0, …]>}",
        "{'step': 1, 'loss': <float32 [2, 8] [0.25, 0.25, 0.25, 0.25, 0.25, 0.25, …]>}",
    ]
    lines = command("call", address, "served.count", "3", "--stream", "--json").stdout.splitlines()
    assert [json.loads(line) for line in lines] == [0, 1, 2]


def test_items_are_printed_as_they_come(start: Any, address: str, tmp_path: Path) -> None:
    release = tmp_path / "release"
    calling = start("call", address, "served.count", "3", f"wait_for={release}")
    # Into a file: what is not flushed does not get there.
    calling.until(lambda: calling.stdout == "0\n1\n", "the first items")
    release.touch()
    assert calling.wait() == 0
    assert calling.stdout == "0\n1\n2\n"


def test_a_stream_that_fails(command: Any, address: str) -> None:
    ran = command("call", address, "served.fail_after", "2")
    assert (ran.returncode, ran.stdout) == (1, "0\n1\n")
    assert ran.stderr.startswith("served.fail_after raised LookupError: no more\n")


def test_streaming_what_is_no_generator(command: Any, address: str) -> None:
    ran = command("call", address, "served.add", "1", "--stream")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "no generator function" in ran.stderr


# --- files ---


def test_from_file_to_file(command: Any, address: str, tmp_path: Path) -> None:
    save_file({"w": np.arange(3.0), "v": np.zeros(1)}, tmp_path / "in.safetensors")
    np.save(tmp_path / "in.npy", np.ones(2))
    loads = ["--load", f"x={tmp_path / 'in.safetensors'}:w", "--load", tmp_path / "in.npy"]
    ran = command("call", address, "served.kinds", 1, *loads, "--json")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert json.loads(ran.stdout) == ["int", "ndarray", "Tensor"]
    ran = command("call", address, "served.tensor", "3", "--save", tmp_path / "out.npy")
    assert (ran.returncode, ran.stdout) == (0, ""), ran.stderr
    assert ran.stderr == f"saved float32 tensor of shape [3] as {tmp_path / 'out.npy'}\n"
    assert np.load(tmp_path / "out.npy").tolist() == [0, 0.5, 1]


def test_what_can_not_be_saved_is_shown(command: Any, address: str, tmp_path: Path) -> None:
    ran = command("call", address, "served.add", "1", "--save", tmp_path / "sum.npy")
    assert (ran.returncode, ran.stdout) == (1, "2.0\n")
    assert ran.stderr.startswith("not saved: ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", [["--load", "nosuch.npy"], ["--save", "nosuch/result.npy"], ["--save", "x.txt"]])
def test_wrong_files_are_noticed_before_anything_is_called(command: Any, nobody: str, option: list[str]) -> None:
    ran = command("call", nobody, "f", *option)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert f"\nError: Invalid value for {option[0]}: " in ran.stderr


# --- failures ---


def test_remote_exceptions(command: Any, address: str) -> None:
    ran = command("call", address, "served.fail", "too\nbad", "--json")
    assert (ran.returncode, ran.stdout) == (1, "")
    first, *traceback = ran.stderr.splitlines()
    assert first == "served.fail raised ValueError: too"
    assert '    raise ValueError(message) from KeyError("why")' in traceback
    assert "The above exception was the direct cause of the following exception:" in traceback
    assert traceback[-2:] == ["ValueError: too", "bad"]


def test_exceptions_that_the_command_line_knows(command: Any, address: str) -> None:
    ran = command("call", address, "served.fail_like_click")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith("served.fail_like_click raised click.exceptions.Exit")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["served.ad"], "no function 'served.ad' is exposed; did you mean served.add"),
        (["served.add"], "the signature is served.add(a: float, b: float = 1.0, *, scale: float = 1.0) -> float"),
        (["served.add", "1", "nosuch=2"], "nosuch"),
        (["served.hold", "/nonexistent/x", "y"], "served.hold raised FileNotFoundError"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_refusals(command: Any, address: str, args: list[str], words: str) -> None:
    ran = command("call", address, *args)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert words in ran.stderr.splitlines()[0]
    assert ("Traceback" in ran.stderr) == ("raised" in words)


def test_timeout(command: Any, address: str, tmp_path: Path) -> None:
    started, cancelled = tmp_path / "started", tmp_path / "cancelled"
    ran = command("call", address, "served.until_cancelled", started, cancelled, "--timeout", "0.5")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "0.5 s" in ran.stderr
    assert ran.stderr.count("\n") == 1


def test_ctrl_c_cancels_the_call(start: Any, address: str, tmp_path: Path) -> None:
    started, cancelled = tmp_path / "started", tmp_path / "cancelled"
    calling = start("call", address, "served.until_cancelled", started, cancelled)
    calling.appears(started)
    calling.send(signal.SIGINT)
    assert calling.wait() == 130
    # The rest of the line on which a terminal shows ^C.
    assert (calling.stdout, calling.stderr) == ("", "\n")
    calling.until(cancelled.exists, "the end of the call on the server")
