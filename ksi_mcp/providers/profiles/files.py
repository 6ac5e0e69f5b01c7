"""One file of model profiles: read without trust, checked key by key. What profiles mean together is in `profiles`."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, ValidationError

from ksi_mcp import yamlio
from ksi_mcp.errors import Invalid
from ksi_mcp.provider_config import Section

Layer = Literal["built-in", "user", "project"]
Stamp = tuple[int, int, int]
Text = Annotated[str, Field(min_length=1, max_length=200, pattern=r"\A[^\x00-\x1f\x7f]+\z")]

MAX_FILE_BYTES: Final = 200_000
MAX_PROFILES: Final = 500
OPERATORS_KEYS: Final = ("base_url", "api_key_env", "price", "in_flight")
"""What a project, which may come from somebody else, does not decide."""

_PLACES: Final = ("provider", "fallback")
_CHOICES: Final = (*_PLACES, "model", "timeout_s")
# What a name must look like to be a model's where it could be a profile's: a slip in one must not pass for the other.
_MODEL: Final = re.compile(r".*[\d/].*|opus|sonnet|haiku|fable|opusplan")
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,39}")


class ProfileWants(Section):
    """A profile as files write it, all layers together."""

    model: Text | None = None
    provider: Annotated[Text, Field(max_length=60)] | None = None
    base_url: Annotated[Text, Field(max_length=500)] | None = None
    api_key_env: Annotated[Text, Field(max_length=100)] | None = None
    in_flight: int | None = Field(default=None, ge=1, le=10_000)
    max_tokens: int | None = Field(default=None, ge=1, le=128_000)
    effort: Annotated[Text, Field(max_length=40)] | None = None
    timeout_s: float | None = Field(default=None, gt=0, le=3600)
    price: Literal["free"] | dict[str, float | str] | None = None
    fallback: Annotated[list[Text], Field(max_length=10)] | None = None


def stamp_of(path: Path) -> Stamp | None:
    """What changes when the file does; None without one."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def read_small(path: Path, layer: Layer, what: str) -> str:
    """The text of a file; empty without one. A project's may not be a link.

    Raises:
        Invalid: it cannot be read, is no plain file, too large, or not UTF-8.
    """
    follow = os.O_NOFOLLOW if layer == "project" else 0
    try:
        # O_NONBLOCK: a pipe in its place must not hang whoever spawns an agent.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | follow)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as failure:
        raise Invalid(f"{what} cannot be opened ({failure.strerror})") from None
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise Invalid(f"{what} is no plain file")
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise Invalid(f"{what} is larger than {MAX_FILE_BYTES:,} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Invalid(f"{what} is not UTF-8 text") from None


def parse(text: str, what: str) -> dict[str, Any]:
    """What a file says of each name; nothing of it is checked yet.

    Raises:
        Invalid: it is not YAML, or no mapping, or has too many profiles.
    """
    document = yamlio.safe_load(text, what=what, max_bytes=MAX_FILE_BYTES)
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise Invalid(f"{what} must be a mapping from names to profiles")
    if len(document) > MAX_PROFILES:
        raise Invalid(f"{what} holds {len(document)} profiles, the limit is {MAX_PROFILES}")
    return document


def check_said(name: str, given: object, layer: Layer) -> dict[str, Any]:
    """What one layer says of a profile, by key. `null` takes back what the layers below say.

    Raises:
        Invalid: the name or a key or value cannot be used, or is not for that layer to say.
    """
    if not _NAME.fullmatch(name):
        raise Invalid("the name must be up to 40 letters, digits, '_', '.' or '-', beginning with a letter")
    if not isinstance(given, dict):
        raise Invalid("it must be a mapping with model, provider and the like")
    if layer == "project" and (taken := [key for key in OPERATORS_KEYS if key in given]):
        raise Invalid(
            f"{taken[0]} is not a project's to say",
            hint="it comes with the project; what may reach which host with which key, the operator says in"
            " profiles.yaml of the data folder",
        )
    said = dict(given)
    if isinstance(said.get("fallback"), str):
        said["fallback"] = [said["fallback"]]
    checked(said)
    return said


def looks_like_a_model(name: str) -> bool:
    """Whether a name without a provider may be a model's."""
    return _MODEL.fullmatch(name) is not None


def check_projects(name: str, said: Mapping[str, Any], *, lower: Mapping[str, Any] | None, users: bool) -> None:
    """What a project says of a profile of which the layers below say `lower`; `users`: the operator among them.

    Where the operator's prompts go is not a project's to say: neither to another model or place, nor, by a failure that
    is sure to come, to one that stands in.

    Raises:
        Invalid: it says that, or its own profile could be taken for a model.
    """
    if lower is None and looks_like_a_model(name):
        raise Invalid(
            "a project's profile cannot be named like a model", hint="use a name without digits that is no model's"
        )
    has_place = lower is not None and lower.get("base_url") is not None
    kept = _CHOICES if users else _PLACES if has_place else ()
    if taken := [key for key in kept if key in said]:
        why = "profiles.yaml of the data folder speaks of the profile" if users else "the profile has a base_url"
        raise Invalid(f"{taken[0]} is not a project's to say: {why}", hint="give the project's profile another name")


def checked(said: dict[str, Any]) -> ProfileWants:
    """The same with its types.

    Raises:
        Invalid: a key is unknown or a value wrong; each is named.
    """
    try:
        return ProfileWants.model_validate(said)
    except ValidationError as failure:
        wrong = "; ".join(
            f"{'.'.join(str(part)[:60] for part in error['loc'][:2])}: {error['msg']}" for error in failure.errors()[:5]
        )
        raise Invalid(wrong, hint=f"a profile has {', '.join(ProfileWants.model_fields)}") from None


def mentions(text: str, name: str) -> bool:
    """Whether a file that could not be read seems to speak of a profile; one without text may speak of any."""
    return not text or re.search(rf"(?:^|[\s{{,])[\"']?{re.escape(name)}[\"']?\s*:", text) is not None
