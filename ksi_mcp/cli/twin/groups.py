"""The groups of commands that are tools, and how commands end. Known without loading a tool."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

GROUPS: Final[Mapping[str, str]] = {
    "agent": "Make agents, write to them, wait for them, end them.",
    "completion": "Single turns: submit, answer, cancel; caches and batches.",
    "event": "Emit, query, wait for and replay events.",
    "routing": "The routing table: rules, dry runs, versions, dead letters.",
    "composition": "Patterns and profiles: find, write, fork, compare, share.",
    "decision": "Decisions that were tracked, and how they turned out.",
    "orchestration": "Runs of patterns: start, look at, hold, complete.",
    "checkpoint": "Keep a run as it stands, and go back to it.",
    "budget": "What was spent, and what may be.",
    "usage": "What is being spent.",
    "turn": "Move turns that wait.",
    "monitor": "Figures of what is going on.",
    "name": "Complete names that were begun.",
}
"""Each with its line. The names are the first words of the tools' names."""

EXIT_USAGE: Final = 2
EXIT_REFUSED: Final = 3
EXIT_CONFLICT: Final = 4
EXIT_FAILED: Final = 5
EXIT_PARTIAL: Final = 6
EXIT_INTERRUPTED: Final = 130
EXIT_BROKEN_PIPE: Final = 141
"""As a shell reports a program that SIGPIPE ended. The signal itself stays ignored: a socket must not end a server."""

EXIT_CODES: Final[Mapping[int, str]] = {
    0: "done",
    EXIT_USAGE: "usage, an invalid value, or something that is not there",
    EXIT_REFUSED: "refused, or not confirmed",
    EXIT_CONFLICT: "conflict: it exists already, or it changed meanwhile",
    EXIT_FAILED: "failed",
    EXIT_PARTIAL: "partial: a wait ended before everything was there and well",
    EXIT_INTERRUPTED: "interrupted; what was begun goes on",
    EXIT_BROKEN_PIPE: "whoever read the output has gone",
}


def exit_codes() -> str:
    """The table of exit codes, for `--help`."""
    return "\n".join(["\b", "Exit codes:", *(f"  {code:>3}  {text}" for code, text in EXIT_CODES.items())])
