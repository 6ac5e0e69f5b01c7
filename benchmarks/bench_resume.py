"""`resume`: a run of 200 agents is suspended in mid-conversation, everything is killed, and it goes on.

Each agent has finished turns behind it and more in its queue when the run is suspended; then server and worker get
`kill -9`. The clock starts with the start of the server's process and stops when the last of the 200 has finished
its next turn: start-up, resumption and 200 turns. `seconds_after_ready` counts from the server's first answer. No
turn that was finished may run again.

The server is started as a client starts it: `serve` on stdio, which starts a worker's process when there is something
to run. With `--worker inside` it needs no second process; that is shown beside it.

Beside it the same 200 conversations in LangGraph (a graph with one node, checkpoints in SQLite, `durability="sync"`)
and DBOS (a workflow each, a step a turn): killed in the same place, then a new process goes on with all of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from harness import Figure, Peer, Refusal, Result, StdioServer, environment, main, scratch, setting, take_turns

AGENTS = 200
FINISHED = 3
"""Turns that each agent has behind it before the run is suspended; one more is under way at that moment."""
QUEUED = 2
"""Turns that each agent has in its queue then."""
PATTERN = "many"
ROLE = "You answer briefly."
PEER_RUNS = 3
PATIENCE_S = 90.0
KSI = [sys.executable, "-m", "ksi_mcp"]
SCRIPT = """
replies: [{match: {prompt: "slow"}, reply: "that took a while", latency_s: 0.3}]
default: {reply: "part {{turn}} is done"}
"""
CONFIG = f"""
provider: scripted
scripted: {{script: script.yaml}}
worker: {{concurrency: {AGENTS}, idle_s: 1}}
"""


# -------------------------------------------------------------------------------- up to the kill -9


def prepare(home: Path) -> bool:
    """Leave a data folder as a kill leaves it; whether the run in it is suspended."""
    patterns = home / "compositions" / "orchestrations"
    patterns.mkdir(parents=True)
    agents = {"agent0": {"prompt": ROLE, "capabilities": ["base"]}}
    document = {"name": PATTERN, "type": "orchestration", "version": "1.0.0", "description": "One, and many more."}
    (patterns / f"{PATTERN}.yaml").write_text(json.dumps({**document, "agents": agents}), "utf-8")
    (home / "script.yaml").write_text(SCRIPT, "utf-8")
    (home / "config.yaml").write_text(CONFIG, "utf-8")
    with StdioServer([*KSI, "serve", "--worker", "none"], home) as server:
        server.list_tools()
        run = server.call("orchestration_start", pattern=PATTERN)["orchestration"]
        for number in range(1, AGENTS):
            server.call("agent_spawn", name=f"agent{number}", prompt=ROLE, capabilities=["base"], orchestration=run)
        everybody = {"orchestration": run}
        with _worker(home) as worker:
            for number in range(FINISHED):
                server.call("agent_broadcast", filter=everybody, message=f"part {number}")
            _until(home, "SELECT COUNT(*) FROM turn WHERE state = 'done'", AGENTS * FINISHED)
            for message in ["slow part", *("another part" for _ in range(QUEUED))]:
                server.call("agent_broadcast", filter=everybody, message=message)
            _until(home, "SELECT COUNT(DISTINCT session_id) FROM turn WHERE state = 'running'", AGENTS // 2)
            try:
                server.call("orchestration_control", orchestration=run, action="suspend", mode="drain")
                suspended = True
                _until(home, "SELECT COUNT(*) = 0 FROM turn WHERE state = 'running'", 1)
            except Refusal:
                suspended = False
            worker.kill()
        server.kill()
    return suspended


@contextlib.contextmanager
def _worker(home: Path) -> Iterator[subprocess.Popen[bytes]]:
    with (home / "log").open("w") as log:
        worker = subprocess.Popen([*KSI, "worker"], env=environment(home), stdin=subprocess.DEVNULL, stderr=log)
    try:
        yield worker
    finally:
        worker.kill()
        worker.wait()


def _until(home: Path, sql: str, least: int) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while _one(home, sql)[0] < least:
        if time.monotonic() > until_s:
            raise SystemExit(f"not within {PATIENCE_S:g} s: {sql} >= {least}")
        time.sleep(0.02)


def _one(home: Path, sql: str) -> Any:
    with closing(sqlite3.connect(home / "ksi.db", timeout=30)) as db:
        return db.execute(sql).fetchone()


# --------------------------------------------------------------------------------------- after it


def resumed(seeded: Path, home: Path, *, suspended: bool, worker: str) -> tuple[float, float, int]:
    """Seconds from the start of the server, from its first answer, and finished turns that ran again."""
    shutil.copytree(seeded, home)
    before = _finished(home)
    try:
        began_s = time.time()
        with StdioServer([*KSI, "serve", "--worker", worker], home) as server:
            server.list_tools()
            ready_s = time.time()
            if suspended:
                run = _one(home, "SELECT orchestration_id FROM orchestration")[0]
                server.call("orchestration_control", orchestration=run, action="resume")
            _until(home, f"SELECT COUNT(*) FROM turn WHERE finished_at_ms > {int(began_s * 1000)}", AGENTS * QUEUED)
    finally:
        _kill_all_of(home)
    now = _finished(home)
    rerun = sum(now[turn_id] != turn for turn_id, turn in before.items())
    next_ones = _next_ends_ms(home, set(before))
    shutil.rmtree(home)
    if len(next_ones) != AGENTS:
        raise SystemExit(f"{len(next_ones)} of {AGENTS} agents went on")
    last_s = max(next_ones.values()) / 1000
    return last_s - began_s, last_s - ready_s, rerun


def _finished(home: Path) -> dict[str, dict[str, Any]]:
    """Every turn that is done, with all that another run of it would change."""
    with closing(sqlite3.connect(home / "ksi.db", timeout=30)) as db:
        db.row_factory = sqlite3.Row
        calls = "(SELECT COUNT(*) FROM provider_call WHERE provider_call.turn_id = turn.turn_id) AS calls"
        asked = f"SELECT turn_id, attempt, finished_at_ms, {calls} FROM turn WHERE state = 'done'"
        return {row["turn_id"]: dict(row) for row in db.execute(asked)}


def _next_ends_ms(home: Path, before: set[str]) -> dict[str, int]:
    """When each agent finished its first turn after the kill."""
    with closing(sqlite3.connect(home / "ksi.db", timeout=30)) as db:
        done = db.execute("SELECT turn_id, session_id, finished_at_ms FROM turn WHERE state = 'done' ORDER BY seq")
        ends: dict[str, int] = {}
        for turn_id, session, at_ms in done:
            if turn_id not in before:
                ends.setdefault(session, at_ms)
        return ends


def _kill_all_of(home: Path) -> None:
    """The detached worker of this folder outlives its server; its command line names the folder."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if str(home).encode() in (entry / "cmdline").read_bytes().split(b"\0"):
                os.kill(int(entry.name), signal.SIGKILL)
    time.sleep(0.1)


# ---------------------------------------------------------------------------------------- the others


def of_peer(peer: Peer) -> tuple[float, int]:
    """Seconds from the start of the process, and finished turns that ran again."""
    with scratch() as home:
        facts = (str(home), str(AGENTS), str(FINISHED))
        process = subprocess.Popen(
            peer.command("resume", "prepare", *facts), env=peer.environment(home), cwd=home, stdout=subprocess.PIPE
        )
        assert process.stdout
        ready = process.stdout.readline()
        process.kill()
        process.communicate()
        if not ready:
            raise SystemExit(f"{peer.name} could not be prepared")
        began_s = time.time()
        found = peer.run("resume", "resume", *facts, home=home)
        return found["ended_s"] - began_s, found["rerun"]


def measure(runs: int) -> Result:
    peers = [Peer("langgraph", "langgraph==1.2.*", "langgraph-checkpoint-sqlite==3.1.*"), Peer("dbos", "dbos==3.4.*")]
    with scratch() as folder:
        seeded, home = folder / "seeded", folder / "home"
        seeded.mkdir()
        suspended = prepare(seeded)
        sides: dict[str, Callable[[], Any]] = {
            worker: lambda worker=worker: resumed(seeded, home, suspended=suspended, worker=worker)
            for worker in ("detached", "inside")
        }
        sides |= {peer.name: lambda peer=peer: of_peer(peer) for peer in peers if peer.available}
        found = take_turns(runs, sides, fewer={peer.name: PEER_RUNS for peer in peers})

    def ours(side: str, *goals: float | None) -> list[Figure]:
        seconds, after_ready, rerun = zip(*found[side], strict=True)
        return [
            Figure(key=f"seconds_{AGENTS}", values=list(seconds), unit="s", goal=goals[0]),
            Figure(key="seconds_after_ready", values=list(after_ready), unit="s", goal=goals[1]),
            Figure(key="rerun_finished", values=list(rerun), goal=goals[2]),
        ]

    def theirs(side: str) -> list[Figure]:
        seconds, rerun = zip(*found[side], strict=True)
        return [
            Figure(key=f"seconds_{AGENTS}", values=list(seconds), unit="s"),
            Figure(key="rerun_finished", values=list(rerun)),
        ]

    how = "suspended (drain), then" if suspended else "not suspended, only"
    return Result(
        name="resume",
        figures=ours("detached", 2, 0.5, 0),
        peers={
            "worker_inside": ours("inside", None, None, None),
            **{peer.name: theirs(peer.name) for peer in peers if peer.available},
        },
        setting=setting(
            f"{runs} runs; {AGENTS} agents of one run, {FINISHED} or {FINISHED + 1} turns finished and {QUEUED} queued "
            f"each, {how} kill -9 of server and worker; from the start of `serve` to the end of the last agent's next "
            f"turn; scripted provider without latency; WAL, synchronous=FULL",
            f"{', '.join(map(str, peers))}: {min(runs, PEER_RUNS)} runs, {FINISHED} turns finished each, WAL, "
            f"synchronous=FULL, from the start of the process to the end of the last next turn",
        ),
    )


if __name__ == "__main__":
    main(measure)
