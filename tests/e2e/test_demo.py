"""The demo, as `make demo` runs it."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tensorcall.client import RemoteError, connect

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "examples/digits/digits.py"


def run(*options: str) -> subprocess.CompletedProcess[str]:
    demo = [sys.executable, str(ROOT / "examples/digits/demo.py"), *options]
    return subprocess.run(demo, capture_output=True, text=True, encoding="utf-8", timeout=100)


def accuracy_of(output: str) -> float:
    found = re.search(r"it is right on ([0-9.]+)% of them", output)
    assert found, output
    return float(found[1]) / 100


def png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert data[12:16] == b"IHDR"
    assert data[-8:-4] == b"IEND"
    return struct.unpack(">II", data[16:24])


def line_of(text: str) -> int:
    lines = DIGITS.read_text(encoding="utf-8").splitlines()
    [number] = [number for number, line in enumerate(lines, start=1) if text in line]
    return number


def test_it_learns_in_another_process_and_shows_a_remote_exception(tmp_path: Path) -> None:
    picture = tmp_path / "new" / "confusion.png"
    done = run("--picture", str(picture))
    output = done.stdout
    assert done.returncode == 0, output + done.stderr
    assert done.stderr == ""

    assert accuracy_of(output) >= 0.97
    width, height = png_size(picture)
    assert 600 <= width <= 2000
    assert 600 <= height <= 2000
    assert str(picture) in output

    # Without a terminal there is a line for each epoch, and no bar.
    assert len(re.findall(r"^  epoch +\d+: loss \d+\.\d+, accuracy [\d.]+%$", output, re.MULTILINE)) == 20
    assert "\x1b" not in output
    assert len(output.splitlines()) < 60

    message = "images must have the shape (N, 8, 8), got (450, 4, 8)"
    for caught in ("ValueError", "RemoteError"):
        assert f"except {caught}: catches builtins.ValueError: {message}" in output
    line = line_of('raise ValueError(f"images must have the shape')
    assert f'File "{DIGITS}", line {line}, in _as_batch' in output
    assert output.rstrip().endswith("with exit code 0.")


def test_a_model_of_ones_own_lives_over_there(tmp_path: Path) -> None:
    done = run("--rref", "--picture", str(tmp_path / "confusion.png"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert accuracy_of(done.stdout) >= 0.97
    assert "by a model of its own, which lives over there" in done.stdout
    assert len(re.findall(r"^  epoch +\d+: loss \d+\.\d+, accuracy [\d.]+%$", done.stdout, re.MULTILINE)) == 20


def test_it_fails_if_the_accuracy_is_not_reached(tmp_path: Path) -> None:
    # However good the network is: so one epoch will do.
    done = run("--require-accuracy", "1.01", "--epochs", "1", "--picture", str(tmp_path / "confusion.png"))
    assert done.returncode == 1, done.stdout + done.stderr
    assert accuracy_of(done.stdout) < 1.01
    assert re.search(r"^The accuracy is 0\.\d{4}, below the required 1\.01\.$", done.stderr, re.MULTILINE)
    # It was the accuracy that failed, nothing else.
    assert "with exit code 0." in done.stdout


def test_it_says_so_if_the_server_does_not_start(tmp_path: Path) -> None:
    for name in ("demo.py", "picture.py"):
        (tmp_path / name).write_bytes((DIGITS.parent / name).read_bytes())
    (tmp_path / "digits.py").write_text("import nothing_of_that_name\n")
    picture = tmp_path / "build" / "confusion.png"
    demo = [sys.executable, str(tmp_path / "demo.py"), "--picture", str(picture)]
    done = subprocess.run(demo, capture_output=True, text=True, encoding="utf-8", timeout=100)
    assert done.returncode == 1
    log = picture.with_suffix(".log")
    assert done.stderr.strip().endswith(f"see {log}")
    assert "Traceback" not in done.stderr
    assert "nothing_of_that_name" in log.read_text()


def test_there_is_no_network_before_a_training_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DIGITS.parent)
    import demo

    images, labels = torch.rand(64, 8, 8), torch.arange(64) % 10
    with demo.serve_digits(tmp_path / "log") as address, connect(address, timeout=60.0) as remote:
        with pytest.raises(RuntimeError, match=r"there is no network yet: call digits\.train") as caught:
            remote.call("digits.predict", images)
        assert isinstance(caught.value, RemoteError)
        with remote.stream("digits.train", images, labels, epochs=100_000) as steps:
            first = next(steps)
        assert (first["step"], first["steps"], first["epoch"]) == (1, 200_000, 1)
        with pytest.raises(RuntimeError, match="there is no network yet"):
            remote.call("digits.summary")
        with pytest.raises(ValueError, match=r"64 images need as many labels, got the shape \(63,\)"):
            list(remote.stream("digits.train", images, labels[1:]))
        for step in remote.stream("digits.train", images, labels, epochs=1):
            assert step["steps"] == 2
        predicted = remote.call("digits.predict", images)
        assert predicted.shape == (64,)
        assert predicted.dtype == torch.int64
