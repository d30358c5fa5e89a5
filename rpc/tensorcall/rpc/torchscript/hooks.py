"""Joins TorchScript and tensorcall.rpc: RRefs in signatures and attributes, calls inside functions."""

from __future__ import annotations

import atexit
from typing import Any

import torch

from tensorcall.rpc.torchscript import calls, rrefs

_C: Any = torch._C
_annotations: Any = torch.jit.annotations


def install() -> None:
    """Has TorchScript compile RRef[T] and calls to what runs here; for good.

    It uses the hooks that torch's own tests use to see each function that was compiled, replaces the factory of RRef
    types in `torch.jit.annotations`, and wraps the function that infers the types of modules' attributes.
    """
    module_hook, function_hook = _C._jit_get_emit_hooks()

    def module_compiled(module: Any) -> None:
        for name in module._method_names():
            calls.rewrite(module._get_method(name).graph)
        if module_hook is not None:
            module_hook(module)

    def function_compiled(function: Any) -> None:
        calls.rewrite(function.graph)
        if function_hook is not None:
            function_hook(function)

    _C._jit_set_emit_hooks(module_compiled, function_compiled)
    # torch would drop them after Python has ended.
    atexit.register(_C._jit_set_emit_hooks, module_hook, function_hook)

    _annotations.RRefType = rrefs.rref_type
    infer = _C._jit_try_infer_type
    _C._jit_try_infer_type = lambda value: rrefs.infer(value, infer)
