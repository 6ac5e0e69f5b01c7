"""The `anthropic` SDK besides its calls: loading it late, and what its errors mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from ksi_mcp.errors import ProviderError, ProviderErrorKind
from ksi_mcp.providers.failures import OVERLOADED, PAYMENT_REQUIRED, kind_of_error, retry_after_s, safe_text

if TYPE_CHECKING:
    from types import ModuleType

_STREAM_BEGAN: Final = 200
_BAD_REQUEST: Final = 400
_ID_CHARS: Final = 80
# An error that comes inside a stream has status 200, one in a batch has none; its type says what it would have been.
_STATUS_OF_TYPE: Final = {
    "overloaded_error": OVERLOADED,
    "rate_limit_error": 429,
    "timeout_error": 504,
    "api_error": 500,
    "billing_error": PAYMENT_REQUIRED,
    "authentication_error": 401,
    "permission_error": 403,
}
_HINTS: Final[dict[str, str]] = {
    "auth": "check the API key and what it may use",
    "budget": "raise the spend limit or the credit of the account, or use another model",
}


def load() -> tuple[ModuleType, ModuleType]:
    """The SDK and its HTTP library; a second at the first call. Raises `ImportError` where they are not installed."""
    import anthropic
    import httpx2  # noqa: PLC0415 - it comes with the SDK and is loaded with it

    return anthropic, httpx2


def end_of_life(model: str) -> str | None:
    """The day on which a deprecated model ends, as the SDK knows it."""
    from anthropic.resources.messages import DEPRECATED_MODELS

    return DEPRECATED_MODELS.get(model)


def hint_of(kind: ProviderErrorKind) -> str | None:
    """What to do about a kind of failure, where there is something to do."""
    return _HINTS.get(kind)


def kind_of_type(error_type: str, *, code: str | None = None, message: str = "") -> ProviderErrorKind:
    """Why a request failed, by the type of its error alone."""
    status = _STATUS_OF_TYPE.get(error_type, _BAD_REQUEST)
    return kind_of_error(status, error_type=error_type, code=code, message=message)


def classify(error: BaseException) -> ProviderErrorKind:
    """Why a call through the SDK failed."""
    anthropic, httpx2 = load()
    if isinstance(error, anthropic.APIStatusError):
        error_type, code, said = text_of(error.type), text_of(error.error_code), text_of(error.api_message)
        if error.status_code == _STREAM_BEGAN:
            return kind_of_type(error_type, code=code, message=said)
        return kind_of_error(error.status_code, error_type=error_type, code=code, message=said)
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, (anthropic.APIConnectionError, httpx2.TransportError)):
        return "transport"
    return "bug"


def failure(error: Exception, *, host: str, secret: str, partial_text: str = "") -> ProviderError:
    """What went wrong in a call through the SDK, in words that give nothing away."""
    anthropic, _ = load()
    kind = classify(error)
    billed: Literal["no", "unknown"] = "unknown"
    wait: float | None = None
    if isinstance(error, anthropic.APIStatusError):
        said = safe_text(text_of(error.api_message) or error.message, secret=secret)
        request = _named(error.request_id, secret)
        if error.status_code == _STREAM_BEGAN:
            message = f"{host} broke off the answer{request}: {said}"
        else:
            message = f"{host} answered with status {error.status_code}{request}: {said}"
            billed = "no"
            wait = retry_after_s(error.response.headers)
    elif kind in ("transport", "timeout"):
        cause = error.__cause__ if error.__cause__ is not None else error  # the transport's own, which the SDK wraps
        if _never_sent(cause):
            billed = "no"
        message = f"the connection to {host} failed ({type(cause).__name__})"
    else:
        message = f"the answer of {host} could not be read ({type(error).__name__})"
    return ProviderError(
        message, kind=kind, billed=billed, retry_after_s=wait, partial_text=partial_text, hint=hint_of(kind)
    )


def text_of(value: object) -> str:
    """What the SDK took from a body unchecked, if it is text."""
    return value if isinstance(value, str) else ""


def _named(request_id: object, secret: str) -> str:
    """The id under which the other side can find the request."""
    name = safe_text(text_of(request_id), secret=secret)[:_ID_CHARS]
    return f" (request {name})" if name else ""


def _never_sent(error: BaseException) -> bool:
    _, httpx2 = load()
    return isinstance(error, (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout))
