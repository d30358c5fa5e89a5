"""What may run: nothing but what was exposed, and pickle only where the operator said so."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from support import served
from support.servers import ServerProcess

from tensorcall.client import connect
from tensorcall.server import ServerConfig
from tensorcall.server.context import Peer
from tensorcall.server.core import Core
from tensorcall.server.expose import Exposed, Registry
from tensorcall.wire import calls, errors

LOOPBACK = ["ipv4:127.0.0.1:5", "ipv4:127.8.9.1:5", "ipv6:[::1]:5", "ipv6:%5B::1%5D:5", "unix:", "unix:/tmp/s"]
ELSEWHERE = ["ipv4:10.0.0.1:5", "ipv6:[2001:db8::1]:5", "ipv6:[::ffff:10.0.0.1]:5", "", "ipv4:1.127.0.1:5"]


@pytest.mark.parametrize("address", LOOPBACK)
def test_peers_on_this_machine(address: str) -> None:
    assert Peer(address).loopback


@pytest.mark.parametrize("address", ELSEWHERE)
def test_peers_elsewhere(address: str) -> None:
    assert not Peer(address).loopback


class Evil:
    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('it ran')",)


@pytest.mark.parametrize(
    ("allow", "address", "refused"),
    [(False, LOOPBACK[0], "--allow-pickle"), (True, ELSEWHERE[0], "own machine"), (True, LOOPBACK[0], None)],
)
@pytest.mark.parametrize("where", ["arguments", "target"])
def test_who_may_pickle(allow: bool, address: str, refused: str | None, where: str) -> None:
    core = Core(Registry([Exposed("f", abs)]), ServerConfig(allow_pickle=allow))
    target = calls.Target(function="f") if where == "arguments" else calls.Target(pickle=pickle.dumps(abs))
    data = calls.encode_request(target, (-3,), {}, pickled=where == "arguments").bytes
    request = calls.decode_request(data)
    if refused is None:
        call = core.admit(request, Peer(address), None, stream=False)
        payload = calls.decode_result(core.run(call).bytes)
        assert isinstance(payload, calls.Payload)
        assert payload.object(allow_pickle=True) == 3
    else:
        with pytest.raises(errors.PickleRefused, match=refused):
            core.admit(request, Peer(address), None, stream=False)


def test_a_refused_pickle_is_never_read(carrier: Any, server: ServerProcess) -> None:
    with connect(server.address, carrier=carrier, pickle=True) as remote:
        with pytest.raises(errors.PickleRefused, match="--allow-pickle"):
            remote.call("served.echo", Evil())


def test_pickle_where_it_is_allowed(carrier: Any) -> None:
    with ServerProcess(allow_pickle=True) as server, connect(server.address, carrier=carrier) as remote:
        pickling = remote.options(pickle=True)
        # Classes that no Value can hold, tensors that are never pickled themselves, aliases that stay aliases.
        large = torch.arange(1 << 20, dtype=torch.int64)
        back = pickling.call("served.echo", [range(3), {"large": large, "again": large}, complex])
        assert back[0] == range(3)
        assert torch.equal(back[1]["large"], large)
        assert back[1]["large"] is back[1]["again"]
        assert back[2] is complex
        with pytest.raises(errors.RemoteError) as caught:
            pickling.call("served.echo", Evil())
        assert "it ran" in str(caught.value)
        # A class that the server lacks: the caller is told, nothing crashes.
        with pytest.raises(AttributeError, match=r"served|support") as missing:
            pickling.call("served.echo", served.Unregistered())
        assert isinstance(missing.value, errors.RemoteError)
        # A server's pickle is read only by those who ask for it.
        with pytest.raises(errors.BadPayload, match="importable"):
            pickling.call("served.unsendable")
        with pytest.raises(errors.UnencodableResult):
            remote.call("served.unsendable")


def test_private_and_unexposed_names_are_closed(carrier: Any, server: ServerProcess) -> None:
    with connect(server.address, carrier=carrier) as remote:
        for name in (
            "served.not_exposed",
            "served._value_error",
            "builtins.exec",
            "os.system",
            "served.Counted._hidden",
            "",
        ):
            with pytest.raises(errors.RequestError):
                remote.call(name)
