"""The first example that people try, as they would: `tensorcall serve mymodule` and `python client.py`."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from support.servers import eventually

QUICKSTART = Path(__file__).parents[2] / "examples/quickstart"


def test_the_client_gets_what_the_module_exposes(tmp_path: Path) -> None:
    port_file, log = tmp_path / "port", tmp_path / "log"
    serve = [sys.executable, "-m", "tensorcall.cli", "serve", "mymodule"]
    serve += ["--bind", "127.0.0.1:0", "--port-file", str(port_file)]
    with log.open("w") as lines, subprocess.Popen(serve, cwd=QUICKSTART, stderr=lines) as server:
        try:
            eventually(lambda: port_file.exists() or server.poll() is not None, "the server's port")
            assert port_file.exists(), log.read_text()
            address = f"127.0.0.1:{port_file.read_text().strip()}"
            client = [sys.executable, str(QUICKSTART / "client.py"), address]
            done = subprocess.run(client, capture_output=True, text=True, timeout=60)
            server.send_signal(signal.SIGTERM)
            server.wait(30)
        finally:
            server.kill()
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["3", "tensor([[0.6000, 0.8000]])", "3", "2", "1"]
    assert done.stderr == ""
    assert server.returncode == 0, log.read_text()
