"""What each of torch's tests needs, found out from its source.

A test's references are the dotted names in its method and in whatever of the tests' own modules it uses: methods by
`self.name`, functions and classes by name. Names that come from elsewhere are written in full ("rpc.api._barrier" is
torch.distributed.rpc.api._barrier); an attribute of something that is only known at run time is "?.name". The first
category with a matching reference, in the order of `RULES`, is the test's; the last one takes what is left.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from functools import cache
from pathlib import Path

_TESTING = "torch.testing._internal"
_RPC = "torch.distributed.rpc"

TORCHSCRIPT = "TorchScript"
PUBLIC = "public API only"

RULES: tuple[tuple[str, str], ...] = (
    ("profiler", r"torch\.(autograd\.)?(profiler|_?kineto)|.*(?<!gil)_profil"),
    # Every test in a module of the folder jit, and whatever else scripts: RemoteModule is built of scripted templates.
    (TORCHSCRIPT, r"torch\.jit\.(script|interface|ScriptModule|export|ignore|save|load|annotate)"),
    ("pickler", rf"{re.escape(_RPC)}\..*(pickle|PythonUDF)|\?\._serialize"),
    ("TensorPipe's own options", r".*(TensorPipe|TENSORPIPE|tp_transports|\.device_maps?$|set_devices)"),
    # Not RPCExecMode, an enumeration by which the tests say which of the public functions they call.
    ("private helpers", rf"{re.escape(_RPC)}\.(.*\.)?(_\w|internal\.(?!RPCExecMode))|\?\.(.*\.)?_[a-z]"),
    (PUBLIC, ""),
)
CATEGORIES = tuple(name for name, _ in RULES)


class _Module:
    """One module of tests, by its definitions."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.functions: dict[str, ast.AST] = {}
        self.classes: dict[str, ast.ClassDef] = {}
        self.imports: dict[str, str] = {}
        for node in ast.parse(_source(name)).body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                self.functions[node.name] = node
            elif isinstance(node, ast.ClassDef):
                self.classes[node.name] = node
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    self.imports[alias.asname or alias.name.split(".")[0]] = (
                        alias.name if alias.asname else alias.name.split(".")[0]
                    )
            elif isinstance(node, ast.ImportFrom):
                self.imports.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})

    def method(self, class_name: str, name: str) -> ast.AST | None:
        """Finds a method in a class or in its bases in this module."""
        defined = self.classes.get(class_name)
        if defined is None:
            return None
        for node in defined.body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name == name:
                return node
        bases = (base.id for base in defined.bases if isinstance(base, ast.Name))
        return next((found for base in bases if (found := self.method(base, name)) is not None), None)


def _source(module: str) -> str:
    # Found without importing it: importing torch takes seconds.
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    (folder,) = spec.submodule_search_locations
    return Path(folder, *module.split(".")[1:]).with_suffix(".py").read_text()


@cache
def _module(name: str) -> _Module:
    return _Module(name)


def _dotted(node: ast.expr) -> list[str]:
    """The parts of a dotted name; what is not a name at its root is "?"."""
    if isinstance(node, ast.Attribute):
        return [*_dotted(node.value), node.attr]
    return [node.id] if isinstance(node, ast.Name) else ["?"]


class _Walk:
    """Gathers the references of one test."""

    def __init__(self, module: str, class_name: str) -> None:
        self._class = class_name
        self._seen: set[int] = set()
        self.found: set[str] = set()
        self._start = _module(module)

    def test(self, name: str) -> set[str]:
        method = self._start.method(self._class, name)
        if isinstance(method, ast.FunctionDef):
            # Without the decorators: dist_init makes the same private calls for every test.
            for statement in method.body:
                self._visit(self._start, statement)
        return self.found

    def _visit(self, module: _Module, root: ast.AST) -> None:
        if id(root) in self._seen:
            return
        self._seen.add(id(root))
        inner: set[int] = set()
        for node in ast.walk(root):
            if not isinstance(node, (ast.Attribute, ast.Name)):
                continue
            if isinstance(node, ast.Attribute):
                inner.add(id(node.value))
            # The parts of a dotted name are no references of their own.
            if id(node) not in inner:
                self._reference(module, _dotted(node))

    def _reference(self, module: _Module, parts: list[str]) -> None:
        first, rest = parts[0], parts[1:]
        own = module.method(self._class if first in ("self", "cls") else first, rest[0]) if rest else None
        if own is not None:
            self._visit(module, own)
        elif first in module.functions:
            self._visit(module, module.functions[first])
        elif first in module.classes:
            # Not all of a test class for one attribute of it.
            if not rest:
                self._visit(module, module.classes[first])
        elif first in module.imports:
            self._imported([*module.imports[first].split("."), *rest])
        elif rest:
            self.found.add("?." + ".".join(rest))

    def _imported(self, parts: list[str]) -> None:
        name = ".".join(parts)
        if not name.startswith(f"{_TESTING}.dist_utils"):
            self.found.add(name)
            return
        helpers = _module(f"{_TESTING}.dist_utils")
        for helper in parts:
            if helper in helpers.functions:
                self._visit(helpers, helpers.functions[helper])


def references(module: str, class_name: str, test: str) -> set[str]:
    """Returns the dotted names that a test refers to, through its helpers."""
    return _Walk(module, class_name).test(test)


def category(module: str, class_name: str, test: str) -> str:
    """Returns the category of a test."""
    found = references(module, class_name, test)
    if ".rpc.jit." in module:
        return TORCHSCRIPT
    for name, pattern in RULES[:-1]:
        if any(re.match(pattern, reference) for reference in found):
            return name
    return PUBLIC
