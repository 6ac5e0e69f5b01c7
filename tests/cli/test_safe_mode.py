"""Safe mode through real processes: events wait, turns run, and a start without it delivers what waited."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ksi_mcp.config import Config

ROOT = Path(__file__).parent.parent.parent
ENV = {**os.environ, "PYTHONPATH": str(ROOT)}
SOON_S = 30.0


def ksi(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ksi_mcp", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=ENV, timeout=60, check=False, **more)


def call(home: Path, tool: str, **args: Any) -> dict[str, Any]:
    done = ksi("call", tool, json.dumps(args), "--home", str(home), "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def count(home: Path, sql: str) -> int:
    connection = sqlite3.connect(home / "ksi.db")
    try:
        return int(connection.execute(sql).fetchone()[0])
    finally:
        connection.close()


def until(home: Path, sql: str, wanted: int) -> None:
    """Until another process has written it."""
    end = time.monotonic() + SOON_S
    while count(home, sql) != wanted:
        assert time.monotonic() < end, f"{sql} is {count(home, sql)}"
        time.sleep(0.05)


def doctor(home: Path) -> dict[str, Any]:
    return json.loads(ksi("doctor", "--home", str(home), "--json").stdout)["routing"]  # type: ignore[no-any-return]


def test_a_bad_table_is_mended_in_safe_mode_and_nothing_is_lost(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "config.yaml").write_text("provider: scripted\nworker: {idle_s: 1}\n")
    assert ksi("worker", "--home", str(home), "--until-idle", "0", "--safe-mode").returncode == 0
    assert doctor(home)["paused"] is True
    assert "PAUSED (safe mode)" in ksi("doctor", "--home", str(home)).stdout

    bad = call(home, "routing_add_rule", source_pattern="task:*", target="log:wrong")["rule_id"]
    emitted = call(home, "event_emit", event="task:new", data={"id": 7})
    assert (emitted["routing_paused"], emitted["matched_rules"]) == (True, [bad])
    # A single call starts a worker: it runs the turn, and leaves safe mode as it is.
    call(home, "agent_spawn", name="one", prompt="x")
    assert call(home, "agent_send", agent="one", message="hi", wait_s=20)["text"] == "[one] hi"
    call(home, "routing_modify_rule", rule_id=bad, updates={"target": "log:right"})
    assert doctor(home)["waiting"] > 0
    assert count(home, "SELECT COUNT(*) FROM event WHERE name LIKE 'log:%'") == 0

    served = subprocess.Popen(
        [sys.executable, "-m", "ksi_mcp", "serve", "--home", str(home)],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENV,
    )  # fmt: skip
    try:
        until(home, "SELECT COUNT(*) FROM event WHERE name = 'log:right'", 1)
        until(home, "SELECT COUNT(*) FROM outbox", 0)
    finally:
        served.communicate(timeout=30)
    assert count(home, "SELECT COUNT(*) FROM event WHERE name = 'log:wrong'") == 0
    assert doctor(home) == {
        "paused": False, "safe_mode_in_config": False, "waiting": 0, "dead_letters": 0, "oldest_dead_letter_s": None,
    }  # fmt: skip


def test_a_server_in_safe_mode_stops_a_worker_that_is_at_work_already(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "config.yaml").write_text("provider: scripted\n")
    call(home, "routing_add_rule", source_pattern="task:*", target="log:seen")
    worker = subprocess.Popen(
        [sys.executable, "-m", "ksi_mcp", "worker", "--home", str(home)], stderr=subprocess.DEVNULL, env=ENV
    )
    try:
        call(home, "event_emit", event="task:new")
        until(home, "SELECT COUNT(*) FROM event WHERE name = 'log:seen'", 1)
        environ = {**ENV, "KSI_SAFE_MODE": "1"}
        served = subprocess.run(
            [sys.executable, "-m", "ksi_mcp", "serve", "--home", str(home)],
            input="", capture_output=True, text=True, env=environ, timeout=60, check=False,
        )  # fmt: skip
        assert served.returncode == 0, served.stderr
        assert call(home, "event_emit", event="task:new")["routing_paused"] is True
        assert call(home, "routing_stats")["waiting"] > 0
        assert count(home, "SELECT COUNT(*) FROM event WHERE name = 'log:seen'") == 1
    finally:
        worker.terminate()
        worker.wait(30)


def test_whoever_starts_a_server_or_worker_decides_and_the_configuration_may_insist() -> None:
    plain = Config()
    assert plain.routing.safe_mode is None  # a single call leaves it as it is
    assert plain.with_safe_mode(asked=False).routing.safe_mode is False
    assert plain.with_safe_mode(asked=True).routing.safe_mode is True
    insists = Config.model_validate({"routing": {"safe_mode": True}})
    assert insists.with_safe_mode(asked=False).routing.safe_mode is True
