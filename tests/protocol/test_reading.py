from __future__ import annotations

from ksi_mcp.transports.faces.guide import INSTRUCTIONS


async def test_the_instructions_are_short_and_name_tools_that_exist(serve):
    assert len(INSTRUCTIONS.encode()) < 2_000
    async with serve(tools="full") as (_, client):
        assert client.instructions == INSTRUCTIONS
        names = {each.name for each in (await client.list_tools()).tools}
    words = {word.strip("`.,:;()[]{}\"'?=") for word in INSTRUCTIONS.replace("(", " ").split()}
    mentioned = {
        word for word in words if "_" in word and word.partition("_")[0] in {n.partition("_")[0] for n in names}
    }
    assert mentioned - {"a_", "t_", "o_", "r_"} <= names
