"""Trains a network on real handwritten digits in another process, and asks it.

Run `make demo`, or `python examples/digits/demo.py --help`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from picture import draw
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from tensorcall.client import Remote, RemoteError, connect

HERE = Path(__file__).resolve().parent
BUILD = HERE.parents[1] / "build"


def main() -> int:
    """Runs the demo and returns the exit code: 0 if the network is good enough, else 1."""
    options = parse()
    picture = options.picture.resolve()
    picture.parent.mkdir(parents=True, exist_ok=True)
    images, test_images, labels, test_labels = load()
    with serve_digits(log=picture.with_suffix(".log")) as address, connect(address) as remote:
        print(f"Another process serves {address}:")
        for function in remote.functions():
            print(f"  {function}")

        print(f"\nIt trains on {len(images)} images …")
        if options.rref:
            predicted = train_own(remote, images, labels, options.epochs, test_images)
        else:
            train(remote, images, labels, options.epochs)
            print(
                "… a network of {parameters:,} parameters, in process {process}.".format(
                    **remote.call("digits.summary")
                )
            )
            predicted = remote.call("digits.predict", test_images)
        accuracy = (predicted == test_labels).double().mean().item()
        print(f"\nAsked for {len(test_images)} images that it has never seen, it is right on {accuracy:.2%} of them.")
        draw(picture, test_images.numpy(), test_labels.numpy(), predicted.numpy())
        print(f"Which ones it takes for which: {picture}")

        call_wrongly(remote, test_images)
    print("\nThe server has drained and ended, with exit code 0.", flush=True)
    if accuracy < options.require_accuracy:
        print(f"The accuracy is {accuracy:.4f}, below the required {options.require_accuracy}.", file=sys.stderr)
        return 1
    return 0


def load() -> list[Tensor]:
    """Returns the digits that scikit-learn ships as [images, test images, labels, test labels].

    A quarter of each digit's images is for the test; the split is always the same.
    """
    digits = load_digits()
    images = (digits.images / 16).astype("float32")  # 0 (white) to 1 (black)
    parts = train_test_split(images, digits.target, test_size=0.25, stratify=digits.target, random_state=0)
    return [torch.from_numpy(part) for part in parts]


def train(remote: Remote, images: Tensor, labels: Tensor, epochs: int) -> None:
    """Has the server train, and shows how far it is: the stream brings every step as it is made."""
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  accuracy {task.fields[accuracy]:.1%}"),
        TimeElapsedColumn(),
    )
    terminal = sys.stdout.isatty()
    with Progress(*columns, disable=not terminal) as progress:
        bar = progress.add_task("training", loss=float("nan"), accuracy=0.0)
        for now in remote.stream("digits.train", images, labels, epochs=epochs):
            progress.update(bar, completed=now["step"], total=now["steps"], loss=now["loss"], accuracy=now["accuracy"])
            # In a file or a pipe there are no bars: a line for each epoch.
            if not terminal and now["step"] % (now["steps"] // epochs) == 0:
                print("  epoch {epoch:2}: loss {loss:.3f}, accuracy {accuracy:.1%}".format(**now), flush=True)


def train_own(remote: Remote, images: Tensor, labels: Tensor, epochs: int, test_images: Tensor) -> Tensor:
    """Has the server make a model that only this program has, trains it, and returns what it predicts.

    The model never leaves the server: here is only a reference to it, and when that goes, so does the model.
    """
    model = remote.remote("digits.Model", images, labels, epochs=epochs)
    print(f"… by a model of its own, which lives over there: {model}")
    for _ in range(epochs):
        now = model.rpc_sync().train_epoch()
        print("  epoch {epoch:2}: loss {loss:.3f}, accuracy {accuracy:.1%}".format(**now), flush=True)
    return model.rpc_sync().predict(test_images)


def call_wrongly(remote: Remote, images: Tensor) -> None:
    """Shows what becomes of an exception that the function raises over there."""
    print("\nA wrong call, with half of each image:")
    for wanted in (ValueError, RemoteError):
        try:
            remote.call("digits.predict", images[:, :4])
        except wanted as error:
            print(f"  except {wanted.__name__}: catches {error.remote_type}: {error}")
            for note in getattr(error, "__notes__", ()):
                print(f"    {note}")
            remote_traceback = error.remote_traceback
    print("  What happened over there:")
    print("".join(f"    {line}\n" for line in remote_traceback.splitlines()), end="")


@contextmanager
def serve_digits(log: Path) -> Iterator[str]:
    """Serves digits.py from a process of its own, yields the address, and in the end has it drain and exit.

    Raises:
        SystemExit: it did not start, or did not end well.
    """
    with tempfile.TemporaryDirectory() as folder, log.open("w") as lines:
        port_file = Path(folder, "port")
        command = [sys.executable, "-m", "tensorcall.cli", "serve", "digits"]
        command += ["--bind", "127.0.0.1:0", "--port-file", str(port_file)]
        server = subprocess.Popen(command, cwd=HERE, stdout=lines, stderr=lines)
        try:
            give_up = time.monotonic() + 60
            while not port_file.exists():
                if server.poll() is not None:
                    raise SystemExit(f"the server ended with {server.returncode} at its start; see {log}")
                if time.monotonic() > give_up:
                    raise SystemExit(f"the server does not listen after a minute; see {log}")
                time.sleep(0.02)
            yield f"127.0.0.1:{port_file.read_text().strip()}"
            server.terminate()
            if server.wait(timeout=60) != 0:
                raise SystemExit(f"the server ended with {server.returncode}; see {log}")
        finally:
            server.kill()  # does nothing if it has ended
            server.wait()


def parse() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="Trains a network on handwritten digits in another process.")
    parser.add_argument("--epochs", type=int, default=20, help="how often it sees every image (%(default)s)")
    parser.add_argument("--require-accuracy", type=float, default=0.97, help="exit with 1 below this (%(default)s)")
    parser.add_argument("--rref", action="store_true", help="train a model of one's own, held by a reference")
    parser.add_argument("--picture", type=Path, default=BUILD / "digits-confusion.png", help="where to draw it to")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
