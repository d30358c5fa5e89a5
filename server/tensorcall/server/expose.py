"""Which functions may be called, and under which names."""

from __future__ import annotations

import difflib
import functools
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePath
from types import ModuleType
from typing import Any, TypeVar, overload

from tensorcall.server import signatures
from tensorcall.v1 import handler_service_pb2
from tensorcall.wire.errors import NotExposed

F = TypeVar("F", bound=Callable[..., Any])


class Pace:
    """How long a function takes, as far as that decides where it runs.

    One that was quick several times in a row runs on the thread that reads its session; see `watch`.
    """

    __slots__ = ("_streak",)

    _QUICK_SECONDS = 0.0005
    _STREAK = 8
    # After a slow run it has to be quick this many times more.
    _PENALTY = 64

    def __init__(self) -> None:
        self._streak = 0

    @property
    def quick(self) -> bool:
        """Whether it can be expected to be quick."""
        return self._streak >= self._STREAK

    def ran(self, seconds: float) -> None:
        """Takes note of one run. Races between threads lose a count, which does no harm."""
        if seconds >= self._QUICK_SECONDS:
            self.slow()
        elif self._streak < self._STREAK:
            self._streak += 1

    def slow(self) -> None:
        """Takes note of a slow run."""
        self._streak = -self._PENALTY


@dataclass(frozen=True)
class Exposed:
    """One function (or class) that may be called."""

    name: str
    function: Callable[..., Any]
    pace: Pace = field(default_factory=Pace, compare=False, repr=False)

    @cached_property
    def kind(self) -> int:
        """A FunctionKind."""
        return signatures.kind(self.function)

    @cached_property
    def info(self) -> handler_service_pb2.FunctionInfo:
        """What ListFunctions tells of it."""
        return signatures.describe(self.name, self.function)

    def bound(self, function: Callable[..., Any]) -> Exposed:
        """Returns the same for one object: what is known of a method holds for the bound one, too."""
        made = Exposed(self.name, function, self.pace)
        made.__dict__["kind"] = self.kind
        return made

    @property
    def place(self) -> str:
        """Where it was written, for messages."""
        code = getattr(self.function, "__code__", None)
        where = f"{code.co_filename}:{code.co_firstlineno}" if code else "?"
        return f"{self.function.__module__}.{getattr(self.function, '__qualname__', '?')} ({where})"


# Everything that was decorated in this process, in order. A mark on the function itself would be inherited by
# subclasses, copied by functools.wraps and refused by builtins and scripted functions.
_decorated: list[Exposed] = []


@overload
def expose(function: F, /) -> F: ...
@overload
def expose(*, name: str | None = None) -> Callable[[F], F]: ...


def expose(function: F | None = None, /, *, name: str | None = None) -> F | Callable[[F], F]:
    """Allows callers to run a function: a plain one, a coroutine or a generator function, or a class.

    Use as `@expose` or `@expose(name="team.add")`. The name is `module.function` with the module's last part where
    none is given. The function itself stays as it is. Of a class, callers may make instances and then call its public
    methods on a reference to one.

    Raises:
        TypeError: what is decorated can't be called, or the name is no name.
    """
    if function is None:
        return lambda decorated: _expose(decorated, name)
    return _expose(function, name)


def _expose(function: F, name: str | None) -> F:
    _decorated.append(named(function, name))
    return function


def named(function: Callable[..., Any], name: str | None = None) -> Exposed:
    """Gives a function the name that it is exposed under.

    Raises:
        TypeError: it can't be called, or the name is no name.
    """
    if not callable(function):
        raise TypeError(f"only functions and classes can be exposed, not a {type(function).__name__}")
    if name is None:
        name = default_name(function)
    if not all(part.isidentifier() for part in name.split(".")):
        raise TypeError(f"{name!r} is no name for a function: give one with @expose(name=…), identifiers with dots")
    return Exposed(name, function)


def default_name(function: Callable[..., Any]) -> str:
    """Returns `module.function`, with the last part of the module."""
    # A scripted function belongs to torch.jit by its class; it knows its origin as "__torch__.module.function".
    scripted = getattr(function, "qualified_name", "")
    if isinstance(scripted, str) and scripted.startswith("__torch__."):
        return ".".join(scripted.split(".")[-2:])
    while isinstance(function, functools.partial):
        function = function.func
    module = getattr(function, "__module__", None) or "builtins"
    if module == "__main__":
        # A script that serves itself is known by its file.
        module = PurePath(getattr(sys.modules["__main__"], "__file__", None) or "main").stem
    own = getattr(function, "__name__", None) or getattr(function, "name", type(function).__name__)
    return f"{module.rpartition('.')[2]}.{own}"


class Registry:
    """The functions of one server."""

    def __init__(self, functions: Iterable[Exposed] = ()) -> None:
        """Begins with these functions.

        Raises:
            ValueError: two of them have one name.
        """
        self._functions: dict[str, Exposed] = {}
        self._classes: set[type] = set()
        for exposed in functions:
            self.add(exposed)

    @classmethod
    def of_modules(cls, modules: Iterable[ModuleType]) -> Registry:
        """Takes what is exposed in these modules: defined there with @expose, or imported there by name.

        What other modules expose that are only used by them stays closed.

        Raises:
            ValueError: two functions have one name, or a module exposes nothing.
        """
        registry = cls()
        for module in modules:
            inside = {id(value) for value in vars(module).values()}
            found = [
                exposed
                for exposed in _decorated
                if id(exposed.function) in inside or getattr(exposed.function, "__module__", None) == module.__name__
            ]
            if not found:
                raise ValueError(f"{module.__name__} exposes nothing: decorate a function with @expose")
            for exposed in found:
                registry.add(exposed)
        return registry

    @classmethod
    def of_process(cls) -> Registry:
        """Takes everything that is exposed in this process."""
        return cls(_decorated)

    def add(self, exposed: Exposed) -> None:
        """Adds a function.

        Raises:
            ValueError: another one has its name.
        """
        other = self._functions.setdefault(exposed.name, exposed)
        if other.function is not exposed.function:
            raise ValueError(
                f"two functions are exposed as {exposed.name!r}: {other.place} and {exposed.place}; "
                f'give one of them another name with @expose(name="…")'
            )

        if isinstance(exposed.function, type):
            self._classes.add(exposed.function)

    def has_class(self, cls: type) -> bool:
        """Whether this very class is exposed."""
        return cls in self._classes

    def __len__(self) -> int:
        return len(self._functions)

    def get(self, name: str) -> Exposed:
        """Returns the function of that name.

        Raises:
            NotExposed: there is none; the message has the nearest names.
        """
        exposed = self._functions.get(name)
        if exposed is None:
            raise NotExposed(self._advice(name), metadata={"function": name[:200]})
        return exposed

    # Cached: a caller may ask for the same thousands of times, and comparing takes time.
    @functools.lru_cache(maxsize=1024)  # noqa: B019 (a registry lives as long as its server)
    def _advice(self, name: str) -> str:
        # A caller may send a name of any length; comparing takes time by length.
        short = name[:200]
        near = difflib.get_close_matches(short, self._functions, n=3, cutoff=0.5)
        last = short.rpartition(".")[2]
        near += [other for other in self._functions if other.rpartition(".")[2] == last and other not in near][:3]
        if near:
            return f"no function {short!r} is exposed; did you mean {' or '.join(near)}?"
        if not self._functions:
            return f"no function {short!r} is exposed; nothing is"
        some = ", ".join(sorted(self._functions)[:5])
        return f"no function {short!r} is exposed; {len(self._functions)} others are: {some}, …"

    def list(self, prefix: str = "") -> list[Exposed]:
        """Returns the functions whose names begin so, sorted by name."""
        return [self._functions[name] for name in sorted(self._functions) if name.startswith(prefix)]
