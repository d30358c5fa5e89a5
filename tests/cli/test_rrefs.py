"""`rrefs`, and what `serve` takes for references."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

from support.rref_client import RRefClient

from tensorcall.v1 import rref_service_pb2 as pb


def test_a_server_that_keeps_nothing(command: Any, serve: Any) -> None:
    server = serve("served")
    ran = command("rrefs", server.address)
    assert (ran.returncode, ran.stdout) == (0, "")
    assert ran.stderr == f"{server.address} keeps nothing\n"
    assert command("rrefs", server.address, "--json").stdout == "[]\n"


def test_what_a_server_keeps(command: Any, serve: Any) -> None:
    server = serve("served", "--advertise", "host.example:5")
    with RRefClient(server.address) as client, RRefClient(server.address) as other:
        counter = client.remote("served.Counter")
        assert counter.address == "host.example:5"
        client.remote("served.add", 1)
        client.fork(counter)
        other.fork(counter)
        ran = command("rrefs", server.address)
        assert (ran.returncode, ran.stderr) == (0, "")
        head, first, second = ran.stdout.splitlines()
        assert head.split() == ["ID", "TYPE", "SIZE", "AGE", "HOLDERS", "MADE", "BY"]
        assert first.split()[:2] == [f"{counter.sequence:x}", "served.Counter"]
        assert f"{client.id[:16]}… ×2, {other.id[:16]}…" in first
        assert first.endswith("served.Counter")
        assert second.split()[1:4] == ["builtins.float", "0", "B"]
        assert client.id not in ran.stdout
        described, _ = json.loads(command("rrefs", server.address, "--json").stdout)
        assert (described["type"], described["made_by"], described["bytes"]) == ("served.Counter",) * 2 + (0,)
        assert described["sequence"] == counter.sequence
        assert [holder["forks"] for holder in described["holders"]] == [2, 1]
        assert 0 < described["holders"][0]["lease_remaining"] <= 60
        ran = command("rrefs", server.address, "--limit", 1)
        assert len(ran.stdout.splitlines()) == 2
        assert ran.stderr == "1 more: --limit 2\n"


def test_what_clients_call_themselves_does_not_command_the_terminal(serve: Any) -> None:
    from click.testing import CliRunner

    from tensorcall.cli.rrefs import rrefs

    server = serve("served")
    with RRefClient(server.address) as client:
        counter = client.remote("served.Counter")
        client.ask("Fork", pb.ForkRequest(rref=counter, client_id="\x1b]0;x\x07 [bold]\n"))
        ran = CliRunner().invoke(rrefs, [server.address], color=True)
        assert ran.exit_code == 0
        assert "\ufffd]0;x\ufffd [bold]\ufffd" in ran.stdout
        assert "\x07" not in ran.stdout
        assert "\x1b]" not in ran.stdout


def test_nobody_there(command: Any, nobody: str) -> None:
    ran = command("rrefs", nobody)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "nobody answers" in ran.stderr


def test_a_secret(command: Any, serve: Any, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("sesame\n")
    server = serve("served", "--secret-file", file, "--lease-seconds", "5", "--rref-peer", "*.example")
    with RRefClient(server.address, "sesame") as client:
        assert client.lease.duration.seconds == 5
        client.remote("served.Counter")
        ran = command("rrefs", server.address)
        assert (ran.returncode, ran.stdout) == (1, "")
        assert "wants its secret" in ran.stderr
        assert "served.Counter" in command("rrefs", server.address, "--token", "sesame").stdout
        assert "served.Counter" in command("rrefs", server.address, TENSORCALL_TOKEN="sesame").stdout
    server.send(signal.SIGTERM)
    assert server.wait() == 0
    assert "sesame" not in server.stderr
    file.write_text("\n")
    ran = command("serve", "served", "--secret-file", file)
    assert ran.returncode == 2
    assert "holds no secret" in ran.stderr
