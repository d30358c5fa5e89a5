import subprocess
import sys
import threading
import time
from typing import Any

import pytest
import torch

from tensorcall.server.handler import GIL_WAIT_METRIC, Handler, PersistentHooks, PythonUDF, RRefHooks
from tensorcall.v1 import error_pb2
from tensorcall.wire import pickles
from tensorcall.wire.errors import (
    BadPayload,
    HandlerCleanedUp,
    NotImplementedByPeer,
    RemoteError,
    Unencodable,
    UnknownType,
)


@pytest.fixture
def handler():
    handler = Handler.get_instance()
    handler.init()
    yield handler
    handler.cleanup()
    handler.init()


def add(a, b=0, *, c=0):
    return a + b + c


class Custom(Exception):
    def __init__(self, code: int, *, hint: str) -> None:
        super().__init__(code)
        self.hint = hint


def fail(exception: BaseException) -> None:
    raise exception


class Opaque:
    def __init__(self, value: Any) -> None:
        self.value = value

    def __reduce__(self):
        raise TypeError("not by itself")


# One a process.


def test_there_is_one_handler():
    assert Handler.get_instance() is Handler.get_instance()
    with pytest.raises(TypeError, match="get_instance"):
        Handler()


def run_python(code: str) -> str:
    """Runs code in a process of its own, in which a warning is an error, and returns what it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


def test_many_threads_at_once_get_one_handler():
    code = """
import sys, threading
sys.setswitchinterval(1e-6)
barrier = threading.Barrier(32)
seen = []
def work():
    barrier.wait()
    # The import as well: 32 threads come to it at once.
    from tensorcall.server.handler import Handler, PythonUDF
    for _ in range(100):
        handler = Handler.get_instance()
        handler.init()
        seen.append(id(handler))
        assert handler.run_python_udf(PythonUDF(len, ([1, 2],))) == 2
threads = [threading.Thread(target=work) for _ in range(32)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(seen), len(set(seen)))
"""
    assert run_python(code) == "3200 1"


def test_threads_that_meet_at_the_first_use_get_one_handler():
    code = """
import sys, threading
from tensorcall.server.handler import Handler
sys.setswitchinterval(1e-6)
for _ in range(100):
    Handler._instance = None
    Handler._made.clear()
    barrier = threading.Barrier(8)
    seen = []
    def work():
        barrier.wait()
        seen.append(Handler.get_instance())
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert len(set(map(id, seen))) == 1, seen
print("one")
"""
    assert run_python(code) == "one"


def test_it_is_made_while_a_module_is_being_imported(tmp_path):
    # A module that, while it is imported, waits for a thread which imports and uses the handler.
    (tmp_path / "busy_module.py").write_text("""
import threading
result = []
def work():
    from tensorcall.server.handler import Handler, PythonUDF
    handler = Handler.get_instance()
    data, blobs = handler.serialize([1, 2])
    result.append(handler.run_python_udf(PythonUDF(sum, (handler.deserialize(data, blobs),))))
thread = threading.Thread(target=work)
thread.start()
thread.join(50)
assert not thread.is_alive()
""")
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import busy_module
from tensorcall.server.handler import Handler
print(busy_module.result, Handler.get_instance() is Handler._made["handler"])
"""
    assert run_python(code) == "[3] True"


def test_the_interpreter_ends_while_daemon_threads_use_it():
    code = """
import threading, time
from tensorcall.server.handler import Handler, PythonUDF
used = threading.Event()
def work():
    while True:
        handler = Handler.get_instance()
        data, blobs = handler.serialize({"a": [1, 2.5]})
        handler.run_python_udf(PythonUDF(str, (handler.deserialize(data, blobs),)))
        handler.run_python_udf(PythonUDF(int, ("no number",)))
        used.set()
for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
Handler.get_instance().enable_gil_profiling()
used.wait()
time.sleep(0.1)
print("end")
"""
    assert run_python(code) == "end"


def test_importing_it_does_not_touch_torch_types():
    code = """
import sys
from tensorcall.server.handler import Handler
Handler.get_instance().run_python_udf(None)
print("tensorcall.server.torch_types" in sys.modules)
assert Handler.get_instance().parse_type_from_str("int").kind() == "IntType"
"""
    assert run_python(code) == "False"


# Cleanup.


def test_after_cleanup_every_use_says_so_until_init(handler):
    handler.register_reducer(Opaque, lambda obj: (str, (obj.value,)))
    handler.rref_hooks = hooks()
    handler.persistent_hooks = PersistentHooks({Opaque: lambda obj: ("opaque", obj.value)})
    handler.cleanup()
    handler.cleanup()
    uses = [
        lambda: handler.run_python_udf(PythonUDF(add, (1,))),
        lambda: handler.serialize(1),
        lambda: handler.deserialize(b"", []),
        lambda: handler.register_reducer(Opaque, add),
        lambda: handler.handle_exception(1),
        lambda: handler.is_remote_exception(1),
        lambda: handler.parse_type_from_str("int"),
        lambda: handler.jit_compilation_unit(),
        lambda: handler.rref_hooks,
        lambda: setattr(handler, "rref_hooks", hooks()),
        lambda: handler.persistent_hooks,
        lambda: setattr(handler, "persistent_hooks", PersistentHooks()),
        lambda: handler.rref_type_on_owner("r"),
        lambda: handler.rref_type_on_user("r"),
        lambda: handler.rref_rpc_sync("r"),
        lambda: handler.rref_rpc_async("r"),
        lambda: handler.rref_remote("r"),
        lambda: handler.enable_gil_profiling(),
        lambda: handler.gil_average_wait_us(),
    ]
    for use in uses:
        with pytest.raises(HandlerCleanedUp, match=r"was cleaned up: call Handler.get_instance\(\).init\(\)"):
            use()
    assert handler.metrics() == {}
    assert Handler.get_instance() is handler
    handler.init()
    handler.init()
    assert handler.run_python_udf(PythonUDF(add, (1,))) == 1
    assert handler.rref_hooks is None
    assert handler.persistent_hooks == PersistentHooks()
    assert handler.deserialize(*handler.serialize(Opaque("kept"))) == "kept"
    pickles.unregister_reducer(Opaque)


def test_a_call_under_way_survives_cleanup(handler):
    def clean_up():
        handler.cleanup()
        return "done"

    assert handler.run_python_udf(PythonUDF(clean_up)) == "done"
    handler.init()


# UDFs.


def test_a_udf_runs(handler):
    assert handler.run_python_udf(PythonUDF(add, (1, 2), {"c": 3})) == 6
    tensor = torch.ones(2)
    assert handler.run_python_udf(PythonUDF(lambda: tensor)) is tensor


@pytest.mark.parametrize(
    "exception", [ValueError("no\\n good", 3), KeyError("k"), KeyboardInterrupt(), SystemExit(3), GeneratorExit()]
)
def test_whatever_it_raises_becomes_a_remote_exception(handler, exception):
    result = handler.run_python_udf(PythonUDF(fail, (exception,)))
    assert type(result) is error_pb2.ExceptionTree
    assert handler.is_remote_exception(result)
    node = result.exceptions[0]
    assert node.type == type(exception).__name__
    assert [frame.function for frame in node.frames] == ["fail"]
    if isinstance(exception, Exception):
        with pytest.raises(type(exception)) as caught:
            handler.handle_exception(result)
        assert isinstance(caught.value, RemoteError)
        assert caught.value.args == exception.args
        assert str(caught.value) == str(exception)


def test_an_exception_keeps_what_torch_loses(handler):
    exception = Custom(7, hint="äöü \\u0041")
    exception.__cause__ = OSError(2, "gone")
    result = handler.run_python_udf(PythonUDF(fail, (exception,)))
    with pytest.raises(Custom) as caught:
        handler.handle_exception(result)
    assert caught.value.args == (7,)
    assert caught.value.hint == "äöü \\u0041"
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    assert "in fail" in caught.value.remote_traceback


def test_nothing_is_printed(handler, capfd):
    handler.run_python_udf(PythonUDF(fail, (ValueError("x"),)))
    assert capfd.readouterr() == ("", "")


def test_arguments_that_do_not_fit(handler):
    result = handler.run_python_udf(PythonUDF(add))
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        handler.handle_exception(result)


@pytest.mark.parametrize("udf", [None, (add, (1,), {}), "add"])
def test_what_is_no_udf(handler, udf):
    result = handler.run_python_udf(udf)
    with pytest.raises(TypeError, match="runs a PythonUDF, not a"):
        handler.handle_exception(result)


def test_a_failed_deserialisation_becomes_a_remote_exception(handler):
    data, blobs = handler.serialize(PythonUDF(vanishing, (torch.ones(1),)))
    kept = globals().pop("vanishing")
    try:
        udf = handler.deserialize(data, blobs)
    finally:
        globals()["vanishing"] = kept
    assert isinstance(udf, AttributeError)
    result = handler.run_python_udf(udf)
    with pytest.raises(AttributeError, match=r"vanishing.*importable on the worker") as caught:
        handler.handle_exception(result)
    assert isinstance(caught.value.__cause__, AttributeError)


def vanishing(x):
    return x


@pytest.mark.parametrize("obj", [None, 1, "ExceptionTree", ValueError("x"), error_pb2.RemoteException(type="X")])
def test_other_objects_are_no_remote_exceptions(handler, obj):
    assert not handler.is_remote_exception(obj)
    assert handler.handle_exception(obj) is None


# Serialisation.


def test_a_udf_and_its_tensors_travel(handler):
    tensor = torch.arange(4.0)
    data, blobs = handler.serialize(PythonUDF(add, (tensor, tensor), {"c": 1}))
    assert len(blobs) == 1
    assert b"add" in data
    udf = handler.deserialize(memoryview(data), blobs)
    assert type(udf) is PythonUDF
    assert udf.func is add
    assert udf.args[0] is udf.args[1]
    assert torch.equal(handler.run_python_udf(udf), 2 * tensor + 1)


def test_serialisation_that_fails_leaves_nothing_behind(handler):
    for _ in range(3):
        with pytest.raises(Unencodable, match="not by itself"):
            handler.serialize([torch.ones(1), Opaque(1)])
        with pytest.raises(BadPayload):
            handler.deserialize(b"garbage", [])
    data, blobs = handler.serialize(torch.ones(2))
    assert len(blobs) == 1
    assert torch.equal(handler.deserialize(data, blobs), torch.ones(2))


def test_a_remote_exception_is_a_value_that_travels(handler):
    result = handler.run_python_udf(PythonUDF(fail, (ValueError("x"),)))
    assert handler.deserialize(*handler.serialize(result)) == result


def test_persistent_hooks(handler):
    handler.persistent_hooks = PersistentHooks(
        {Opaque: lambda obj: ("opaque", obj.value)}, {"opaque": lambda value: ["made", value]}
    )
    assert handler.deserialize(*handler.serialize({"o": Opaque(5)})) == {"o": ["made", 5]}


# JIT types.


def test_types(handler):
    assert handler.parse_type_from_str("Dict[str, Tensor]").annotation_str == "Dict[str, Tensor]"
    assert handler.parse_type_from_str("PyObject").kind() == "PyObjectType"
    with pytest.raises(UnknownType):
        handler.parse_type_from_str("__import__('os')")
    assert isinstance(handler.jit_compilation_unit(), torch._C.CompilationUnit)


# RRefs.


def hooks() -> RRefHooks:
    def echo(name):
        return lambda *args, **kwargs: (name, args, kwargs)

    return RRefHooks(
        type_on_owner=echo("owner"),
        type_on_user=echo("user"),
        rpc_sync=echo("sync"),
        rpc_async=echo("async"),
        remote=echo("remote"),
    )


def test_rref_functions_say_that_there_are_none(handler):
    for function in (
        handler.rref_type_on_owner,
        handler.rref_type_on_user,
        handler.rref_rpc_sync,
        handler.rref_rpc_async,
        handler.rref_remote,
    ):
        with pytest.raises(NotImplementedByPeer, match="no RRef support is installed in this handler"):
            function("r")


def test_rref_functions_are_the_hooks(handler):
    handler.rref_hooks = hooks()
    assert handler.rref_type_on_owner("r", blocking=False) == ("owner", ("r",), {"blocking": False})
    assert handler.rref_type_on_user("r", timeout=2.0) == ("user", ("r",), {"timeout": 2.0, "blocking": True})
    assert handler.rref_rpc_sync("r", 1.0) == ("sync", ("r", 1.0), {})
    assert handler.rref_rpc_async("r") == ("async", ("r", None), {})
    assert handler.rref_remote("r") == ("remote", ("r", None), {})


# GIL profiling.


def wait_until(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_wait_for_the_gil_is_measured_only_when_asked_for(handler):
    assert handler.metrics() == {}
    assert handler.gil_average_wait_us() == 0.0
    threads = threading.active_count()
    handler.enable_gil_profiling()
    handler.enable_gil_profiling(True)
    assert threading.active_count() == threads + 1
    assert set(handler.metrics()) == {GIL_WAIT_METRIC} == {"agent.gil_average_wait_time_us"}
    handler.enable_gil_profiling(False)
    assert threading.active_count() == threads
    assert handler.metrics() == {}


def test_a_busy_thread_is_seen(handler):
    stop = threading.Event()

    def spin():
        while not stop.is_set():
            sum(range(100))

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        handler.enable_gil_profiling()
        # It holds the GIL for a switch interval, 5 ms, when another wants it.
        wait_until(lambda: handler.gil_average_wait_us() > 1000)
    finally:
        stop.set()
        thread.join()
    assert handler.metrics()[GIL_WAIT_METRIC] > 0


def test_cleanup_ends_gil_profiling(handler):
    handler.enable_gil_profiling()
    threads = threading.active_count()
    handler.cleanup()
    assert threading.active_count() == threads - 1
