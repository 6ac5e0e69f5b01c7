"""Help: what there is beyond the listed tools, and what exactly a tool takes."""

from __future__ import annotations

import inspect
from typing import Annotated, Any

from pydantic import Field

from ksi_mcp.agents import reach
from ksi_mcp.tools.call import Call
from ksi_mcp.tools.tool import Tool, View, tool


class ToolLine(View):
    """A tool in a list."""

    tool: str
    command: str
    does: str


class HelpView(View):
    """All tools, or one of them with its whole parameters."""

    tools: list[ToolLine] | None = None
    tool: str | None = None
    command: str | None = None
    description: str | None = None
    needs: str | None = None
    parameters: dict[str, Any] | None = None
    also_accepts: dict[str, str] | None = None
    how: str


@tool("help", needs="base", effects="reads", title="List and explain all tools", idempotent=True)
async def help_(
    call: Call, *, topic: Annotated[str | None, Field(description="a tool or command name; none: the list")] = None
) -> HelpView:
    """List every tool there is, also those not listed to you, or explain one. event_emit(command, data) runs any."""
    if topic is not None:
        found = call.toolbox.command(topic) or call.toolbox.get(topic.replace(":", "_"))
        return HelpView(
            tool=found.name,
            command=found.command,
            description=found.description,
            needs=found.needs,
            parameters=found.schema(),
            also_accepts=dict(found.aliases) or None,
            how=f"event_emit(event={found.command!r}, data={{...}})",
        )
    held = (await call.read(lambda tx: reach.grants(tx, call.ctx))).capabilities
    return HelpView(
        tools=[
            ToolLine(tool=each.name, command=each.command, does=first_line(each))
            for each in call.toolbox.tools
            if (held is None or each.needs in held) and (call.ctx.actor.kind != "reader" or each.effects == "reads")
        ],
        how="help(topic=NAME) explains one; event_emit(event=COMMAND, data={...}) runs one that is not listed to you",
    )


def first_line(declared: Tool) -> str:
    """The first sentence of a description."""
    return inspect.cleandoc(declared.description).partition("\n")[0]


TOOLS = (help_,)
