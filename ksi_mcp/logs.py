"""Logging to stderr, one line a record: stdout belongs to the MCP protocol."""

from __future__ import annotations

import logging
import sys


def configure_logging(level: str = "WARNING") -> None:
    """Send log records to stderr. Call it before an MCP server object is made, or the SDK's own handler wins."""
    logging.basicConfig(
        level=level.upper(),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        force=True,
    )
