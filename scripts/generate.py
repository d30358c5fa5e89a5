"""Generates wire/tensorcall/v1 from protos/, or checks that it is up to date."""

import filecmp
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
TARGET = ROOT / "wire" / "tensorcall" / "v1"


def generate(into: Path) -> None:
    """Writes the generated modules of every .proto file below the folder `into`."""
    files = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    services = [name for name in files if name.endswith("_service.proto")]
    # The plugins that make the stubs are found on PATH, beside the interpreter.
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    protoc = [sys.executable, "-m", "grpc_tools.protoc", "-I", str(PROTOS)]
    messages = [f"--python_out={into}", f"--mypy_out=quiet,readable_stubs:{into}"]
    stubs = [f"--grpc_python_out={into}", f"--mypy_grpc_out=quiet:{into}"]
    subprocess.run([*protoc, *messages, *files], check=True, env=environment)
    subprocess.run([*protoc, *stubs, *services], check=True, env=environment)


def differences(fresh: Path) -> list[str]:
    """Returns the names of the modules that differ between `fresh` and the checked-in code."""
    names = {path.name for folder in (fresh, TARGET) for path in folder.glob("*.py*")}
    _, mismatch, errors = filecmp.cmpfiles(fresh, TARGET, names, shallow=False)
    return sorted(mismatch + errors)


def main() -> int:
    """Generates, or with --check compares and returns 1 on a difference."""
    if "--check" not in sys.argv[1:]:
        TARGET.mkdir(parents=True, exist_ok=True)
        generate(TARGET.parent.parent)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        stale = differences(Path(folder) / "tensorcall" / "v1")
    if stale:
        print(f"generated code is not up to date ({', '.join(stale)}): run `make proto`", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
