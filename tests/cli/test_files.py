from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from tensorcall.cli import files


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    np.save(folder / "a.npy", np.arange(3, dtype=np.float32))
    np.savez(folder / "b.npz", x=np.ones(2), y=np.zeros(1))
    safetensors.numpy.save_file({"w": np.ones(2), "v": np.zeros(1)}, folder / "c.safetensors")
    torch.save({"t": torch.ones(2), "n": 5}, folder / "d.pt")
    torch.save(torch.ones(2), folder / "e:f.pt")
    np.save(folder / "pickled.npy", np.array([object()]), allow_pickle=True)
    torch.save(Path("x"), folder / "pickled.pt")
    for name in ("broken.npy", "broken.npz", "broken.pt", "broken.safetensors"):
        (folder / name).write_bytes(b"none of it")
    (folder / "text.txt").write_text("text")
    return folder


@pytest.mark.parametrize(
    ("name", "kind", "values"),
    [
        ("a.npy", np.ndarray, [0, 1, 2]),
        ("b.npz:x", np.ndarray, [1, 1]),
        ("c.safetensors:v", torch.Tensor, [0]),
        ("d.pt:t", torch.Tensor, [1, 1]),
        ("e:f.pt", torch.Tensor, [1, 1]),
    ],
)
def test_arrays(folder: Path, name: str, kind: type, values: list[float]) -> None:
    loaded = files.load(str(folder / name))
    assert type(loaded) is kind
    assert loaded.tolist() == values


def test_dicts(folder: Path) -> None:
    assert sorted(files.load(str(folder / "b.npz"))) == ["x", "y"]
    assert sorted(files.load(str(folder / "c.safetensors"))) == ["v", "w"]
    assert files.load(str(folder / "d.pt"))["n"] == 5


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nosuch.npy", "there is no file"),
        ("", "must end in .npy, .npz, .safetensors or .pt"),
        ("text.txt", "must end in .npy, .npz, .safetensors or .pt"),
        ("b.npz:nosuch", "holds no 'nosuch'; it holds: x, y"),
        ("a.npy:x", "holds no 'x'"),
        ("pickled.npy", "can't be loaded"),
        ("pickled.pt", "can't be loaded"),
        ("broken.npy", "can't be loaded"),
        ("broken.npz", "can't be loaded"),
        ("broken.safetensors", "can't be loaded"),
        ("broken.pt", "can't be loaded"),
    ],
)
def test_what_can_not_be_loaded(folder: Path, name: str, words: str) -> None:
    with pytest.raises(click.BadParameter) as raised:
        files.load(str(folder / name))
    assert words in raised.value.message
    assert "\n" not in raised.value.message


@pytest.mark.parametrize("suffix", ["npy", "pt", "safetensors"])
@pytest.mark.parametrize(
    "value", [torch.arange(3.0), torch.ones(2, requires_grad=True), torch.eye(3).t(), np.arange(3.0), np.ones((2, 3)).T]
)
def test_saved_arrays_can_be_loaded(tmp_path: Path, value: Any, suffix: str) -> None:
    path = str(tmp_path / f"result.{suffix}")
    files.check_target(path)
    files.save(value, path)
    loaded = files.load(f"{path}:result" if suffix == "safetensors" else path)
    assert loaded.tolist() == value.tolist()
    assert str(loaded.dtype).removeprefix("torch.") == str(value.dtype).removeprefix("torch.")


def test_a_dict_of_tensors(tmp_path: Path) -> None:
    path = str(tmp_path / "model.safetensors")
    files.save({"a": torch.ones(2, dtype=torch.bfloat16), "b": np.zeros(1)}, path)
    assert sorted(safetensors.torch.load_file(path)) == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("half.npy", torch.ones(2, dtype=torch.bfloat16), "use .pt"),
        ("sparse.npy", torch.eye(2).to_sparse(), "use .pt"),
        ("sparse.safetensors", torch.eye(2).to_sparse(), "use .pt"),
        ("text.npy", "text", "the result is a str"),
        ("list.pt", [torch.ones(1)], "the result is a list"),
        ("mixed.safetensors", {"a": torch.ones(1), "b": 1}, "the result is a dict"),
    ],
)
def test_what_can_not_be_saved(tmp_path: Path, name: str, value: object, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        files.save(value, str(tmp_path / name))
    assert not list(tmp_path.iterdir())
