"""DBOS on SQLite, side by side with `resume`: `dbos_resume.py prepare|resume DIR AGENTS FINISHED`.

A workflow is a conversation, a step is a turn. `prepare` stops each in the step after its finished ones and waits to
be killed; `resume` launches DBOS, which goes on with all of them by itself.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from pathlib import Path

from dbos import DBOS
from dbos_engine import launched

COMMAND, HOME, AGENTS, FINISHED = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
rerun, arrived, lock = [0], [0], threading.Lock()
all_arrived = threading.Event()


@DBOS.step()
async def answer(turn: int) -> str:
    if turn < FINISHED:
        with lock:
            rerun[0] += 1
    elif COMMAND == "prepare":
        arrive()
        await asyncio.sleep(3600)
    return f"part {turn} is done"


@DBOS.workflow()
async def conversation() -> None:
    for turn in range(FINISHED + 1):
        await answer(turn)
    arrive()


def arrive() -> None:
    with lock:
        arrived[0] += 1
        if arrived[0] == AGENTS:
            all_arrived.set()


async def prepare() -> None:
    for _ in range(AGENTS):
        await DBOS.start_workflow_async(conversation)
    await asyncio.to_thread(all_arrived.wait)
    print("ready", flush=True)
    await asyncio.sleep(3600)


if __name__ == "__main__":
    with launched(HOME):
        if COMMAND == "prepare":
            asyncio.run(prepare())
        if not all_arrived.wait(110):
            raise SystemExit(f"{arrived[0]} of {AGENTS} went on")
        print(json.dumps({"ended_s": time.time(), "rerun": rerun[0]}), flush=True)
