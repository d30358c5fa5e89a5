from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from tensorcall.server import logs

log = logging.getLogger("tensorcall.tests")


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    logger = logging.getLogger("tensorcall")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.level, logger.propagate = before


def test_console() -> None:
    stream = io.StringIO()
    logs.configure("info", "console", stream)
    log.info("hello %s", "you", extra={"calls": 3, "peer": "ipv4:127.0.0.1:5"})
    log.debug("not this")
    line = stream.getvalue()
    assert line.count("\n") == 1
    for words in ("[info", "hello you", "calls=3", "peer=ipv4:127.0.0.1:5", "tensorcall.tests"):
        assert words in line
    assert "\x1b" not in line


def test_json() -> None:
    stream = io.StringIO()
    logs.configure("debug", "json", stream)
    log.debug("called", extra={"milliseconds": 0.5, "odd": object(), "text": "日本\n"})
    record = json.loads(stream.getvalue())
    assert (record["event"], record["level"], record["logger"]) == ("called", "debug", "tensorcall.tests")
    assert (record["milliseconds"], record["text"]) == (0.5, "日本\n")
    assert record["odd"].startswith("<object object")
    assert record["timestamp"].endswith("Z")


@pytest.mark.parametrize("format", ["console", "json"])
def test_exceptions_without_local_variables(format: logs.Format) -> None:
    stream = io.StringIO()
    logs.configure("info", format, stream)
    secret = "do not" + " print this"
    try:
        raise ValueError(len(secret))
    except ValueError:
        log.exception("failed")
    text = stream.getvalue()
    assert "Traceback (most recent call last)" in text
    assert f"ValueError: {len(secret)}" in text
    assert "do not print this" not in text
    if format == "json":
        assert "Traceback" in json.loads(text)["exception"]


def test_configured_twice() -> None:
    first, second = io.StringIO(), io.StringIO()
    logs.configure("info", "console", first)
    logs.configure("error", "json", second)
    log.warning("dropped")
    log.error("once")
    assert first.getvalue() == ""
    assert second.getvalue().count("\n") == 1


def test_others_are_left_alone() -> None:
    stream = io.StringIO()
    root = logging.getLogger()
    before = root.handlers[:], root.level
    logs.configure("debug", "console", stream)
    assert (root.handlers, root.level) == before
    logging.getLogger("somebody.else").warning("not ours")
    assert stream.getvalue() == ""


@pytest.mark.parametrize(("level", "format"), [("loud", "json"), ("info", "xml")])
def test_mistakes(level: str, format: logs.Format) -> None:
    with pytest.raises(ValueError, match=r"loud|xml|LOUD"):
        logs.configure(level, format)
