"""Run the server from a checkout: `python server.py` speaks MCP on stdin and stdout.

The installed command `ksi-mcp serve` does the same and takes options.
"""

from __future__ import annotations

from ksi_mcp.__main__ import main

if __name__ == "__main__":
    main(["serve"])
