"""Durable, budget-capped, multi-agent orchestration for any MCP client."""

__version__ = "0.1.0"
