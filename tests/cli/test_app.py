"""The command as a whole: its help, its version, its extras."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from typing import Any

import pytest

COMMANDS = ["serve", "ls", "describe", "call", "rrefs", "health"]


def test_version(command: Any) -> None:
    ran = command("--version")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == f"tensorcall {importlib.metadata.version('tensorcall')}\n"


def test_help_without_a_command(command: Any) -> None:
    ran = command()
    assert (ran.returncode, ran.stderr) == (0, "")
    for name in COMMANDS:
        assert f"\n  {name} " in ran.stdout
    # The one-line summaries are whole.
    assert "..." not in ran.stdout.partition("Commands:")[2]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_examples(command: Any, name: str) -> None:
    ran = command(name, "--help")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert f"Examples:\n    tensorcall {name} " in ran.stdout


@pytest.mark.parametrize(
    "args",
    [
        ["nosuch"],
        ["ls"],
        ["ls", "nowhere"],
        ["ls", "host:0"],
        ["ls", "::1:5000"],
        ["call", "127.0.0.1:1"],
        ["call", "127.0.0.1:1", "f", "--nosuch"],
        ["call", "127.0.0.1:1", "f", "a=1", "a=2"],
        ["call", "127.0.0.1:1", "f", "--timeout", "0"],
        ["call", "127.0.0.1:1", "f", "--string", "text"],
        ["call", "127.0.0.1:1", "f", "--save", "result.npy", "--json"],
        ["serve"],
        ["serve", "served", "--threads", "0"],
        ["serve", "served", "--max-message-bytes", "1000"],
        ["serve", "served", "--bind", "5000"],
        ["serve", "served", "--bind", "unix:/tmp/socket", "--port-file", "port"],
    ],
    ids=" ".join,
)
def test_usage_errors(command: Any, args: list[str]) -> None:
    ran = command(*args)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "\nError: " in ran.stderr
    assert "Traceback" not in ran.stderr


def _without(modules: list[str], *args: str) -> subprocess.CompletedProcess[str]:
    """Runs a command as if these were not installed."""
    program = f"""
import sys
sys.modules.update(dict.fromkeys({modules}))
from tensorcall.cli import main
sys.exit(main())
"""
    return subprocess.run([sys.executable, "-c", program, *args], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("module", ["click", "rich"])
def test_without_the_extra_cli(module: str) -> None:
    ran = _without([module], "--version")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == f"the command line needs {module}: pip install 'tensorcall[cli]'\n"


@pytest.mark.parametrize("module", ["torch", "structlog", "grpc_health", "grpc_reflection"])
def test_serve_without_the_extra_server(module: str) -> None:
    ran = _without([module], "serve", "served")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == f"serving needs {module}: pip install 'tensorcall[server]'\n"


def test_clients_work_without_torch(address: str) -> None:
    ran = _without(["torch"], "call", address, "served.tensor", "3")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == "float32 array of shape [3]\n[0.  0.5 1. ]\n"


@pytest.mark.parametrize("args", [["ls"], ["describe", "served.add"], ["health"], ["call", "served.add", "1"]], ids=str)
def test_clients_do_not_import_torch(address: str, args: list[str]) -> None:
    program = """
import sys
from tensorcall.cli import main
code = main()
assert "torch" not in sys.modules
sys.exit(code)
"""
    arguments = [args[0], address, *args[1:]]
    ran = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr


def test_a_reader_that_leaves_early(address: str) -> None:
    shell = f"{sys.executable} -I -m tensorcall.cli call {address} served.count 100000 | head -n 1"
    ran = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, timeout=60)
    assert (ran.stdout, ran.stderr) == ("0\n", "")
