"""LangGraph with checkpoints in SQLite, side by side with `resume`: `langgraph_resume.py prepare|resume DIR AGENTS
FINISHED`.

A thread is a conversation, an invocation is a turn. `prepare` interrupts each before the model of the turn after its
finished ones and waits to be killed; `resume` goes on with all threads at once.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

from langchain_core.messages import AIMessage
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, MessagesState, StateGraph

COMMAND, HOME, AGENTS, FINISHED = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
rerun = [0]


async def model(state: MessagesState) -> dict[str, Any]:
    turn = sum(message.type == "human" for message in state["messages"]) - 1
    if turn < FINISHED:
        rerun[0] += 1
    return {"messages": [AIMessage(f"part {turn} is done")]}


async def main() -> None:
    async with AsyncSqliteSaver.from_conn_string(str(HOME / "langgraph.sqlite")) as saver:
        await saver.conn.execute("PRAGMA journal_mode=WAL")
        await saver.conn.execute("PRAGMA synchronous=FULL")
        builder = StateGraph(MessagesState)
        builder.add_node("model", model)
        builder.add_edge(START, "model")
        builder.add_edge("model", END)
        graph: Any = builder.compile(checkpointer=saver)
        threads: list[Any] = [{"configurable": {"thread_id": f"agent{n}"}} for n in range(AGENTS)]
        if COMMAND == "prepare":
            for turn in range(FINISHED + 1):
                said = {"messages": [("user", f"part {turn}")]}
                more: dict[str, Any] = {"interrupt_before": ["model"]} if turn == FINISHED else {}
                await asyncio.gather(*(graph.ainvoke(said, thread, durability="sync", **more) for thread in threads))
            print("ready", flush=True)
            await asyncio.sleep(3600)
        ends = await asyncio.gather(*(graph.ainvoke(None, thread, durability="sync") for thread in threads))
        ended_s = time.time()
        assert all(end["messages"][-1].content == f"part {FINISHED} is done" for end in ends)
        print(json.dumps({"ended_s": ended_s, "rerun": rerun[0]}), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
