from __future__ import annotations

import math
from typing import Any

import click
import pytest

from tensorcall.cli.arguments import gather, parse, split


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        (" -5", -5),
        ("1e3", 1000.0),
        ("true", True),
        ("True", "True"),
        ("null", None),
        ("", ""),
        ("text", "text"),
        ('"5"', "5"),
        ("'5'", "'5'"),
        ("[1, [2]]", [1, [2]]),
        ('{"a": {"b": null}}', {"a": {"b": None}}),
        ("2024-01-01", "2024-01-01"),
        ("-Infinity", -math.inf),
        ("9" * 30, 10**30 - 1),
        ("[" * 100_000, "[" * 100_000),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_parse(text: str, value: Any) -> None:
    parsed = parse(text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("text", "key", "rest"),
    [
        ("a=1", "a", "1"),
        ("a=", "a", ""),
        ("a=b=c", "a", "b=c"),
        ("größe=1", "größe", "1"),
        ("1=2", None, "1=2"),
        ("./a=b.npy", None, "./a=b.npy"),
        ('"a=b"', None, '"a=b"'),
        ("=x", None, "=x"),
        ("a", None, "a"),
    ],
)
def test_split(text: str, key: str | None, rest: str) -> None:
    assert split(text) == (key, rest)


def test_gather() -> None:
    assert gather(["1", "x=2", "y"], ["z=3"]) == ([1, "y"], {"x": 2, "z": "3"})


@pytest.mark.parametrize(("arguments", "strings"), [(["a=1", "a=2"], []), (["a=1"], ["a=2"]), ([], ["text"])])
def test_gather_refuses(arguments: list[str], strings: list[str]) -> None:
    with pytest.raises(click.UsageError):
        gather(arguments, strings)
