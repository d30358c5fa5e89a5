"""What may be done with a value that a caller has a reference to."""

from __future__ import annotations

import functools
import sys
import threading
from weakref import WeakKeyDictionary

from tensorcall.server import signatures
from tensorcall.server.expose import Exposed, Registry
from tensorcall.server.owned import Owned
from tensorcall.wire.errors import NotExposed
from tensorcall.wire.registry import object_codec_for

_CALL = "__call__"


class Methods:
    """Finds the methods of values for callers.

    A method may be called that is public, or `__call__`, and that was written in a class that is exposed or registered:
    inherited from any other class it stays closed, as do attributes of the instance. `__call__` of a torch module may
    be called as well. A caller that may send pickles may call anything, as it could anyway.
    """

    def __init__(self, registry: Registry) -> None:
        """Begins with what is exposed in this registry."""
        self._registry = registry
        self._found: WeakKeyDictionary[type, dict[str, Exposed]] = WeakKeyDictionary()
        self._lock = threading.RLock()
        self._fetch = Exposed("fetch", _nothing)

    def fetching(self, owned: Owned) -> Exposed:
        """Returns what gives the value itself. It must be there."""
        return self._fetch.bound(functools.partial(owned.wait, 0))

    def check_name(self, name: str) -> None:
        """Returns if a method of that name may be callable at all.

        Raises:
            NotExposed: it is private.
        """
        if not name.isidentifier() or (name.startswith("_") and name != _CALL):
            raise NotExposed(f"{name[:200]!r} is no public method", metadata={"function": name[:200]})

    def find(self, owned: Owned, name: str, *, free: bool = False) -> Exposed:
        """Returns a method of a value that is there.

        Args:
            owned: the value.
            name: the method's name; `check_name` has passed it.
            free: whether the caller may call any method.

        Raises:
            NotExposed: it has none of that name, or none that may be called.
        """
        value = owned.wait(0)
        cls = type(value)
        with self._lock:
            known = self._found.get(cls, {}).get(name)
        if known is None:
            known = self._look_up(cls, name)
            if known is None:
                if free and callable(method := getattr(value, name, None)):
                    return Exposed(f"{cls.__qualname__}.{name}", method)
                raise NotExposed(self._advice(cls, name), metadata={"function": name[:200]})
            with self._lock:
                self._found.setdefault(cls, {})[name] = known
        # What the class has, not the instance: that may have anything from anywhere.
        return known.bound(known.function.__get__(value, cls))

    def _look_up(self, cls: type, name: str) -> Exposed | None:
        definer = next((base for base in cls.__mro__ if name in vars(base)), None)
        if definer is None or not self._is_open(definer, name):
            return None
        descriptor = vars(definer)[name]
        # A property's code would run, and a class as an attribute would give an instance.
        if isinstance(descriptor, (property, type)) or not hasattr(descriptor, "__get__"):
            return None
        if not callable(descriptor) and not isinstance(descriptor, (staticmethod, classmethod)):
            return None
        found = Exposed(f"{cls.__qualname__}.{name}", descriptor)
        # Of staticmethod and classmethod the kind is that of what they wrap.
        found.__dict__["kind"] = signatures.kind(getattr(descriptor, "__func__", descriptor))
        return found

    def _is_open(self, definer: type, name: str) -> bool:
        if name == _CALL:
            nn, jit = getattr(sys.modules.get("torch"), "nn", None), sys.modules.get("torch.jit")
            if definer in (getattr(nn, "Module", None), getattr(jit, "ScriptModule", None)):
                return True
        return self._registry.has_class(definer) or object_codec_for(definer) is not None

    def _advice(self, cls: type, name: str) -> str:
        definer = next((base for base in cls.__mro__ if name in vars(base)), None)
        if definer is None:
            names = [other for other in dir(cls) if not other.startswith("_") and self._look_up(cls, other)]
            some = f"; it has {', '.join(names[:5])}" if names else ""
            return f"a {cls.__qualname__} has no method {name!r}{some}"
        if not self._is_open(definer, name):
            return (
                f"{definer.__qualname__}.{name} is not exposed: decorate the class {definer.__module__}."
                f"{definer.__qualname__} with @expose, or write the method in an exposed class"
            )
        return f"{definer.__qualname__}.{name} is no method"


def _nothing() -> None:
    raise AssertionError("a fetch is bound to a value")
