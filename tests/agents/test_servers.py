from __future__ import annotations

from typing import Any

import pytest

from ksi_mcp.agents.servers import check_servers_within, permitted
from ksi_mcp.errors import Invalid, Refused
from ksi_mcp.provider_config import McpServerConfig

SERVERS = {
    "files": McpServerConfig(command="npx", args=("-y", "files", "/data"), env={"KEY": "${KEY}"}),
    "web": McpServerConfig(url="https://example.com/mcp"),
}


def test_what_a_composition_names_is_what_it_gets() -> None:
    assert permitted(None, SERVERS) is None
    assert permitted({}, SERVERS) is None
    assert permitted({"files": {"args": ["-y", "files", "/data"]}}, SERVERS) == {"files": None}
    assert permitted({"files": {}, "web": {"tools": ["get_*"]}}, SERVERS) == {"files": None, "web": ["get_*"]}
    described = {"command": "npx", "args": ["-y", "files", "/data"]}
    assert permitted({"files": described, "web": {"url": "https://example.com/mcp"}}, SERVERS) == {
        "files": None, "web": None,
    }  # fmt: skip


def test_a_server_that_the_operator_does_not_know_is_refused_with_those_there_are() -> None:
    with pytest.raises(Invalid) as error:
        permitted({"shell": {"command": "sh"}}, SERVERS)
    assert error.value.text() == (
        "MCP server 'shell' is not in config.yaml; it permits files, web; "
        "the operator adds one under mcp_servers, and restarts the worker"
    )
    with pytest.raises(Invalid) as error:
        permitted({"x": {}}, {})
    assert "it permits none" in error.value.text()


@pytest.mark.parametrize(
    "wish",
    [
        {"command": "sh", "args": ["-y", "files", "/data"]},
        {"command": "npx", "args": ["-y", "files", "/"]},
        {"command": "npx"},
        {"args": ["-y", "files", "/"]},
        {"args": []},
        {"url": "https://example.com/mcp"},
        {"command": "npx", "args": ["-y", "files", "/data"], "url": "https://example.com/mcp"},
    ],
)
def test_a_description_that_is_another_one_is_refused(wish: dict[str, Any]) -> None:
    with pytest.raises(Refused, match="is another one than the composition describes"):
        permitted({"files": wish}, SERVERS)


@pytest.mark.parametrize(
    ("wanted", "held"),
    [
        (None, None),
        ({}, {"a": None}),
        ({"a": None}, {"a": None, "b": None}),
        ({"a": ["x"]}, {"a": None}),
        ({"a": ["x"]}, {"a": ["x", "y"]}),
        ({"a": ["get_one", "get_*"]}, {"a": ["get_*"]}),
        ({"a": ["get_[ab]"]}, {"a": ["get_*"]}),
        ({"a": ["*b"]}, {"a": ["*"]}),
        ({"a": []}, {"a": []}),
    ],
)
def test_a_child_may_have_what_its_parent_has(wanted: Any, held: Any) -> None:
    check_servers_within(wanted, held, holder="it")


@pytest.mark.parametrize(
    ("wanted", "held"),
    [
        ({"a": None}, None),
        ({"a": []}, {"b": None}),
        ({"a": None}, {"a": ["x"]}),
        ({"a": ["y"]}, {"a": ["x"]}),
        ({"a": ["*"]}, {"a": ["get_*"]}),
        ({"a": ["get*"]}, {"a": ["get_*"]}),
        ({"a": ["get_*"]}, {"a": ["get_?"]}),
        ({"a": ["get_?"]}, {"a": ["get_[ab]"]}),
        ({"a": ["[g]et_x"]}, {"a": ["[g]*"]}),
    ],
)
def test_a_child_may_not_have_more(wanted: Any, held: Any) -> None:
    with pytest.raises(Refused, match="it cannot grant MCP servers that it does not have: a"):
        check_servers_within(wanted, held, holder="it")
