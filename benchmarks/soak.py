"""Twelve clients on one data folder, all of them doing everything, and anybody may be killed at any moment.

    python benchmarks/soak.py --minutes 10 [--clients 12] [--seed 1]      # what it did, and 0; or what is wrong, and 1

Each client is a process of its own that spawns agents, sends, broadcasts, waits, adds and deletes rules, emits events,
repeats calls under the same key, cancels turns and ends agents. Clients get `kill -9` at random moments and are
replaced; so does the one worker. Model calls fail, time out, are cut off in the middle and call tools that write. In
the end everything is left to finish, and then:

    the file is whole                      integrity_check, foreign_key_check, nothing left in any queue
    what was accepted is there             once each, with the id that its client was told
    every turn has ended exactly once      one ending event each, nothing after it
    order was kept                         in each session, of the turns that ran
    the books balance                      reserved 0; spent = holds = calls = turns; every turn counted once
    nothing was bought twice               one stored answer a round; no tool effect twice; each event routed once

This is a test and no figure: nothing here depends on how fast the machine is.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import environment, scratch

from ksi_mcp.app import App, AppOptions
from ksi_mcp.config import Home
from ksi_mcp.errors import Conflict, Exhausted, Invalid, NotFound, Refused
from ksi_mcp.permissions import OPERATOR, fresh_context

SHARED_AGENTS = 8
"""Living as long as the run: what clients send to most, and what rules point at."""
CLIENT_LIFE_S = (4.0, 40.0)
WORKER_LIFE_S = (3.0, 15.0)
FINISH_S = 300.0
"""For what is left when the clients have stopped."""
FINAL = "('done', 'failed', 'cancelled', 'timed_out')"

SCRIPT = """
defaults: {latency_s: 0.01}
replies:
  - match: {prompt: "/^overload/", round: 1}
    reply: "at last: {{prompt}}"
    fail: {kind: overload, retry_after_s: 0.05, times: 3}
  - match: {prompt: "/^cut/", round: 1}
    reply: "this answer is cut off in the middle of a sentence"
    fail: {kind: mid_stream, times: 2}
  - match: {prompt: "/^refused/"}
    fail: {kind: request}
  - match: {prompt: "/^slow/"}
    reply: "slowly: {{prompt}}"
    latency_s: 0.4
  - match: {prompt: "/^tool/", round: 1}
    tool_calls:
      - {name: event_emit, input: {event: "note:tool", data: {of: "{{prompt}}", n: 1}}}
      - {name: event_emit, input: {event: "note:tool", data: {of: "{{prompt}}", n: 2}}}
default: {reply: "{{agent}} says: {{prompt}}"}
"""
CONFIG = """
provider: scripted
scripted: {script: script.yaml}
worker: {concurrency: 32, idle_s: 0}
budget: {usd: 1000000}
prices: {claude-sonnet-5-5: {input_usd_per_mtok: 2, output_usd_per_mtok: 10}}
"""


# ------------------------------------------------------------------------------------------ a client


class Client:
    """One process's share. What was accepted goes to a file at once, which `kill -9` of this process leaves whole."""

    def __init__(self, app: App, name: str, accepted: Path) -> None:
        self._app = app
        self._name = name
        self._chance = random.Random(name)
        self._accepted = os.open(accepted, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._count = 0
        self._agents: list[str] = []
        self._turns: list[str] = []
        self._rules: list[str] = []

    async def run(self) -> None:
        doings: list[tuple[int, Callable[[], Awaitable[None]]]] = [
            (30, self.send), (8, self.send_and_wait), (5, self.send_twice), (4, self.broadcast), (8, self.wait),
            (8, self.spawn), (8, self.emit), (5, self.add_rule), (3, self.delete_rule), (6, self.cancel),
            (4, self.terminate), (6, self.look),
        ]  # fmt: skip
        weights = [weight for weight, _ in doings]
        while True:
            (_, do) = self._chance.choices(doings, weights)[0]
            # Another client has just ended that agent, or deleted that rule.
            with contextlib.suppress(NotFound, Conflict, Invalid, Refused, Exhausted):
                await do()
            await asyncio.sleep(self._chance.uniform(0, 0.04))

    async def send(self) -> None:
        await self._send(self._somebody())

    async def send_and_wait(self) -> None:
        await self._send(self._somebody(), wait_s=self._chance.uniform(0.1, 3))

    async def send_twice(self) -> None:
        """As a client does that heard nothing the first time."""
        call = {"agent": self._somebody(), "message": self._message(), "idempotency_key": self._next("key")}
        first, second = await self._call("agent_send", **call), await self._call("agent_send", **call)
        if first["turn"] != second["turn"]:
            raise SystemExit(f"one key, two turns: {first['turn']}, {second['turn']}")
        self._note("turn", first["turn"], call["message"])

    async def broadcast(self) -> None:
        message = self._message()
        sent = await self._call("agent_broadcast", filter={"name": "shared*"}, message=message)
        for turn in sent["turns"]:
            self._note("turn", turn["turn"], message)

    async def wait(self) -> None:
        if self._turns:
            some = self._chance.sample(self._turns, min(len(self._turns), 10))
            await self._call("agent_wait", turns=some, timeout_s=self._chance.uniform(0.1, 2))

    async def spawn(self) -> None:
        name = self._next("agent")
        made = await self._call("agent_spawn", name=name, prompt="You help.", capabilities=["base", "messaging"])
        self._agents.append(made["agent"])
        self._note("agent", made["agent"], name)

    async def emit(self) -> None:
        mark = self._next("mark")
        await self._call("event_emit", event=self._chance.choice(["note:free", "note:routed"]), data={"mark": mark})
        self._note("event", mark, mark)

    async def add_rule(self) -> None:
        target = f"agent:shared{self._chance.randrange(SHARED_AGENTS)}"
        rule = {"source_pattern": "note:routed", "target": target, "condition": "data.mark != 'none'"}
        added = await self._call("routing_add_rule", **rule, ttl_s=self._chance.uniform(1, 20))
        self._rules.append(added["rule_id"])

    async def delete_rule(self) -> None:
        if self._rules:
            await self._call("routing_delete_rule", rule_id=self._rules.pop())

    async def cancel(self) -> None:
        if self._turns:
            await self._call("completion_cancel", turn=self._chance.choice(self._turns[-20:]))

    async def terminate(self) -> None:
        if self._agents:
            await self._call("agent_terminate", agent=self._agents.pop(self._chance.randrange(len(self._agents))))

    async def look(self) -> None:
        tool, args = self._chance.choice([
            ("agent_list", {"limit": 50}), ("event_query", {"limit": 50}), ("budget_status", {}),
            ("routing_query_rules", {}), ("agent_history", {"agent": self._somebody()}),
        ])  # fmt: skip
        await self._call(tool, **args)

    async def _send(self, agent: str, **more: Any) -> None:
        message = self._message()
        sent = await self._call("agent_send", agent=agent, message=message, **more)
        self._note("turn", sent["turn"], message)

    async def _call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        return (await self._app.toolbox.call(fresh_context(OPERATOR), tool, arguments)).data

    def _somebody(self) -> str:
        if self._agents and self._chance.random() < 0.5:
            return self._chance.choice(self._agents)
        return f"shared{self._chance.randrange(SHARED_AGENTS)}"

    def _message(self) -> str:
        kinds = ("plain", "plain", "plain", "tool", "slow", "overload", "cut", "refused")
        return self._next(self._chance.choice(kinds))

    def _next(self, kind: str) -> str:
        self._count += 1
        return f"{kind} {self._name} {self._count}".replace(" ", "-" if kind in ("agent", "key", "mark") else " ")

    def _note(self, kind: str, id: str, said: str) -> None:
        if kind == "turn":
            self._turns.append(id)
        os.write(self._accepted, (json.dumps([kind, id, said]) + "\n").encode())


def be_a_client(home: Path, name: str) -> None:
    async def work() -> None:
        async with App(Home(root=home), AppOptions(worker="none", environ={})) as app:
            with contextlib.suppress(asyncio.CancelledError):
                await Client(app, name, home / "accepted" / name).run()

    async def until_told() -> None:
        working = asyncio.create_task(work())
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, working.cancel)
        await working

    asyncio.run(until_told())


# ---------------------------------------------------------------------------------------- the director


@dataclass(slots=True)
class Soak:
    """Keeps clients and a worker alive and kills them, until it is time to look."""

    home: Path
    clients: int
    chance: random.Random
    running: dict[int, tuple[subprocess.Popen[bytes], float]] = field(default_factory=dict)
    worker: tuple[subprocess.Popen[bytes], float] | None = None
    started: int = 0
    killed: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def run(self, seconds: float) -> None:
        until_s = time.monotonic() + seconds
        try:
            while time.monotonic() < until_s and not self.wrong:
                self._keep_worker()
                for slot in range(self.clients):
                    self._keep_client(slot)
                time.sleep(0.05)
            for client, _ in self.running.values():
                client.terminate()
            for client, _ in self.running.values():
                # One that has only just been started is not yet able to end in order.
                self._ended("a client", client.wait(FINISH_S), allowed=(0, -signal.SIGTERM))
            self._stop_worker()
            last = self._start_worker("--until-idle", "0")
            self._ended("the last worker", last.wait(FINISH_S), allowed=(0,))
        finally:
            for process in [client for client, _ in self.running.values()] + ([self.worker[0]] if self.worker else []):
                process.kill()
                process.wait()

    def _keep_client(self, slot: int) -> None:
        process, dies_s = self.running.get(slot, (None, 0.0))
        if process is not None and process.poll() is not None:
            self._ended(f"client {slot}", process.returncode, allowed=(-signal.SIGKILL,))
            process = None
        if process is not None and time.monotonic() > dies_s:
            process.kill()
            process.wait()
            self.killed["clients"] += 1
            process = None
        if process is None:
            self.started += 1
            command = [sys.executable, __file__, "--client", f"c{self.started}", "--home", str(self.home)]
            process = self._start(command)
            self.running[slot] = (process, time.monotonic() + self.chance.uniform(*CLIENT_LIFE_S))

    def _keep_worker(self) -> None:
        if self.worker is not None:
            process, dies_s = self.worker
            if process.poll() is not None:
                self._ended("the worker", process.returncode, allowed=())
            elif time.monotonic() > dies_s:
                self._stop_worker()
                self.killed["workers"] += 1
        if self.worker is None:
            self.worker = (self._start_worker(), time.monotonic() + self.chance.uniform(*WORKER_LIFE_S))

    def _stop_worker(self) -> None:
        if self.worker is not None:
            self.worker[0].kill()
            self.worker[0].wait()
            self.worker = None

    def _start_worker(self, *more: str) -> subprocess.Popen[bytes]:
        return self._start([sys.executable, "-m", "ksi_mcp", "worker", *more])

    def _start(self, command: list[str]) -> subprocess.Popen[bytes]:
        with (self.home / "log").open("ab") as log:
            return subprocess.Popen(
                command, env=environment(self.home), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def _ended(self, who: str, code: int, *, allowed: tuple[int, ...]) -> None:
        if code not in allowed:
            words = (self.home / "log").read_text("utf-8", "replace")[-3000:]
            self.wrong.append(f"{who} ended with {code}:\n{words}")


async def prepare(home: Path) -> None:
    (home / "accepted").mkdir()
    (home / "script.yaml").write_text(SCRIPT, "utf-8")
    (home / "config.yaml").write_text(CONFIG, "utf-8")
    async with App(Home(root=home), AppOptions(worker="none", environ={})) as app:
        for number in range(SHARED_AGENTS):
            made = {"name": f"shared{number}", "prompt": "You help.", "capabilities": ["base", "messaging"]}
            await app.toolbox.call(fresh_context(OPERATOR), "agent_spawn", made)


# ------------------------------------------------------------------------------------------- the look


class Look:
    """What must hold once everything has ended. `wrong` says what does not."""

    def __init__(self, home: Path) -> None:
        self._db = sqlite3.connect(home / "ksi.db")
        self.wrong: list[str] = []
        self._accepted = [
            json.loads(line) for path in sorted((home / "accepted").iterdir()) for line in path.open(encoding="utf-8")
        ]

    def all(self) -> Counter[str]:
        """Look at everything; how much there was of it."""
        self._whole()
        self._turns()
        self._order()
        self._books()
        self._once()
        counted = Counter(dict.fromkeys(("turn", "agent", "event"), 0))
        counted.update(kind for kind, _, _ in self._accepted)
        for state, turns in self._rows("SELECT state, COUNT(*) FROM turn GROUP BY state"):
            counted[f"turns {state}"] = turns
        for state, calls in self._rows("SELECT state, COUNT(*) FROM provider_call GROUP BY state"):
            counted[f"calls {state}"] = calls
        self._db.close()
        return counted

    def _whole(self) -> None:
        self._expect("integrity_check", self._rows("PRAGMA integrity_check"), [("ok",)])
        self._expect("foreign_key_check", self._rows("PRAGMA foreign_key_check"), [])
        self._none("events that were not routed", "SELECT event_id FROM outbox")
        self._none("waits of nobody", "SELECT turn_id FROM turn_wait")
        self._none("sessions that count wrong", "SELECT session_id, pending FROM session WHERE pending <> 0")

    def _turns(self) -> None:
        self._none("turns that have not ended", f"SELECT turn_id, state FROM turn WHERE state NOT IN {FINAL}")
        ended = "name IN ('completion:result', 'completion:failed', 'completion:cancelled')"
        ends = Counter(turn for (turn,) in self._rows(f"SELECT data ->> '$.turn' FROM event WHERE {ended}"))
        known = dict(self._rows("SELECT turn_id, prompt FROM turn"))
        self._expect("turns with no ending event", sorted(set(known) - set(ends)), [])
        self._expect("turns that ended twice", [turn for turn, times in ends.items() if times > 1], [])
        for kind, id, said in self._accepted:
            if kind == "turn" and known.get(id) != said:
                self.wrong.append(f"turn {id} was accepted with {said!r} and is {known.get(id)!r}")
        agents = dict(self._rows("SELECT agent_id, name FROM agent"))
        for kind, id, said in self._accepted:
            if kind == "agent" and agents.get(id) != said:
                self.wrong.append(f"agent {id} was accepted as {said!r} and is {agents.get(id)!r}")
        marks = Counter(mark for (mark,) in self._rows("SELECT data ->> '$.mark' FROM event WHERE name LIKE 'note:%'"))
        lost = [mark for kind, mark, _ in self._accepted if kind == "event" and marks[mark] != 1]
        self._expect("events that were accepted and are not there once", lost, [])
        # A message is sent once by its client; only a broadcast has several turns, one a session.
        sent = "SELECT prompt, session_id FROM turn WHERE created_by = 'operator' AND prompt GLOB '* c[0-9]*'"
        self._none("messages that became two turns", f"{sent} GROUP BY prompt, session_id HAVING COUNT(*) > 1")

    def _order(self) -> None:
        ran = "SELECT session_id, seq, finished_at_ms FROM turn WHERE state IN ('done', 'failed') ORDER BY 1, 2"
        last: dict[str, int] = {}
        for session, seq, at_ms in self._rows(ran):
            if at_ms < last.get(session, 0):
                self.wrong.append(f"turn {seq} of {session} ended before the one before it")
            last[session] = at_ms

    def _books(self) -> None:
        account = "SELECT spent_usd_micros, spent_tokens, spent_turns FROM account WHERE account_id = 'global'"
        ((usd, tokens, turns),) = self._rows(account)
        self._none(
            "accounts with reservations",
            "SELECT account_id FROM account WHERE reserved_usd_micros <> 0 OR reserved_tokens <> 0",
        )
        self._none("holds that are open", "SELECT hold_id FROM hold WHERE state IN ('reserved', 'sent')")
        self._none("calls that are open", "SELECT call_id FROM provider_call WHERE state = 'sent'")
        sums = {
            "holds": "SELECT TOTAL(cost_usd_micros), TOTAL(cost_tokens) FROM hold",
            "turns": "SELECT TOTAL(cost_usd_micros), TOTAL(tokens) FROM turn",
            "accounts below": "SELECT TOTAL(spent_usd_micros), TOTAL(spent_tokens) FROM account "
            "WHERE parent_id = 'global'",
        }
        for what, sql in sums.items():
            self._expect(f"the sum of {what}", self._rows(sql), [(usd, tokens)])
        self._expect("the sum of calls", self._rows("SELECT TOTAL(cost_usd_micros) FROM provider_call"), [(usd,)])
        called = "SELECT COUNT(DISTINCT turn_id) FROM provider_call"
        self._expect("turns on the account", self._rows(called), [(turns,)])

    def _once(self) -> None:
        answered = "SELECT turn_id, round FROM provider_call WHERE state = 'answered'"
        self._none("rounds that were bought twice", f"{answered} GROUP BY turn_id, round HAVING COUNT(*) > 1")
        emitted = "SELECT data ->> '$.of', data ->> '$.n' FROM event WHERE name = 'note:tool'"
        pairs = Counter(self._rows(emitted))
        # A broadcast gives several agents the same words.
        asked = dict(self._rows("SELECT prompt, COUNT(*) FROM turn WHERE prompt LIKE 'tool %' GROUP BY prompt"))
        self._expect("tools that ran twice", [pair for pair, times in pairs.items() if times > asked[pair[0]]], [])
        delivered = "SELECT data ->> '$.event_id', data ->> '$.rule_id' FROM event WHERE name = 'routing:delivered'"
        twice = [pair for pair, times in Counter(self._rows(delivered)).items() if times > 1]
        self._expect("events that were delivered twice by one rule", twice, [])
        made = "SELECT COUNT(*) FROM turn WHERE cause_id LIKE 'event:%'"
        count = "SELECT COUNT(*) FROM event WHERE name = 'routing:delivered'"
        self._expect("turns made by rules", self._rows(made), self._rows(count))

    def _rows(self, sql: str) -> list[tuple[Any, ...]]:
        return self._db.execute(sql).fetchall()

    def _none(self, what: str, sql: str) -> None:
        self._expect(what, self._rows(sql), [])

    def _expect(self, what: str, found: Any, wanted: Any) -> None:
        if found != wanted:
            self.wrong.append(f"{what}: {str(found)[:500]} instead of {str(wanted)[:200]}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Twelve clients, one data folder, and kill -9 at random.")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1, help="who is killed when")
    parser.add_argument("--keep", action="store_true", help="keep the data folder of a run that failed")
    parser.add_argument("--client", help=argparse.SUPPRESS)
    parser.add_argument("--home", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.client is not None:
        be_a_client(args.home, args.client)
        return 0
    with scratch() as home:
        asyncio.run(prepare(home))
        soak = Soak(home=home, clients=args.clients, chance=random.Random(args.seed))
        soak.run(args.minutes * 60)
        look = Look(home)
        counted = look.all()
        wrong = soak.wrong + look.wrong
        if wrong and args.keep:
            kept = shutil.copytree(home, home.with_name(f"{home.name}-failed"))
            wrong.append(f"the data folder is {kept.name}")
    print(f"{args.minutes:g} minutes, {args.clients} clients; killed: {dict(soak.killed)}")
    print(", ".join(f"{count} {what}" for what, count in counted.items()))
    print("\n".join(wrong) if wrong else "all as it must be")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
