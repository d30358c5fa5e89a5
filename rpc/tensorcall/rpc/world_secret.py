"""The secret of an elastic world.

Only who has the world's secret may join it, and its members take pickles, which run whatever they like, from nobody
else. Where it comes from:

- TENSORCALL_RPC_SECRET of the environment, if it is set, wherever the workers meet.
- Else, where they meet on a loopback address, which only processes of this machine reach: it is derived from a key in a
  file that only this user can read. So it is the same for all processes of the user, whoever comes first, and outlives
  each of them; other users of the machine are strangers.
- Else, where they meet in a file: it lies in that file, which only this user can read.
- Anywhere else it must be configured: whatever is handed out over a network is handed out to everybody.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import tempfile
from pathlib import Path

SECRET = "TENSORCALL_RPC_SECRET"


def configured() -> str:
    """Returns the secret that the environment holds; empty if it holds none.

    Raises:
        RuntimeError: it can't be one.
    """
    secret = os.environ.get(SECRET, "")
    if any(not 32 < ord(character) < 127 for character in secret):
        raise RuntimeError(f"{SECRET} must be of visible ASCII characters: it travels in a header")
    return secret


def derived(place: str) -> str:
    """Returns the secret that all processes of this user on this machine have for a place.

    Raises:
        RuntimeError: there is nowhere to keep it.
    """
    return hmac.new(_user_key(), place.encode(), hashlib.sha256).hexdigest()


def _user_key() -> bytes:
    """Returns the key that all processes of this user on this machine share; the first one makes it."""
    folders = [Path("~/.cache/tensorcall").expanduser(), Path(tempfile.gettempdir()) / f"tensorcall-{os.getuid()}"]
    trouble = []
    for folder in folders:
        try:
            return _key_in(folder)
        except (OSError, RuntimeError) as error:
            trouble.append(f"{folder}: {error}")
    raise RuntimeError(
        f"there is no place for a secret that only this user can read ({'; '.join(trouble)}): set {SECRET} to the same "
        "secret for all workers"
    )


def _key_in(folder: Path) -> bytes:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_own(folder.lstat(), 0o022)
    path = folder / "rpc.key"
    if not path.exists():
        # Written first and named then, so that nobody reads half of it.
        handle, name = tempfile.mkstemp(dir=folder)
        try:
            with open(handle, "wb") as file:
                file.write(secrets.token_bytes(32))
            os.link(name, path)
        except FileExistsError:
            pass  # another process was faster
        finally:
            os.unlink(name)
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        _check_own(os.fstat(file.fileno()), 0o077)
        key = file.read()
    if len(key) < 32:
        raise RuntimeError(f"{path} holds no key: remove it")
    return key


def _check_own(status: os.stat_result, forbidden: int) -> None:
    if status.st_uid != os.getuid() or status.st_mode & forbidden:
        raise RuntimeError("others may read or change it")
