"""Text for messages: always valid Unicode, never too long, and had from any object without raising."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

MAX_REPR = 10_000

# Read as C has them: a metaclass or a class may say something else, or raise.
_MODULE: Any = type.__dict__["__module__"]
_QUALNAME: Any = type.__dict__["__qualname__"]


def attempt(default: T, function: Callable[..., T], *args: Any) -> T:
    """Calls what may run a stranger's code; `default` if it raises, whatever it raises."""
    try:
        return function(*args)
    except BaseException:  # a __str__ may raise SystemExit, too
        return default


def clean(text: str) -> str:
    """Makes a text fit for protobuf: a plain str whose lone surrogates are escaped."""
    text = str.__str__(text)
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()
    return text


def cut(text: str, limit: int) -> str:
    """Keeps the first `limit` characters and says how many followed."""
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text) - limit} more characters)"


def fit(text: str, size: int) -> str:
    """Cuts a text so that its UTF-8 takes at most `size` bytes, saying how many characters followed if that fits."""
    raw = text.encode()
    if len(raw) <= size:
        return text
    room = size - len(f"… ({len(text)} more characters)".encode())
    if room < 0:
        return raw[: max(size, 0)].decode(errors="ignore")
    return cut(text, len(raw[:room].decode(errors="ignore")))


def type_name(cls: type) -> tuple[str, str]:
    """Tells a class' module and qualified name, without running code of its metaclass."""
    # A class may set __module__ to anything, or delete it.
    module = attempt("", _MODULE.__get__, cls)
    return clean(module) if issubclass(type(module), str) else "", clean(_QUALNAME.__get__(cls))


def safe_repr(obj: object, limit: int = MAX_REPR) -> str:
    """Gives repr(obj), cut; what can't be had so is named."""
    return attempt(f"<unprintable {type_name(type(obj))[1]} object>", lambda: clean(cut(repr(obj), limit)))


def safe_str(exc: BaseException) -> str:
    """Gives str(exc), or says why there is none."""
    try:
        return clean(str(exc))
    except BaseException as error:
        raised, why = type_name(type(error))[1], attempt("", str, error)
    return f"<{type_name(type(exc))[1]}: str() raised {raised}{': ' if why else ''}{clean(cut(why, 200))}>"
