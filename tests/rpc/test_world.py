"""How workers find each other through a store, and where they listen."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist
from support import ranks
from support.servers import eventually

from tensorcall import rpc
from tensorcall.rpc import addresses, world_secret
from tensorcall.rpc.world import GrowingWorld, Member, StaticWorld, interruptible
from tensorcall.rpc.world_secret import SECRET


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """Opens one store, as each worker does."""
    monkeypatch.delenv(SECRET, raising=False)
    return lambda: dist.PrefixStore("p", dist.FileStore(str(tmp_path / "store")))  # type: ignore[attr-defined]


def member(name: str, id: int) -> Member:
    return Member(name, id, f"127.0.0.1:{id + 1}", id + 100)


def static(store: Any, name: str, rank: int, size: int, timeout: float = 20) -> StaticWorld:
    world = StaticWorld(store, rank, size, timeout)
    world.join(member(name, rank))
    return world


def test_all_meet(store: Callable[[], Any]) -> None:
    with ThreadPoolExecutor(3) as threads:
        worlds = list(threads.map(lambda rank: static(store(), f"w{rank}", rank, 3), range(3)))
    assert len({world.secret for world in worlds}) == 1
    assert len(worlds[0].secret) > 40
    for world in worlds:
        assert world.is_static
        assert world.members() == [member(f"w{rank}", rank) for rank in range(3)]
        assert (world.find("w1"), world.find(2), world.find("x"), world.find(9)) == (
            member("w1", 1),
            member("w2", 2),
            None,
            None,
        )


def test_all_are_told_of_a_name_that_two_have(store: Callable[[], Any]) -> None:
    with ThreadPoolExecutor(3) as threads:
        joining = [threads.submit(static, store(), f"w{rank % 2}", rank, 3) for rank in range(3)]
        for each in joining:
            with pytest.raises(RuntimeError, match=r"name w0 is not unique\. Workers 0 and 2 cannot share"):
                each.result()


def test_who_is_missing_is_named(store: Callable[[], Any]) -> None:
    with pytest.raises(RuntimeError, match=r"not all workers came within 0\.3 s; waiting for rank 0, 2"):
        static(store(), "w1", 1, 3, timeout=0.3)
    with pytest.raises(RuntimeError, match="rank 3 is not in a world of 3"):
        StaticWorld(store(), 3, 3, 1)


def test_waiting_for_others_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    tcp = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="waiting for rank 1"):
        static(tcp, "w0", 0, 2, timeout=1.2)
    assert capfd.readouterr().err == ""


def test_they_come_and_go(store: Callable[[], Any]) -> None:
    first, second = GrowingWorld(store(), 0), GrowingWorld(store(), 5)
    assert first.secret == second.secret
    first.join(member("a", 0))
    assert second.find("a") == member("a", 0)
    second.join(member("b", 5))
    assert first.find("b") == first.find(5) == member("b", 5)
    third = GrowingWorld(store(), 7)
    with pytest.raises(RuntimeError, match="name b is not unique"):
        third.join(member("b", 7))
    with pytest.raises(RuntimeError, match="cannot share the same id"):
        third.join(member("c", 5))
    second.leave()
    second.leave()
    assert [each.name for each in first.members()] == ["a"]
    third.join(member("b", 7))
    assert first.find("b") == member("b", 7)


def test_who_comes_again_elsewhere_is_found_there(store: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = GrowingWorld(store(), 0), GrowingWorld(store(), 5), GrowingWorld(store(), 7)
    first.join(member("a", 0))
    second.join(member("b", 5))
    assert first.find("b") == member("b", 5)
    second.leave()
    third.join(member("b", 7))
    began = time.monotonic()
    eventually(lambda: first.find("b") == member("b", 7))
    assert time.monotonic() - began < 5
    assert first.find(5) is None

    # It does not ask the store each time, and goes on without it.
    asked = []
    monkeypatch.setattr("tensorcall.rpc.world._BELIEVED_SECONDS", 100.0)

    def check(keys: list[str]) -> bool:
        asked.append(keys)
        raise RuntimeError("the store has gone")

    monkeypatch.setattr(first, "store", SimpleNamespace(check=check))
    assert [first.find("b") for _ in range(100)] == [member("b", 7)] * 100
    assert not asked
    monkeypatch.setattr("tensorcall.rpc.world._BELIEVED_SECONDS", 0.0)
    assert first.find("b") == member("b", 7)
    assert asked == [["left/3"]]


def test_two_kinds_do_not_mix(store: Callable[[], Any]) -> None:
    GrowingWorld(store(), 0)
    with pytest.raises(RuntimeError, match="RPC group mixes statically and dynamically initialized members"):
        StaticWorld(store(), 1, 2, 1)


def test_a_secret_of_the_environment_goes_first(store: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECRET, "given")
    assert StaticWorld(store(), 0, 1, 1).secret == "given"


def test_a_secret_of_the_environment_is_not_in_the_store(
    store: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SECRET, "open-sesame")
    assert static(store(), "a", 0, 1).secret == "open-sesame"
    assert b"open-sesame" not in (tmp_path / "store").read_bytes()
    # All have it, or none.
    monkeypatch.delenv(SECRET)
    with pytest.raises(RuntimeError, match=r"different secrets.*store of the rendezvous.*set TENSORCALL_RPC_SECRET to"):
        StaticWorld(store(), 0, 1, 1)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another user's home."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize("place", ["tcp://127.0.0.1:1", "tcp://localhost:1", "tcp://[::1]:1", "env://"])
def test_on_loopback_the_secret_is_the_users(
    place: str, store: Callable[[], Any], tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    first, second = StaticWorld(store(), 0, 2, 1, place), StaticWorld(store(), 1, 2, 1, place)
    assert first.secret == second.secret
    assert len(first.secret) > 40
    assert first.secret.encode() not in (tmp_path / "store").read_bytes()
    # Each world has its own.
    other = dist.PrefixStore("q", store())  # type: ignore[attr-defined]
    assert GrowingWorld(other, 0, place).secret != first.secret
    assert not caplog.records
    monkeypatch.setenv("HOME", str(tmp_path / "elsewhere"))
    with pytest.raises(RuntimeError, match="different secrets: set TENSORCALL_RPC_SECRET to the same"):
        StaticWorld(store(), 1, 2, 1, place)


@pytest.mark.parametrize("place", ["tcp://192.0.2.1:1", "tcp://some-host:1", "env://", ""])
def test_elsewhere_a_warning_tells_who_can_read_the_secret(
    place: str, store: Callable[[], Any], home: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setenv("MASTER_ADDR", "some-host")
    first, second = StaticWorld(store(), 0, 2, 1, place), StaticWorld(store(), 1, 2, 1, place)
    assert first.secret == second.secret
    (record,) = caplog.records
    assert "whoever reaches that can read it" in record.getMessage()
    assert SECRET in record.getMessage()
    # Whoever takes it for a place of its own machine is told at once.
    with pytest.raises(RuntimeError, match="different secrets: this one takes it from the key of this user"):
        StaticWorld(store(), 1, 2, 1, "tcp://127.0.0.1:1")


def test_a_file_is_the_users(store: Callable[[], Any], tmp_path: Path, caplog: Any) -> None:
    path = tmp_path / "store"
    path.touch(0o644)
    opened = store()
    world = StaticWorld(opened, 0, 1, 1, f"file://{path}")
    assert path.stat().st_mode & 0o777 == 0o600
    assert world.secret.encode() in path.read_bytes()
    assert not caplog.records
    # It is born so.
    assert world_secret.make_private(f"file://{tmp_path}/new")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600


def test_a_file_of_somebody_else_is_taken_with_a_warning(
    store: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    opened, path = store(), tmp_path / "store"
    monkeypatch.setattr("tensorcall.rpc.world_secret.os.getuid", lambda: 12345)
    assert StaticWorld(opened, 0, 1, 1, f"file://{path}").secret
    assert [SECRET in record.getMessage() for record in caplog.records] == [True]
    assert not world_secret.make_private(f"file://{tmp_path}/no/such/folder")
    assert not world_secret.make_private("file://")


def test_sizes_that_differ_are_told_to_all(store: Callable[[], Any]) -> None:
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(static, store(), "a", 0, 2)
        while not store().check(["worker/0"]):
            time.sleep(0.01)
        began = time.monotonic()
        with pytest.raises(RuntimeError, match="rank 1 has world_size=3, another has 2"):
            StaticWorld(store(), 1, 3, 20)
        with pytest.raises(RuntimeError, match="rank 1 has world_size=3, another has 2"):
            first.result()
        assert time.monotonic() - began < 5


def _initialise(place: str, size: str) -> str:
    return f"""
from tensorcall import rpc
options = rpc.TensorPipeRpcBackendOptions(init_method={place!r}, rpc_timeout=20)
rpc.init_rpc("w" + RANK, rank=int(RANK), world_size={size}, rpc_backend_options=options)
rpc.shutdown()
"""


def _run_two(program: str, secrets: tuple[str, str]) -> list[str]:
    running = [
        subprocess.Popen(
            [sys.executable, "-c", f"RANK = '{rank}'\n{program}"],
            stderr=subprocess.PIPE,
            env={**os.environ, SECRET: secret},
            text=True,
        )
        for rank, secret in enumerate(secrets)
    ]
    return [process.communicate(timeout=50)[1] for process in running]


def test_workers_with_different_secrets_are_told(tmp_path: Path) -> None:
    for text in _run_two(_initialise(f"file://{tmp_path}/meet", "2"), ("one", "another")):
        assert "RuntimeError: the workers of this world have different secrets: set TENSORCALL_RPC_SECRET to" in text


def test_workers_with_different_sizes_are_told(tmp_path: Path) -> None:
    for text in _run_two(_initialise(f"file://{tmp_path}/meet", "2 + int(RANK)"), ("same", "same")):
        assert "the workers disagree about their number" in text


def options(init_method: str = "file:///x", bind: str | None = None, advertise: str | None = None) -> Any:
    return SimpleNamespace(init_method=init_method, bind=bind, advertise=advertise)


@pytest.mark.parametrize(
    ("given", "bind", "advertise"),
    [
        (options(), "127.0.0.1:0", "127.0.0.1:7"),
        (options("tcp://127.0.0.1:1234"), "127.0.0.1:0", "127.0.0.1:7"),
        (options(bind="10.0.0.1"), "10.0.0.1:0", "10.0.0.1:7"),
        (options(bind="10.0.0.1:7"), "10.0.0.1:7", "10.0.0.1:7"),
        (options(bind="0.0.0.0"), "0.0.0.0:0", "127.0.0.1:7"),
        (options(bind="::1"), "[::1]:0", "[::1]:7"),
        (options(bind="0.0.0.0:7", advertise="node3"), "0.0.0.0:7", "node3:7"),
        (options(bind="0.0.0.0:7", advertise="node3:30007"), "0.0.0.0:7", "node3:30007"),
    ],
)
def test_addresses(given: Any, bind: str, advertise: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(addresses.BIND, raising=False)
    monkeypatch.delenv(addresses.ADVERTISE, raising=False)
    assert addresses.to_bind(given) == bind
    bound = f"{bind.rpartition(':')[0]}:7"
    assert addresses.to_advertise(given, bound) == advertise


def test_addresses_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(addresses.BIND, "0.0.0.0:7000")
    monkeypatch.setenv(addresses.ADVERTISE, "node1:80")
    assert addresses.to_bind(options()) == "0.0.0.0:7000"
    assert addresses.to_advertise(options(), "0.0.0.0:7000") == "node1:80"
    assert addresses.to_bind(options(bind="127.0.0.1")) == "127.0.0.1:0"
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.delenv(addresses.BIND)
    assert addresses.to_bind(options("env://")) in ("127.0.0.1:0", "[::1]:0")
    for wrong in ("a b", "x:y:z", "node:99999"):
        with pytest.raises(ValueError, match=r"no address|ports end"):
            addresses.to_bind(options(bind=wrong))


def test_waiting_gives_what_it_waits_for() -> None:
    assert interruptible(lambda: threading.current_thread().name) == "tensorcall-rendezvous"
    with pytest.raises(KeyError, match="x"):
        interruptible(lambda: {}["x"])


def scenario_again(rank: int) -> None:
    where = rpc._get_current_rpc_agent().me.address
    rpc.shutdown()
    again = rpc.TensorPipeRpcBackendOptions(init_method=f"file://{sys.argv[4]}2", bind="0.0.0.0", advertise="localhost")
    # With another rank, which torch's distributed autograd does not take.
    rpc.init_rpc(f"again{rank}", rank=1 - rank, world_size=2, rpc_backend_options=again)
    assert rpc._get_current_rpc_agent().me.address != where
    assert rpc._get_current_rpc_agent().me.address.startswith("localhost:")
    assert rpc.rpc_sync(f"again{1 - rank}", min, args=(2, 1)) == 1
    with pytest.raises(RuntimeError, match="RPC is already initialized"):
        rpc._init_rpc_backend(rpc.BackendType["TENSORPIPE"], rpc._get_current_rpc_agent().store, "x", rank, 2, again)

    # Whom it would meet there is not waited for.
    nowhere = rpc.TensorPipeRpcBackendOptions(init_method="tcp://127.0.0.1:1")
    with pytest.raises(RuntimeError, match="RPC is already initialized"):
        rpc.init_rpc("x", rank=1, world_size=2, rpc_backend_options=nowhere)


def test_init_rpc_again_elsewhere(tmp_path: Path) -> None:
    ranks.run(__file__, "scenario_again", tmp_path)


if __name__ == "__main__":
    ranks.main(globals())
