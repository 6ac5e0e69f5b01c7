from __future__ import annotations

from typing import Any

import pytest

from ksi_mcp.compositions.reading import Problems
from ksi_mcp.compositions.settings import settings_of


def read(**body: Any) -> tuple[Any, list[tuple[str, str]]]:
    problems = Problems()
    settings = settings_of(body, "agents.a", problems)
    return settings.get("mcp_servers"), [(problem.path, problem.message) for problem in problems.found]


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("files", {"files": {}}),
        (["files", "web"], {"files": {}, "web": {}}),
        ({"files": None, "web": {"tools": ["get_*"]}}, {"files": {}, "web": {"tools": ["get_*"]}}),
        ({"web": ["get_*"]}, {"web": {"tools": ["get_*"]}}),
        (
            {"files": {"command": "npx", "args": ["-y", "files"], "env": {"KEY": "1"}, "type": "stdio"}},
            {"files": {"command": "npx", "args": ["-y", "files"]}},
        ),
        (
            {"web": {"url": "https://example.com/mcp", "headers": {"a": "b"}}},
            {"web": {"url": "https://example.com/mcp"}},
        ),
        ([], {}),
        (None, None),
    ],
)
def test_servers_may_be_written_in_each_usual_way(said: Any, found: Any) -> None:
    for written in ({"mcp_servers": said}, {"mcpServers": said}, {"settings": {"mcp_servers": said}}):
        assert read(**written) == (found, [])


@pytest.mark.parametrize(
    ("said", "path", "message"),
    [
        (5, "", "must be a list of names or a mapping, not a number"),
        ([5], ".0", "must be a server's name, not a number"),
        ({"a": 5}, ".a", "must be a mapping, not a number"),
        ({"a": {"tool": ["x"]}}, ".a.tool", "is no part of a server"),
        ({"a": {"tools": "x"}}, ".a.tools", "must be a list of texts"),
        ({"a": {"tools": [1]}}, ".a.tools", "must be a list of texts"),
        ({"a": {"tools": ["x" * 300]}}, ".a.tools", "must be at most"),
        ({"a": {"command": ["sh"]}}, ".a.command", "must be text"),
        ({str(n): None for n in range(21)}, "", "21 servers, the limit is 20"),
    ],
)
def test_what_is_no_server_is_named_with_its_place(said: Any, path: str, message: str) -> None:
    _, ((where, why),) = read(mcp_servers=said)
    assert where == f"agents.a.mcp_servers{path}"
    assert message in why
