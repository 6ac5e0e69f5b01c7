"""What a hostile or mistaken client sends: a clear answer, and nothing written."""

from __future__ import annotations

import pytest

from ksi_mcp.permissions import OPERATOR, fresh_context

LONG = "x" * 70_000


async def newest(app) -> int:
    done = await app.toolbox.call(fresh_context(OPERATOR), "event_query", {"limit": 1})
    return done.data["events"][0]["event_id"] if done.data["events"] else 0


def document(name: str, **more) -> dict:
    return {"name": name, "type": "agent", "prompt": "x", **more}


@pytest.mark.parametrize("era", ["auto"], indirect=True)
@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("agent_sendd", {}, "unknown tool 'agent_sendd'; did you mean agent_send"),
        ("", {}, "unknown tool ''"),
        ("../agent_send", {}, "unknown tool '../agent_send'"),
        ("agent_send", {"agent": "one", "message": "hi", "urgent": True}, "unknown parameter 'urgent'"),
        ("agent_send", {"agent": "one"}, "missing parameter 'message'"),
        ("agent_send", {"agent": ["one"], "message": "hi"}, "agent: Input should be a valid string"),
        ("agent_send", {"agent": "one", "message": 7}, "message"),
        ("agent_send", {"agent": "nobody", "message": "hi"}, "unknown agent 'nobody'"),
        ("agent_send", {"agent": "one", "message": "hi", "wait_s": 1e9}, "wait_s"),
        ("agent_spawn", {"prompt": "x", "name": "one"}, "'one'"),
        ("agent_spawn", {"prompt": "x", "name": "../../etc"}, "'../../etc'"),
        ("agent_spawn", {"prompt": "x", "capabilities": ["root"]}, "root"),
        ("agent_wait", {"turns": ["t_nothing"]}, "unknown turns: t_nothing"),
        ("event_emit", {"event": "note made"}, "'note made'"),
        ("event_emit", {"event": ""}, "event"),
        ("event_emit", {"event": "note:made", "data": {"x": LONG}}, "the limit is"),
        ("event_emit", {"event": "note:made", "data": [1]}, "data"),
        ("event_emit", {"event": "note:made", "condition": "data.x >"}, "condition"),
        ("routing_add_rule", {"source_pattern": "a b", "target": "note:x"}, "'a b'"),
        ("composition_create", {"document": "name: [unclosed"}, "YAML"),
        ("composition_create", {"document": document("../escape")}, "../escape"),
        ("composition_create", {"document": document("/etc/passwd")}, "/etc/passwd"),
        ("composition_create", {"document": document("snake", extends="snake")}, "snake"),
        ("composition_create", {"document": "name: huge\ntype: agent\nprompt: " + "x" * 10_000_000}, "limit"),
        ("composition_fork", {"parent": "nowhere", "name": "mine", "reason": "x"}, "nowhere"),
        ("composition_get", {"name": "../../etc/passwd"}, "../../etc/passwd"),
        ("orchestration_start", {"pattern": "nowhere"}, "nowhere"),
        ("orchestration_status", {"orchestration": "o_nothing"}, "o_nothing"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_bad_input_is_named_and_leaves_nothing(serve, name, arguments, says):
    async with serve() as (app, client):
        await client.call_tool("agent_spawn", {"prompt": "x", "name": "one"})
        before = await newest(app)
        result = await client.call_tool(name, arguments)
        assert result.is_error
        [text] = result.content
        assert says in text.text
        assert len(text.text) < 1_000
        assert "Traceback" not in text.text
        assert str(app.home.root) not in text.text
        assert await newest(app) == before
        written = list(app.home.compositions.rglob("*")) if app.home.compositions.exists() else []
        assert [path for path in written if path.is_file()] == []


async def test_a_refused_call_leaves_its_trace_and_nothing_else(serve):
    async with serve() as (app, client):
        before = await newest(app)
        result = await client.call_tool("event_emit", {"event": "routing:rule_added"})
        assert result.is_error
        assert "only the server emits" in result.content[0].text
        found = await client.call_tool("event_query", {"since": before})
        assert [each["event"] for each in found.structured_content["events"]] == ["system:refused"]
