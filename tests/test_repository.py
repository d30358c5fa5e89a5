"""What holds for the repository as a whole: generated code, version floors, what the wheel holds."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomllib")

ROOT = Path(__file__).resolve().parent.parent
GENERATED = ROOT / "wire" / "tensorcall" / "v1"


def test_generated_code_is_up_to_date() -> None:
    run = subprocess.run(
        [sys.executable, "scripts/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert run.returncode == 0, run.stderr


def floors() -> dict[str, tuple[int, ...]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = {}
    for requirement in project["dependencies"]:
        name, _, version = requirement.partition(">=")
        found[name] = tuple(int(part) for part in version.split("."))
    return found


def test_the_floors_are_those_of_the_generated_code() -> None:
    for module in GENERATED.glob("*_pb2.py"):
        version = re.search(r"# Protobuf Python Version: ([\d.]+)", module.read_text())
        assert version is not None, module
        assert floors()["protobuf"] >= tuple(int(part) for part in version[1].split("."))
    for module in GENERATED.glob("*_pb2_grpc.py"):
        version = re.search(r"GRPC_GENERATED_VERSION = '([\d.]+)'", module.read_text())
        assert version is not None, module
        assert floors()["grpcio"] >= tuple(int(part) for part in version[1].split("."))


@pytest.mark.timeout(200)
def test_the_wheel_holds_every_room(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=190)
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for room in ("wire", "client", "server", "cli"):
        there = {f"tensorcall/{room}/{path.name}" for path in (ROOT / room / "tensorcall" / room).glob("*.py")}
        assert there <= names
        assert f"tensorcall/{room}/py.typed" in names
    assert {f"tensorcall/v1/{path.name}" for path in GENERATED.glob("*.py*")} <= names
    # An implicit namespace: a file here would take it away from what others add.
    assert "tensorcall/__init__.py" not in names


def test_no_file_names_a_place_of_one_machine() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    places = re.compile("|".join(["/" + "root/", "/" + "work/", "/" + "home/[a-z]"]))
    for name in listed:
        path = ROOT / name
        if path.is_file():
            assert not places.search(path.read_text(errors="ignore")), name
