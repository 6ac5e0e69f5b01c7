"""Where keys are: the environment, the keyring of the operating system, or a file that is encrypted.

They are looked up by name when a provider is built, and stand nowhere else: not in the configuration, which holds their
names only, nor in the database. No message of this module holds one.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import os
import re
import secrets
import stat
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from filelock import FileLock, Timeout

from ksi_mcp.errors import Invalid, NotFound, StoreError

if TYPE_CHECKING:
    from cryptography.fernet import Fernet
    from keyring.backend import KeyringBackend

logger = logging.getLogger(__name__)

SERVICE: Final = "ksi_mcp"
"""Under this name the keyring holds them."""
FILE: Final = "credentials.enc"
FILE_KEY: Final = "KSI_CREDENTIALS_KEY"
"""The variable that the file is encrypted with."""
MIN_FILE_KEY_CHARS: Final = 16
MAX_VALUE_CHARS: Final = 10_000
PATIENCE_S: Final = 10.0
LOCK_S: Final = 60.0
"""How long a change waits for another process's: each may take a keyring that asks its user."""

Source = Literal["environment", "keyring", "file"]

_NAME: Final = re.compile(r"[A-Z][A-Z0-9_]{0,99}")
_LOCK: Final = ".credentials.lock"
_PRIVATE: Final = 0o600
_INDEX: Final = "names"  # no credential's name: a keyring cannot be asked which ones it has
_MAGIC: Final = b"ksi-credentials-1"
_MAX_BYTES: Final = 1_000_000
_SALT_BYTES: Final = 16
_SCRYPT: Final = {"n": 2**15, "r": 8, "p": 1}
_TURNED_OFF: Final = ("keyring.backends.fail.Keyring", "keyring.backends.null.Keyring")
_REAL: Final = 1
"""The least priority of a keyring that keeps secrets; the others refuse, forget, or write plain text."""


def check_credential_name(name: str) -> str:
    """A name as variables of the environment have it.

    Raises:
        Invalid: it is none. It is not repeated: a key may have been put in its place.
    """
    if not _NAME.fullmatch(name):
        raise Invalid(
            "that is no name of a credential", hint="capitals, digits and _, such as ANTHROPIC_API_KEY; not the key"
        )
    return name


def check_keepable(name: str) -> None:
    """A name under which a key can be kept.

    Raises:
        Invalid: it is none, or that of the key of the file.
    """
    if check_credential_name(name) == FILE_KEY:
        raise Invalid(
            f"{FILE_KEY} is what the file of credentials is encrypted with: it cannot be kept among them",
            hint="set it in the environment where the server starts",
        )


def _make_private(handle: int) -> None:
    """Take from others what only its owner may read: who has it can try passphrases as long as they like."""
    try:
        os.fchmod(handle, _PRIVATE)
    except OSError as failure:
        logger.warning("%s can be read by others, and its mode cannot be changed (%s)", FILE, failure.strerror)
    else:
        logger.warning(
            "%s could be read by others; its mode is 0600 now. Consider new keys and a new %s", FILE, FILE_KEY
        )


class Credentials:
    """Keys by name. `environ` comes first, then the keyring, then `credentials.enc` in the data folder.

    Blocking: a keyring may take a while, and the file's key is made expensive on purpose (about 0.1 s, once).
    """

    def __init__(self, environ: Mapping[str, str], home_root: Path | None) -> None:
        self._environ = environ
        self._path = None if home_root is None else home_root / FILE
        self._derived: tuple[bytes, bytes] | None = None
        self._opened: tuple[int, int, dict[str, str]] | None = None

    def __repr__(self) -> str:
        return "Credentials()"

    def get(self, name: str) -> str | None:
        """The key of that name; None if it is nowhere, or what holds it cannot be read."""
        found = self._find(name)
        return None if found is None else found[1]

    def source(self, name: str) -> Source | None:
        """Where the key of that name is."""
        found = self._find(name)
        return None if found is None else found[0]

    async def find(self, name: str) -> tuple[Source, str] | None:
        """Where the key of that name is, and the key. What is not in the environment is looked up in a thread.

        A keyring that asks its user for a password first is not waited for longer than `PATIENCE_S`.
        """
        if self._environ.get(name, "").strip():
            return self._find(name)
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await asyncio.to_thread(self._find, name)
        except TimeoutError:
            logger.warning("the keyring did not answer within %g s", PATIENCE_S)
            return None

    def problem(self) -> str | None:
        """Why the encrypted file cannot be read; None if there is none, or it can."""
        try:
            self._stored()
        except (Invalid, StoreError) as wrong:
            return wrong.text()
        return None

    def set(self, name: str, value: str) -> Source:
        """Keep a key; where it went.

        Raises:
            Invalid: the name or the key cannot be one, or there is neither a keyring nor a key for the file.
            StoreError: the keyring or the folder cannot be written.
        """
        check_keepable(name)
        value = value.strip()
        if not value or len(value) > MAX_VALUE_CHARS or not value.isprintable():
            raise Invalid(f"what was given for {name} is empty or no key", hint="give the key by itself, on one line")
        ring = self._keyring()
        if ring is not None:
            with self._alone():
                self._keep(ring, name, value)
            return "keyring"
        if self._path is None or not self._environ.get(FILE_KEY):
            raise Invalid(
                "there is no place for a credential here: the system has no keyring",
                hint=f"set {name} in the environment of the server, or {FILE_KEY} (then they are kept encrypted in the"
                " data folder)",
            )
        if len(self._environ[FILE_KEY]) < MIN_FILE_KEY_CHARS:
            raise Invalid(
                f"{FILE_KEY} is too short to protect anything",
                hint=f"use {MIN_FILE_KEY_CHARS} characters or more, such as the output of `openssl rand -hex 32`",
            )
        with self._alone():
            self._write({**self._stored(), name: value})
        return "file"

    def remove(self, name: str) -> Source:
        """Forget a key; where it was. One in the environment is not ours to remove.

        Raises:
            NotFound: it is neither in the keyring nor in the file. Invalid, StoreError: as with `set`.
        """
        check_credential_name(name)
        ring = self._keyring()
        kept = ring is not None or (self._path is not None and self._path.exists())
        with self._alone() if kept else contextlib.nullcontext():
            if ring is not None and self._ask(ring, name) is not None:
                self._drop(ring, name)
                return "keyring"
            stored = self._stored()
            if name in stored:
                self._write({other: value for other, value in stored.items() if other != name})
                return "file"
        also = " (it is in the environment)" if self._environ.get(name) else ""
        raise NotFound(f"no credential {name} is kept{also}", hint="`ksi-mcp credentials list` shows which are")

    def kept(self) -> dict[str, Source]:
        """The names of those in the keyring and in the file, and where each is.

        Raises:
            Invalid: the file cannot be read.
        """
        kept: dict[str, Source] = dict.fromkeys(sorted(self._stored()), "file")
        ring = self._keyring()
        if ring is not None:
            kept.update({name: "keyring" for name in self._names(ring) if self._ask(ring, name) is not None})
        return kept

    def _find(self, name: str) -> tuple[Source, str] | None:
        if name == FILE_KEY:
            return None
        if value := self._environ.get(name, "").strip():
            return "environment", value
        if not _NAME.fullmatch(name):
            return None
        ring = self._keyring()
        if ring is not None and (value := self._ask(ring, name) or ""):
            return "keyring", value
        try:
            value = self._stored().get(name, "")
        except (Invalid, StoreError) as wrong:
            logger.warning("the file of credentials is passed over: %s", wrong.message)
            return None
        return ("file", value) if value else None

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Held from reading what is kept to writing it again: of two processes neither loses what the other wrote."""
        if self._path is None or not self._path.parent.is_dir():
            yield
            return
        lock = FileLock(self._path.with_name(_LOCK), timeout=LOCK_S, mode=_PRIVATE)
        try:
            lock.acquire()
        except Timeout:
            raise StoreError(
                "another process is changing the credentials", hint="try again once it has ended"
            ) from None
        except OSError as failure:
            raise StoreError(f"{FILE} cannot be locked ({failure.strerror})") from None
        try:
            self._opened = None
            yield
        finally:
            lock.release()

    # ---------------------------------------------------------------------------------- keyring

    def _keyring(self) -> KeyringBackend | None:
        """The system's keyring, if it has one that keeps what it is given."""
        if not self._may_have_keyring():
            return None
        try:
            import keyring

            ring = keyring.get_keyring()
            return ring if float(ring.priority) >= _REAL else None
        except Exception as failure:  # noqa: BLE001  back ends of others, and whatever they talk to
            logger.warning("the keyring cannot be used (%s)", type(failure).__name__)
            return None

    def _may_have_keyring(self) -> bool:
        """A fifth of a second is better spent where it is turned off, or, on Linux, where there is no session bus."""
        chosen = self._environ.get("PYTHON_KEYRING_BACKEND")
        if chosen or self._environ.get("DBUS_SESSION_BUS_ADDRESS") or sys.platform != "linux":
            return chosen not in _TURNED_OFF
        home = self._environ.get("HOME", "/nonexistent")
        folder = self._environ.get("XDG_CONFIG_HOME") or f"{home}/.config"
        return Path(folder, "python_keyring", "keyringrc.cfg").is_file()

    def _ask(self, ring: KeyringBackend, name: str) -> str | None:
        try:
            return ring.get_password(SERVICE, name)
        except Exception as failure:  # noqa: BLE001  locked, or the bus is gone
            logger.warning("the keyring did not answer (%s)", type(failure).__name__)
            return None

    def _names(self, ring: KeyringBackend) -> list[str]:
        try:
            names = json.loads(self._ask(ring, _INDEX) or "[]")
        except ValueError:
            return []
        if not isinstance(names, list):
            return []
        return sorted({name for name in names if isinstance(name, str) and _NAME.fullmatch(name)})

    def _keep(self, ring: KeyringBackend, name: str, value: str) -> None:
        try:
            ring.set_password(SERVICE, name, value)
            ring.set_password(SERVICE, _INDEX, json.dumps(sorted({*self._names(ring), name})))
        except Exception as failure:  # noqa: BLE001  as above
            raise StoreError(
                f"the keyring did not take {name} ({type(failure).__name__})", hint="unlock it and try again"
            ) from None

    def _drop(self, ring: KeyringBackend, name: str) -> None:
        try:
            ring.delete_password(SERVICE, name)
            ring.set_password(SERVICE, _INDEX, json.dumps([other for other in self._names(ring) if other != name]))
        except Exception as failure:  # noqa: BLE001  as above
            raise StoreError(
                f"the keyring did not remove {name} ({type(failure).__name__})", hint="unlock it and try again"
            ) from None

    # ------------------------------------------------------------------------------------- file

    def _stored(self) -> dict[str, str]:
        """What the file holds, read anew when it has changed; empty without one."""
        if self._path is None:
            return {}
        try:
            handle = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return {}
        except OSError as failure:
            raise StoreError(f"{FILE} cannot be opened ({failure.strerror})") from None
        with os.fdopen(handle, "rb") as file:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise StoreError(f"{FILE} is no file")
            if stat.S_IMODE(status.st_mode) & ~_PRIVATE:
                _make_private(handle)
            if self._opened is not None and self._opened[:2] == (status.st_mtime_ns, status.st_ino):
                return self._opened[2]
            data = file.read(_MAX_BYTES + 1)
        stored = self._decrypt(data)
        self._opened = (status.st_mtime_ns, status.st_ino, stored)
        return stored

    def _decrypt(self, data: bytes) -> dict[str, str]:
        from cryptography.fernet import InvalidToken

        if not self._environ.get(FILE_KEY):
            raise Invalid(f"{FILE} is encrypted and {FILE_KEY} is not set", hint="set it where the server starts")
        try:
            _, salt, token = (data if data.startswith(_MAGIC) and len(data) <= _MAX_BYTES else b"").split(b"\n")[:3]
            opened = json.loads(self._cipher(base64.urlsafe_b64decode(salt)).decrypt(token))
        except InvalidToken:
            raise Invalid(
                f"{FILE} cannot be decrypted: {FILE_KEY} is not the one that it was written with, or it was changed",
                hint="set the right one, or remove the file and set the credentials again",
            ) from None
        except ValueError:
            raise Invalid(f"{FILE} is not a file of credentials", hint="remove it and set them again") from None
        return {str(name): str(value) for name, value in opened.items()} if isinstance(opened, dict) else {}

    def _write(self, values: dict[str, str]) -> None:
        if self._path is None:
            raise StoreError("there is no data folder to write to")
        salt = secrets.token_bytes(_SALT_BYTES) if self._derived is None else self._derived[0]
        token = self._cipher(salt).encrypt(json.dumps(values).encode())
        temporary = self._path.with_name(f".{secrets.token_hex(8)}.tmp")
        try:
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _PRIVATE)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(b"\n".join((_MAGIC, base64.urlsafe_b64encode(salt), token, b"")))
                    file.flush()
                    os.fsync(handle)
                temporary.replace(self._path)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    temporary.unlink()
        except OSError as failure:
            raise StoreError(f"{FILE} cannot be written ({failure.strerror})") from None
        self._opened = None

    def _cipher(self, salt: bytes) -> Fernet:
        from cryptography.fernet import Fernet as Cipher
        from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

        if self._derived is None or self._derived[0] != salt:
            derived = Scrypt(salt=salt, length=32, **_SCRYPT).derive(self._environ[FILE_KEY].encode())
            self._derived = (salt, base64.urlsafe_b64encode(derived))
        return Cipher(self._derived[1])
