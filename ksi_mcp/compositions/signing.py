"""Who signed a bundle: Ed25519 over its manifest, which names every file with its sum.

A signature that is wrong refuses the bundle. A right one says whose key it was, no more: a bundle is quarantined
whoever signed it. Public keys that the operator trusts lie in the data folder's `trusted_keys/`, a file each.
"""

from __future__ import annotations

import base64
import hashlib
import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from ksi_mcp.compositions.manifest import read_json
from ksi_mcp.compositions.model import shorten
from ksi_mcp.errors import Invalid

ALGORITHM: Final = "ed25519"
MAX_KEY_BYTES: Final = 10_000
MAX_KEYS: Final = 1_000
_KEY_BYTES: Final = 32
_SIGNATURE_BYTES: Final = 64
_FINGERPRINT_CHARS: Final = 16


def signer(key_file: Path) -> Callable[[bytes], bytes]:
    """Blocking: what signs with the private key in `key_file` (PEM, as `openssl genpkey -algorithm ed25519` makes it).

    Raises:
        Invalid: there is no such key in it.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    hint = "make one with `openssl genpkey -algorithm ed25519 -out KEYFILE`"
    try:
        key = serialization.load_pem_private_key(_read_small(key_file), password=None)
    except (OSError, ValueError, TypeError):  # what it says may quote the key
        raise Invalid("the key file cannot be used", hint=hint) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise Invalid("the key file holds another kind of key", hint=hint)
    public = key.public_key().public_bytes_raw()

    def sign(head: bytes) -> bytes:
        signed = {
            "algorithm": ALGORITHM,
            "public_key": base64.b64encode(public).decode(),
            "signature": base64.b64encode(key.sign(head)).decode(),
        }
        return json.dumps(signed, indent=1).encode() + b"\n"

    return sign


def check_signature(head: bytes, signature: bytes | None, trusted: dict[str, bytes]) -> str | None:
    """Who signed: `trusted: <name>`, or `unknown key <fingerprint>`; None where nobody did.

    Raises:
        Invalid: there is a signature, and it is not one of this manifest.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if signature is None:
        return None
    said = read_json(signature, what="the signature", limit=MAX_KEY_BYTES)
    if not isinstance(said, dict) or said.get("algorithm") != ALGORITHM:
        raise Invalid("the bundle's signature is of a kind that cannot be checked", hint="ask for it unsigned")
    public = _decoded(said.get("public_key"), _KEY_BYTES)
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(_decoded(said.get("signature"), _SIGNATURE_BYTES), head)
    except (InvalidSignature, ValueError):
        raise Invalid(
            "the bundle's signature does not fit its manifest", hint="it was changed after it was signed: do not use it"
        ) from None
    known = next((name for name, key in trusted.items() if key == public), None)
    return f"trusted: {known}" if known is not None else f"unknown key {fingerprint(public)}"


def fingerprint(public: bytes) -> str:
    """The beginning of the SHA-256 of a public key."""
    return hashlib.sha256(public).hexdigest()[:_FINGERPRINT_CHARS]


def trusted_keys(folder: Path) -> dict[str, bytes]:
    """Blocking: the public keys in a folder (PEM, or the 32 bytes in base64), by their file's stem."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    keys: dict[str, bytes] = {}
    try:
        found = sorted(folder.iterdir())[:MAX_KEYS]
    except OSError:
        return keys
    for path in found:
        try:
            data = _read_small(path)
            if data.startswith(b"-----"):
                key = serialization.load_pem_public_key(data)
                if isinstance(key, Ed25519PublicKey):
                    keys[path.stem] = key.public_bytes_raw()
            else:
                keys[path.stem] = _decoded(data.decode().strip(), _KEY_BYTES)
        except (OSError, ValueError, TypeError, Invalid):
            continue  # a key that cannot be read is not trusted
    return keys


def _read_small(path: Path) -> bytes:
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError
    with path.open("rb") as file:
        return file.read(MAX_KEY_BYTES)


def _decoded(text: Any, length: int) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (ValueError, TypeError):
        data = b""
    if len(data) != length:
        raise Invalid(f"{shorten(str(text))!r} in the bundle's signature is not {length} bytes in base64")
    return data
