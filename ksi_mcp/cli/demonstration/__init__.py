"""The parts of `ksi-mcp demo`."""
