"""Where elastic worlds meet, and where their secrets come from."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from tensorcall.rpc import meeting, world_secret
from tensorcall.rpc.world_secret import SECRET


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user whose key is made by the test."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(SECRET, raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("tcp://127.0.0.1", "write tcp://HOST:PORT"),
        ("tcp://127.0.0.1:99999", "write tcp://HOST:PORT"),
        ("tcp://no.such.host.invalid:1", "has no address"),
        ("http://127.0.0.1:1", "tcp://HOST:PORT, env:// or file://"),
        ("127.0.0.1:1", "tcp://HOST:PORT, env:// or file://"),
    ],
)
def test_what_is_no_place_is_refused(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        meeting.find(url)


def test_the_environment_names_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    with pytest.raises(ValueError, match="MASTER_ADDR is not set"):
        meeting.find("env://")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    with pytest.raises(ValueError, match="MASTER_PORT is not set"):
        meeting.find("env://")
    monkeypatch.setenv("MASTER_PORT", "many")
    with pytest.raises(ValueError, match="MASTER_PORT is 'many'"):
        meeting.find("env://")
    monkeypatch.setenv("MASTER_PORT", "1234")
    assert meeting.find("env://").address() == "127.0.0.1:1234"


def test_beyond_loopback_the_secret_must_be_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("tcp://192.0.2.1:29500", "tcp://[2001:db8::1]:29500"):
        with pytest.raises(RuntimeError, match=r"set TENSORCALL_RPC_SECRET to the same secret for all workers"):
            meeting.find(url)
    monkeypatch.setenv(SECRET, "open-sesame")
    assert meeting.find("tcp://192.0.2.1:29500").secret == "open-sesame"
    monkeypatch.setenv(SECRET, "open sesame")
    with pytest.raises(RuntimeError, match="visible ASCII"):
        meeting.find("tcp://192.0.2.1:29500")


def test_on_loopback_the_secret_is_the_users(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = meeting.find("tcp://127.0.0.1:29500").secret
    assert len(first) == 64
    assert meeting.find("tcp://localhost:29500").secret == first
    assert meeting.find("tcp://127.0.0.1:29501").secret != first
    key = home / ".cache/tensorcall/rpc.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert first not in key.read_bytes().hex()
    monkeypatch.setenv("HOME", str(home / "another"))
    assert meeting.find("tcp://127.0.0.1:29500").secret != first


def test_a_key_that_others_may_read_is_not_used(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world_secret.tempfile, "gettempdir", lambda: str(home / "tmp"))
    first = meeting.find("tcp://127.0.0.1:29500").secret
    key = home / ".cache/tensorcall/rpc.key"
    key.chmod(0o644)
    second = meeting.find("tcp://127.0.0.1:29500").secret
    assert second != first  # of the other place
    (home / "tmp" / f"tensorcall-{os.getuid()}" / "rpc.key").write_bytes(b"short")
    with pytest.raises(RuntimeError, match=r"others may read .* holds no key.*: set TENSORCALL_RPC_SECRET"):
        meeting.find("tcp://127.0.0.1:29500")


def test_processes_that_come_at_once_agree_on_the_key() -> None:
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.append(meeting.find("tcp://127.0.0.1:29500").secret)) for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 16
    assert len(set(found)) == 1


def test_a_files_secret_is_the_users(tmp_path: Path) -> None:
    path = tmp_path / "meet"
    path.touch(mode=0o644)
    secret = meeting.find(f"file://{path}").secret
    assert meeting.find(f"file://{path}").secret == secret
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text("something else")
    with pytest.raises(RuntimeError, match="holds something else"):
        meeting.find(f"file://{path}")
