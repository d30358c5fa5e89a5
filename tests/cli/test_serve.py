from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

SIGNALS = [signal.SIGTERM, signal.SIGINT]


def test_the_port_can_be_read(serve: Any, command: Any) -> None:
    server = serve("served")
    server.logs(f" functions at {server.address}")
    assert "tensorcall serves " in server.stderr
    # What functions print goes where they print it, and nothing else goes there.
    assert command("call", server.address, "served.chatter").stdout == "done\n"
    server.send(signal.SIGTERM)
    assert server.wait() == 0
    assert server.stdout == "from the function\n"
    # Nobody is to look for a server there any more.
    assert not (server.out.parent / "port").exists()


def test_many_modules_and_the_environment(serve: Any, command: Any, tmp_path: Path) -> None:
    package = tmp_path / "shop"
    package.mkdir()
    for name in ("prices", "orders"):
        (package / f"{name}.py").write_text(
            f"from tensorcall.server import expose\n@expose\ndef of_{name}() -> str:\n    return '{name}'\n"
        )
    server = serve(
        cwd=tmp_path,
        TENSORCALL_MODULES="shop.prices shop.orders",
        TENSORCALL_LOG_FORMAT="json",
        TENSORCALL_WORKER="till-1",
    )
    assert command("call", server.address, "prices.of_prices").stdout == "prices\n"
    assert command("call", server.address, "orders.of_orders").stdout == "orders\n"
    server.send(signal.SIGTERM)
    assert server.wait() == 0
    records = [json.loads(line) for line in server.stderr.splitlines()]
    assert any(record.get("worker") == "till-1" for record in records)
    assert any(record["event"] == f"tensorcall serves 2 functions at {server.address}" for record in records)


def test_json_logs_have_a_line_for_every_call(serve: Any, command: Any) -> None:
    server = serve("served", "--log-format", "json", "--log-level", "debug")
    command("call", server.address, "served.add", 1)
    command("call", server.address, "served.fail", "x")
    server.send(signal.SIGTERM)
    assert server.wait() == 0
    records = [json.loads(line) for line in server.stderr.splitlines()]
    assert all({"event", "level", "logger", "timestamp"} <= set(record) for record in records)
    calls = [record for record in records if record["event"] == "call"]
    assert [record["function"] for record in calls] == ["served.add", "served.fail"]
    assert calls[0]["outcome"] == "ok"
    assert calls[1]["outcome"] != "ok"
    for record in calls:
        assert record["level"] == "debug"
        assert record["milliseconds"] >= 0
        assert record["peer"].startswith("ipv4:127.0.0.1:")


def test_warnings_alone(serve: Any) -> None:
    server = serve("served", "--log-level", "warning", "--allow-pickle", "--bind", "0.0.0.0:0")
    server.send(signal.SIGTERM)
    assert server.wait() == 0
    tls, pickle = server.stderr.splitlines()
    assert "neither TLS nor authentication" in tls
    assert "pickle is allowed" in pickle


def test_tracebacks_for_nobody(serve: Any, command: Any) -> None:
    server = serve("served", "--tracebacks", "never")
    ran = command("call", server.address, "served.fail", "one line")
    assert ran.stderr.splitlines()[0] == "served.fail raised ValueError: one line"
    assert "File" not in ran.stderr


# --- the end ---


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_drains(serve: Any, start: Any, command: Any, tmp_path: Path, number: int) -> None:
    started, release = tmp_path / "started", tmp_path / "release"
    server = serve("served")
    calling = start("call", server.address, "served.hold", started, release)
    calling.appears(started)
    server.send(number)
    server.logs("draining")
    refused = command("call", server.address, "served.add", 1)
    assert refused.returncode != 0
    assert refused.stderr.count("\n") == 1
    assert server.process.poll() is None
    release.touch()
    assert calling.wait() == 0
    assert calling.stdout == "held\n"
    assert server.wait() == 0


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_second_signal_ends_at_once(serve: Any, start: Any, tmp_path: Path, number: int) -> None:
    started = tmp_path / "started"
    server = serve("served")
    calling = start("call", server.address, "served.hold", started, tmp_path / "never")
    calling.appears(started)
    server.send(number)
    server.logs("draining")
    server.send(number)
    # The function would hold it for a minute.
    assert server.wait() == 128 + number
    assert calling.wait() == 1
    assert "connection" in calling.stderr


def test_grace_runs_out(serve: Any, start: Any, tmp_path: Path) -> None:
    started = tmp_path / "started"
    server = serve("served", "--grace", "0.1")
    calling = start("call", server.address, "served.hold", started, tmp_path / "never")
    calling.appears(started)
    server.send(signal.SIGTERM)
    # Although the function still holds its thread.
    assert server.wait() == 0
    assert calling.wait() == 1


# --- what can't be served ---

BROKEN = {
    "raises": "raise ValueError('the module itself\\nis broken')",
    "needs_more": "import surely_not_installed",
    "not_python": "x = (",
    "leaves": "import sys; sys.exit(3)",
    "exposes_nothing": "x = 1",
    "twice": """
from tensorcall.server import expose

@expose(name="shop.price")
def first(): ...

@expose(name="shop.price")
def second(): ...
""",
}


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("broken")
    for name, text in BROKEN.items():
        (folder / f"{name}.py").write_text(text + "\n")
    return folder


@pytest.mark.parametrize(
    ("module", "code", "line"),
    [
        ("nosuch", 2, "there is no module 'nosuch'"),
        ("nosuch.deeper", 2, "there is no module 'nosuch'"),
        ("raises.py", 2, "'raises.py' is no name of a module: write raises"),
        ("exposes_nothing", 1, "exposes_nothing exposes nothing: decorate a function with @expose"),
        ("twice", 1, "two functions are exposed as 'shop.price': twice.first ("),
    ],
)
def test_a_module_that_can_not_be_served(command: Any, broken: Path, module: str, code: int, line: str) -> None:
    ran = command("serve", module, cwd=broken)
    assert (ran.returncode, ran.stdout) == (code, "")
    assert ran.stderr.startswith(line)
    assert ran.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("raises", "raises can't be imported: ValueError: the module itself"),
        ("needs_more", "needs_more can't be imported: ModuleNotFoundError: No module named 'surely_not_installed'"),
        ("not_python", "not_python can't be imported: SyntaxError: '(' was never closed (not_python.py, line 1)"),
        ("leaves", "leaves can't be imported: SystemExit: 3"),
    ],
)
def test_a_module_that_raises(command: Any, broken: Path, module: str, line: str) -> None:
    ran = command("serve", module, cwd=broken)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.splitlines()[0] == line
    # The traceback is the module's own.
    files = [words for words in ran.stderr.splitlines() if words.startswith("  File ")]
    assert [Path(words.split('"')[1]) for words in files] == [broken / f"{module}.py"]


def test_a_port_in_use(command: Any, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ran = command("serve", "served", "--bind", address, "--port-file", tmp_path / "port")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == f"can't listen on {address}: Address already in use\n"
    assert not os.listdir(tmp_path)


def test_a_port_file_that_can_not_be_written(command: Any) -> None:
    ran = command("serve", "served", "--bind", "127.0.0.1:0", "--port-file", "/nonexistent/port")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == "can't write /nonexistent/port: No such file or directory\n"


# --- the options ---


def test_every_setting_has_an_option_with_its_default() -> None:
    from tensorcall.cli.serve import serve
    from tensorcall.server import ServerConfig

    options = {parameter.name: parameter for parameter in serve.params}
    for field in dataclasses.fields(ServerConfig):
        # What is secret is not for the command line, which everybody on the machine can read.
        name = "secret_file" if field.name == "secret" else field.name
        option = options[name]
        assert option.envvar == f"TENSORCALL_{name.upper()}"
        if name == field.name and option.default is not None and isinstance(option.default, (bool, str)):
            assert option.default == field.default
        elif field.name in ("max_threads", "max_queue", "max_sessions", "grace"):
            # Told by the help's text, since the server is not imported for that.
            assert f"[default: {field.default:g}]" in option.help
