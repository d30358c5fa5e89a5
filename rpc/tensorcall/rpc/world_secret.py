"""The secret of a world.

Only who has the world's secret may join it, and its members take pickles, which run whatever they like, from nobody
else. Where it comes from in an elastic world:

- TENSORCALL_RPC_SECRET of the environment, if it is set, wherever the workers meet.
- Else, where they meet on a loopback address, which only processes of this machine reach: it is derived from a key in a
  file that only this user can read. So it is the same for all processes of the user, whoever comes first, and outlives
  each of them; other users of the machine are strangers.
- Else, where they meet in a file: it lies in that file, which only this user can read.
- Anywhere else it must be configured: whatever is handed out over a network is handed out to everybody.

In a world with ranks, whose workers meet in a store of torch's, it is the same but for the last: there it goes through
the store, as everything else does that its workers agree on, and a warning says so.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets
import tempfile
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_log = logging.getLogger(__name__)

SECRET = "TENSORCALL_RPC_SECRET"
ADVICE = (
    f"set {SECRET} to the same for all its workers (on loopback addresses it need not be set if all are processes of "
    "one user)"
)
"""What to do where workers of one world have different secrets."""

DIFFERENT = f"the workers of this world have different secrets: {ADVICE}"
"""What to say then in a world with ranks."""

_FROM_ENVIRONMENT = f"{SECRET} of the environment"
_FROM_USER = "the key of this user on this machine"
_FROM_STORE = "the store of the rendezvous"


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


def of_ranks(store: Any, init_method: str) -> str:
    """Returns the secret of a world with ranks.

    Args:
        store: of the rendezvous; its keys must be this world's own.
        init_method: where the workers met to share it: tcp://, env:// or file://.

    Raises:
        RuntimeError: others of this world have another one; or there is nowhere to keep it.
    """
    given = configured()
    mine = _FROM_ENVIRONMENT if given else _FROM_USER if _is_loopback(init_method) else _FROM_STORE
    first = agreed(store, "secret_from", mine)
    if first != mine:
        raise RuntimeError(
            f"the workers of this world have different secrets: this one takes it from {mine}, another one from "
            f"{first}: {ADVICE}"
        )
    if given:
        return given
    if mine == _FROM_USER:
        # The number makes it this world's own; it helps nobody who has not got the key.
        secret = derived(f"ranks/{agreed(store, 'secret_number', secrets.token_hex(16))}")
        proof = hmac.new(secret.encode(), b"proof", hashlib.sha256).hexdigest()
        if agreed(store, "secret_proof", proof) != proof:
            raise RuntimeError(DIFFERENT)
        return secret
    private = make_private(init_method, create=False)
    fresh = secrets.token_urlsafe(32)
    secret = agreed(store, "secret", fresh)
    if secret == fresh and not private:
        _log.warning(
            "the world's secret lies in the store of the rendezvous at %s: whoever reaches that can read it, and run "
            "what they like on all workers. To avoid it, set %s to the same secret for all workers, for example to "
            "what `openssl rand -hex 32` prints",
            init_method or "an unknown place",
            SECRET,
        )
    return secret


def make_private(init_method: str, *, create: bool = True) -> bool:
    """Takes a file in which workers meet from everybody but this user; does nothing where a secret is configured.

    Args:
        init_method: a URL; what is no file:// is left alone.
        create: make the file if it is not there: torch would make it for all to read.

    Returns:
        Whether there is such a file and nobody else can open it.
    """
    url = urlsplit(init_method)
    if url.scheme != "file" or not url.path or configured():
        return False
    try:
        handle = os.open(url.path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o600)
    except OSError:
        return False  # the store says better what is wrong
    try:
        # Who owns it can always have it back; and locked out of it those would be who have lent it.
        if os.fstat(handle).st_uid != os.getuid():
            return False
        os.fchmod(handle, 0o600)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def agreed(store: Any, key: str, mine: str) -> str:
    """Returns the value of a key of a store: this one unless somebody else was first."""
    return bytes(store.compare_set(key, "", mine)).decode()


def _is_loopback(init_method: str) -> bool:
    """Whether a URL names a loopback address."""
    url = urlsplit(init_method)
    host = os.environ.get("MASTER_ADDR", "") if url.scheme == "env" else url.hostname or ""
    if url.scheme not in ("env", "tcp"):
        return False
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        # A name is not looked up: that of a machine may be loopback there, and something else on all others.
        return False


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
