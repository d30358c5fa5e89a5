"""`rpc_sync`, `rpc_async` and `remote` inside TorchScript.

torch's compiler turns them into nodes of its own, `prim::rpc_async` and so on, which run on its C++ agent. As soon as a
function has been compiled, and before it can run, the nodes are put in terms of functions that lie outside TorchScript:
the call is made in Python, and its result read as the type that the compiler found for it.
"""

from __future__ import annotations

import threading
from typing import Any

import torch

from tensorcall.rpc.constants import UNSET_RPC_TIMEOUT
from tensorcall.rpc.torchscript import rrefs, templates
from tensorcall.rpc.torchscript.types import annotation

_script: Any = torch.jit.script
_define: Any = templates

_METHODS = {
    f"aten::{name}": name
    for name in ("to_here", "local_value", "is_owner", "owner", "owner_name", "confirmed_by_owner")
}
# What may be left out after worker and function: args, kwargs, timeout.
_DEFAULTS = ((), None, UNSET_RPC_TIMEOUT)

_templates: dict[tuple[str, str], Any] = {}
_lock = threading.RLock()


def rewrite(graph: Any) -> None:
    """Puts the calls of a graph that was just compiled in terms of ours."""
    for node in graph.findAllNodes("prim::fork", recurse=True):
        rewrite(node.g("Subgraph"))
    for kind in ("rpc_sync", "rpc_async", "rpc_remote"):
        for node in graph.findAllNodes(f"prim::{kind}", recurse=True):
            _rewrite_call(graph, node, kind)
    _rewrite_waits(graph)


def _rewrite_call(graph: Any, node: Any, kind: str) -> None:
    inputs = list(node.inputs())
    result = node.output().type()
    element = result if kind == "rpc_sync" else result.getElementType()
    with graph.insert_point_guard(node):
        inputs += [graph.insertConstant(default) for default in _DEFAULTS[len(inputs) - 2 :]]
        (made,) = graph.insertGraph(_template(kind, element), inputs)
    if kind == "rpc_remote":
        for use in list(node.output().uses()):
            if use.user.kind() in _METHODS:
                _rewrite_method(graph, use.user, made, element)
    node.output().replaceAllUsesWith(made)
    node.destroy()


def _rewrite_method(graph: Any, node: Any, rref: Any, element: Any) -> None:
    """Puts a method of an RRef that the graph itself has made in terms of the class that RRef[T] is."""
    template = _template(_METHODS[node.kind()], element)
    inputs = [rref, *list(node.inputs())[1:]][: len(list(template.inputs()))]
    _replace(graph, node, template, inputs)


def _rewrite_waits(graph: Any) -> None:
    """Reads results of futures that came from Python, which hold whatever object, as what they are said to be."""
    given = {value.debugName() for value in graph.inputs()}
    for node in graph.findAllNodes("aten::wait", recurse=True):
        (future,) = node.inputs()
        if future.debugName() not in given and future.node().kind() != "prim::PythonOp":
            continue
        element = future.type().getElementType()
        if element.kind() != "AnyType":
            _replace(graph, node, _template("wait", element), [future])


def _replace(graph: Any, node: Any, template: Any, inputs: list[Any]) -> None:
    with graph.insert_point_guard(node):
        (value,) = graph.insertGraph(template, inputs)
    node.output().replaceAllUsesWith(value)
    node.destroy()


def _template(name: str, element: Any) -> Any:
    """Returns the graph to put in place of a node, for T."""
    key = name, element.annotation_str
    with _lock:
        made = _templates.get(key)
        if made is None:
            rref = annotation(rrefs.rref_type(element))
            defined = {**_define.calls(annotation(element), rref), **_define.methods(rref)}[name]
            # What stands only in an annotation is not in a function's closure.
            names = {"rref": rref} if name in _METHODS.values() else None
            made = _templates[key] = (_script(defined, _rcb=names.get) if names else _script(defined)).graph
    return made
