"""DBOS on SQLite, side by side with `turns`: a workflow with one step a turn. `dbos_turns.py DIR AT_ONCE TURNS`."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

from dbos import DBOS
from dbos_engine import launched


@DBOS.step()
async def answer(message: str) -> str:
    return f"answer to {message}"


@DBOS.workflow()
async def turn(message: str) -> str:
    return await answer(message)


async def talk(client: int, turns: int) -> None:
    for number in range(turns):
        await turn(f"How far are you with part {number} of {client}?")


async def per_second(at_once: int, turns: int) -> float:
    each = max(turns // at_once, 1)
    await asyncio.gather(*(talk(client, 1) for client in range(min(at_once, 50))))
    began = time.perf_counter()
    await asyncio.gather(*(talk(client, each) for client in range(at_once)))
    return at_once * each / (time.perf_counter() - began)


if __name__ == "__main__":
    with launched(Path(sys.argv[1])):
        print(json.dumps(asyncio.run(per_second(int(sys.argv[2]), int(sys.argv[3])))))
