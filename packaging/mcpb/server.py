"""Where a bundle starts: the host's settings are made ready, then the server speaks MCP on stdin and stdout."""

from __future__ import annotations

import os
import sys

from ksi_mcp.__main__ import main
from ksi_mcp.cli.init import set_budget
from ksi_mcp.config import find_home
from ksi_mcp.errors import KsiError

SETTINGS = ("KSI_HOME", "ANTHROPIC_API_KEY", "KSI_BUNDLE_BUDGET_USD")


def take_settings() -> None:
    """Drop what was left empty (some hosts hand the name of a setting on as it is), and keep the budget."""
    for name in SETTINGS:
        value = os.environ.get(name, "").strip()
        if not value or value.startswith("${"):
            os.environ.pop(name, None)
    given = os.environ.pop("KSI_BUNDLE_BUDGET_USD", None)
    if given is None:
        return
    try:
        set_budget(find_home(None), float(given))
    except (KsiError, ValueError) as wrong:
        # A limit that was asked for and does not hold is worse than no server.
        sys.exit(f"error: the budget {given[:40]!r} cannot be set: {wrong}")


if __name__ == "__main__":
    take_settings()
    main(["serve"])
