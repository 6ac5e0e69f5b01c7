"""A process that is killed at any step between a file and its row leaves nothing half done that is not healed.

One process of its own forks a victim for each step: a hook of the interpreter counts what is done to files, and
kills right before the n-th of it, until a victim lives to the end.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

_OLD = "# mine\nname: p\ntype: agent\nversion: 1.0.0\nprompt: Old.   # by hand\n"

_SCRIPT = r"""
import asyncio, json, os, signal, sys
from pathlib import Path
from ksi_mcp.clock import SystemClock
from ksi_mcp.compositions import files, store
from ksi_mcp.compositions.editing import update
from ksi_mcp.compositions.files import FoundFile
from ksi_mcp.compositions.library import Library
from ksi_mcp.compositions.model import parse_composition
from ksi_mcp.db.sqlite import open_sqlite
from ksi_mcp.errors import KsiError
from ksi_mcp.events.journal import Journal
from ksi_mcp.events.model import EventFilter
from ksi_mcp.permissions import OPERATOR, fresh_context

WATCHED = {"os.link", "os.rename", "os.remove", "os.mkdir", "open", "os.truncate"}
OLD = sys.argv[3]

async def at(home, work):
    clock = SystemClock()
    db = await open_sqlite(str(home / "ksi.db"), clock)
    library = Library(Journal(db, clock), builtin=home / "builtin", user=home / "user", project=None)
    try:
        return await work(library)
    finally:
        await db.close()

async def operate(library, operation):
    ctx = fresh_context(OPERATOR)
    if operation == "create":
        await library.create(ctx, {"name": "new", "type": "component", "content": "one\ntwo\n" * 500})
    elif operation == "fork":
        await library.fork(ctx, "p", "child", "why", {"prompt": "New."})
    elif operation == "update":
        await update(library, ctx, "p", modifications={"prompt": "New."}, reason="why")
    elif operation == "file":
        files.create_file(library.roots["user"], "agents/alone.yaml", "name: alone\ntype: agent\nprompt: p\n")
        os.kill(os.getpid(), signal.SIGKILL)
    elif operation == "row":
        ghost = parse_composition({"name": "ghost", "type": "agent", "prompt": "p"}, what="it")
        file = FoundFile(path="agents/ghost.yaml", mtime_ns=1, size=1)
        await library.journal.commit(lambda tx: store.put(tx, "user", file, ghost))
        os.kill(os.getpid(), signal.SIGKILL)

async def victim(library, operation, step, home):
    await library.refresh()
    left = step
    def hook(event, args):
        nonlocal left
        inside = event in WATCHED and args and isinstance(args[0], (str, Path)) and "/user" in str(args[0])
        if inside or (event == "open" and args and args[0] == str(home / "user")):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    await operate(library, operation)

async def survey(library, operation):
    root = library.roots["user"]
    seen = {p.relative_to(root).as_posix(): p.read_text() for p in root.rglob("*") if p.is_file() and p.name[0] != "."}
    report = await library.refresh()
    heads = {head.name: head.hash for head in await library.journal.read(library.catalog.heads)}
    on_disk = {}
    for path in seen:
        found = files.read_composition(root, path)
        on_disk[found.name] = found.hash
    told = None
    try:
        if operation in ("create", "fork", "update"):
            await operate(library, operation)
    except KsiError as error:
        told = error.text()
    page = await library.journal.query(EventFilter(), limit=100)
    return {
        "problems": [problem.message for problem in report.problems], "indexed": heads, "on_disk": on_disk,
        "texts": seen, "repeated": told, "events": [event.name for event in page.events],
        "versions": {head.name: head.version for head in await library.journal.read(library.catalog.heads)},
        "again": (await library.refresh()).indexed,
    }

def forked(work):
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        found = asyncio.run(work())
        with os.fdopen(writer, "w") as pipe:
            pipe.write(json.dumps(found))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    return os.waitpid(pid, 0)[1], json.loads(text) if text else None

found = []
operation = sys.argv[2]
for step in range(1, 40):
    home = Path(sys.argv[1]) / str(step)
    at_step = -1 if operation in ("file", "row") else step  # these kill themselves
    (home / "user").mkdir(parents=True)
    (home / "user/p.yaml").write_text(OLD)
    status, _ = forked(lambda: at(home, lambda library: victim(library, operation, at_step, home)))
    checked, survey_found = forked(lambda: at(home, lambda library: survey(library, operation)))
    found.append({"killed": os.WIFSIGNALED(status), "status": checked, **(survey_found or {})})
    if not os.WIFSIGNALED(status) or operation in ("file", "row"):
        break
print(json.dumps(found))
"""


def _killed(tmp_path: Path, operation: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-c", _SCRIPT, str(tmp_path), operation, _OLD]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=50)
    assert done.returncode == 0, done.stderr[-3_000:]
    steps: list[dict[str, Any]] = json.loads(done.stdout)
    for step in steps:
        assert step["status"] == 0, done.stderr[-3_000:]
        assert step["problems"] == []
        assert step["indexed"] == step["on_disk"]  # the first look after the restart
        assert step["again"] == 0
    return steps


@pytest.mark.parametrize(
    ("operation", "path", "event"),
    [
        ("create", "components/new.yaml", "composition:created"),
        ("fork", "agents/child.yaml", "composition:forked"),
        ("update", "p.yaml", "composition:updated"),
    ],
)
def test_killed_at_any_step_the_file_is_whole_or_old_and_repeating_the_call_completes_it(
    tmp_path: Path, operation: str, path: str, event: str
) -> None:
    steps = _killed(tmp_path, operation)
    assert len(steps) >= 5
    assert [step["killed"] for step in steps] == [True] * (len(steps) - 1) + [False]
    whole = steps[-1]["texts"][path]
    for step in steps:
        if operation != "fork":  # whose lineage has the time in it
            assert step["texts"].get(path) in {whole, None if operation != "update" else _OLD}
        assert set(step["texts"]) <= {"p.yaml", path}
        assert step["events"] == [event]
    for step in steps[:-1]:
        assert step["repeated"] is None
    assert len({json.dumps(step["versions"], sort_keys=True) for step in steps}) == 1


def test_a_file_without_a_row_and_a_row_without_a_file_are_healed_by_the_next_start(tmp_path: Path) -> None:
    (alone,) = _killed(tmp_path / "file", "file")
    assert alone["killed"]
    assert set(alone["indexed"]) == {"p", "alone"}
    (ghost,) = _killed(tmp_path / "row", "row")
    assert ghost["killed"]
    assert set(ghost["indexed"]) == {"p"}
