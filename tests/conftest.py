"""What every test gets: a machine without keys, and a small Hypothesis.

Set-up belongs into the test that needs it; this file stays short.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

settings.register_profile("quick", max_examples=50, deadline=None, derandomize=True)
settings.register_profile("thorough", max_examples=2_000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

_KEYS = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_BASE_URL", "OPENAI_API_KEY", "OPENAI_BASE_URL")


@pytest.fixture(autouse=True)
def no_real_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may spend money or depend on whose machine it runs on."""
    for name in [*_KEYS, *(name for name in os.environ if name.startswith("KSI_"))]:
        monkeypatch.delenv(name, raising=False)
