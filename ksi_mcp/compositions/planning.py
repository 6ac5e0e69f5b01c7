"""What is about to be written: checked as it would be read back, before anything is touched."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from ksi_mcp import yamlio
from ksi_mcp.compositions import files, store
from ksi_mcp.compositions.checking import check
from ksi_mcp.compositions.model import Composition, Layer
from ksi_mcp.db import Tx
from ksi_mcp.errors import Conflict, Invalid


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A composition, and the text and place of its file inside the writable layer."""

    composition: Composition
    text: str
    path: str
    warnings: tuple[str, ...] = ()


def loaded(document: dict[str, Any] | str) -> Any:
    """A document that somebody handed in, as plain data.

    Raises:
        Invalid: it is no YAML, or nothing that a file can hold.
    """
    if isinstance(document, str):
        return yamlio.safe_load(document, what="the composition", max_bytes=files.MAX_FILE_BYTES)
    plain = yamlio.plain(document)
    if len(json.dumps(plain, ensure_ascii=False)) > files.MAX_FILE_BYTES:  # before the slow way through YAML
        raise Invalid(f"the composition is larger than {files.MAX_FILE_BYTES:,} bytes", hint="split it into components")
    return plain


def planned(tx: Tx, document: Any) -> Plan:
    """A new file for `document`.

    Raises:
        Invalid, NotFound: it could not be used.
    """
    text = yamlio.dump(document)
    read_back = yamlio.safe_load(text, what="the composition", max_bytes=files.MAX_FILE_BYTES)
    composition, warnings = check(read_back, store.lookup_in(tx), what="the composition")
    path = files.path_for(composition.type, composition.name)
    return Plan(composition=composition, text=text, path=path, warnings=tuple(warnings))


def refuse_taken(tx: Tx, name: str, but: tuple[Layer, str]) -> None:
    """Raise Conflict if any layer has the name, other than in the file `but`."""
    for indexed in store.named(tx, name):
        if (indexed.layer, indexed.path) != but:
            raise Conflict(f"the name {name!r} is taken in the {indexed.layer} library", hint="choose another name")
