"""`index`: how long a library of 1,000 files takes to be read, looked through and forked from.

The files are of the kinds and sizes that libraries have: patterns with agents, routing and a strategy, profiles in
YAML, components in Markdown with front matter; 2 MB together. Each is measured from a call of a tool to its answer,
in a process of its own:

* cold: the first `composition_discover` with an empty index: every file is read, checked and indexed, durably;
* warm: the same in a new process that finds the index as the last one left it: every file is looked at, none is read;
* discover: words, tags and a filter on what the documents say, drawn at random; half of the calls have the filter;
* fork: a fork of one of the patterns with two changes: checks, file and folder on the disk, one commit.

Beside it what the disk needs for one commit (4 KiB, appended, `fdatasync`).
"""

from __future__ import annotations

import asyncio
import cProfile
import pstats
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from bench_latency import fsync
from harness import Figure, Result, main, run_child, scratch, setting, take_turns

from ksi_mcp.app import App, AppOptions
from ksi_mcp.config import Config, Home
from ksi_mcp.permissions import OPERATOR, fresh_context

FILES = 1_000
DISCOVERIES = 300
FORKS = 100
WARM_UP = 5
TAGS = ("analysis", "research", "debate", "review", "triage", "writing", "planning", "code")
SENTENCES = (
    "Weigh each claim against the evidence you were given, and say which parts of it you could not check.",
    "Ask for what is missing before you begin; a short question now is cheaper than a wrong answer later.",
    "Keep your answer under three hundred words unless {{style|default: a report}} asks for more than that.",
    "When two of the others disagree, name the point on which they do, and what would decide it.",
    "Do not repeat what is already settled. Begin with what changed since the last round, then why.",
)


def text(chance: random.Random, sentences: int) -> str:
    return "\n".join(chance.choice(SENTENCES) for _ in range(sentences)) + "\n"


def indented(prose: str, spaces: int) -> str:
    return "".join(f"{' ' * spaces}{line}\n" for line in prose.splitlines())


def pattern(n: int, chance: random.Random) -> str:
    roles = ["moderator", *(f"worker_{k}" for k in range(chance.randint(2, 4)))]
    agents = "".join(
        f"  {role}:\n    composition: profile_{10 * chance.randrange(FILES // 10) + 4:04}\n    prompt: |\n"
        f"{indented(text(chance, 3), 6)}    vars: {{style: short, round: {k}}}\n"
        for k, role in enumerate(roles)
        if k or n % 2
    )
    routing = "".join(f'  - from: {role}\n    to: moderator\n    pattern: "work:*"\n' for role in roles[1:])
    own = roles if n % 2 else roles[1:]
    routing = routing if n % 2 else ""
    return (
        f"# A pattern that somebody wrote by hand.\nname: pattern_{n:04}\ntype: orchestration\nversion: 1.{n % 7}.0\n"
        f'description: "{chance.choice(SENTENCES)[:70]} Number {n}."\ntags: [{", ".join(chance.sample(TAGS, 3))}]\n'
        f"author: somebody\ncreated: 2025-0{1 + n % 9}-1{n % 10}\n"
        f"variables:\n  topic: {{required: false, default: bees}}\n"
        f"agents:\n{agents}routing:\n{routing or '  []'}\n"
        f"orchestration_logic:\n  description: In rounds, with {len(own)}.\n"
        f"  strategy: |\n{indented(text(chance, 12), 4)}"
        f"metadata: {{difficulty: {n % 5}, region: r{n % 11}}}\n"
        f"performance: {{avg_score: {chance.random():.3f}, runs: {n % 40}}}\n"
    )


def profile(n: int, chance: random.Random) -> str:
    return (
        f"name: profile_{n:04}\ntype: agent\nversion: 1.0.0\ndescription: Profile {n}\n"
        f"tags: [{', '.join(chance.sample(TAGS, 2))}]\ncapabilities: [base, messaging]\nvariables:\n  style: a report\n"
        f"prompt: |\n{indented(text(chance, 8), 2)}metadata: {{difficulty: {n % 5}}}\n"
    )


def component(n: int, chance: random.Random) -> str:
    return (
        f"---\ncomponent_type: persona\nname: component_{n:04}\nversion: 1.0.0\ndescription: Component {n}\n"
        f"tags:\n  - {chance.choice(TAGS)}\n---\n# Component {n}\n\n{text(chance, 12)}"
    )


def write_library(folder: Path) -> None:
    """1,000 files: 400 patterns, 300 profiles, 300 components; every profile that is named is there."""
    chance = random.Random(1)
    for kind in ("orchestrations", "agents", "components"):
        (folder / kind).mkdir(parents=True)
    for n in range(FILES):
        share = n % 10
        if share < 4:
            path, content = f"orchestrations/pattern_{n:04}.yaml", pattern(n, chance)
        elif share < 7:
            path, content = f"agents/profile_{n:04}.yaml", profile(n, chance)
        else:
            path, content = f"components/component_{n:04}.md", component(n, chance)
        (folder / path).write_text(content)


def app_at(home: Path) -> App:
    return App(Home(root=home), AppOptions(worker="none", environ={}), config=Config(provider="scripted"))


async def first_discovery(home: Path) -> list[float]:
    """[ms of the first discovery, compositions that it found]."""
    async with app_at(home) as app:
        began = time.perf_counter()
        done = await app.toolbox.call(fresh_context(OPERATOR), "composition_discover", {"limit": 1})
        took = (time.perf_counter() - began) * 1000
        return [took, float(done.data["total"])]


def wanted(chance: random.Random) -> dict[str, Any]:
    query: dict[str, Any] = {"limit": 20}
    if chance.random() < 0.7:
        query["text"] = chance.choice(("claim evidence", "disagree", "pattern 12", "report", "component 7"))
    if chance.random() < 0.5:
        query["tags"] = [chance.choice(TAGS)]
    if chance.random() < 0.5:
        query["metadata_filter"] = {"performance.avg_score": {">": chance.random()}, "metadata.difficulty": {"<": 4}}
    return query


async def discover(app: App, chance: random.Random) -> float:
    query = wanted(chance)
    began = time.perf_counter()
    await app.toolbox.call(fresh_context(OPERATOR), "composition_discover", query)
    return (time.perf_counter() - began) * 1000


async def fork(app: App, n: int) -> float:
    args = {
        "parent": f"pattern_{(n % 100) * 10:04}",
        "name": f"fork_{n:04}",
        "reason": "to see how long it takes",
        "modifications": {"agents.worker_0.prompt": f"another one {n}", "metadata.difficulty": 9},
    }
    began = time.perf_counter()
    await app.toolbox.call(fresh_context(OPERATOR), "composition_fork", args)
    return (time.perf_counter() - began) * 1000


async def working(home: Path, what: str) -> list[float]:
    """[median, 99th percentile] in ms, of discoveries or forks in a server that has been running for a moment."""
    chance = random.Random(2)
    async with app_at(home) as app:
        waits = []
        for n in range(WARM_UP + (DISCOVERIES if what == "discover" else FORKS)):
            waits.append(await (discover(app, chance) if what == "discover" else fork(app, n)))
            await asyncio.sleep(random.uniform(0.005, 0.02))
    return [statistics.median(waits[WARM_UP:]), statistics.quantiles(waits[WARM_UP:], n=100)[98]]


def child_profile(args: list[str]) -> None:
    """`bench_index.py --child profile cold|warm|discover|fork`: where the time of the event loop's thread goes."""
    what = args[0]
    with scratch() as home:
        write_library(Home(root=home).compositions)
        if what != "cold":
            asyncio.run(first_discovery(home))
        run = cProfile.Profile()
        run.enable()
        asyncio.run(first_discovery(home) if what in {"cold", "warm"} else working(home, what))
        run.disable()
        pstats.Stats(run, stream=sys.stdout).sort_stats("tottime").print_stats(25)


def measure(runs: int) -> Result:
    def library() -> Any:
        with scratch() as home:
            write_library(Home(root=home).compositions)
            parts = ("first", "first", "discover", "fork")
            found = [run_child(__file__, part, str(home), home=home) for part in parts]
            if any(first[1] < FILES for first in found[:2]):
                raise RuntimeError(f"only {found[0][1]:g} and {found[1][1]:g} of {FILES} were found")
            return [found[0][0], found[1][0], *found[2], *found[3]]

    def disk() -> Any:
        with scratch() as home:
            return run_child(__file__, "fsync", str(home), home=home)

    found = take_turns(runs, {"library": library, "fsync": disk})

    def figure(side: str, key: str, part: int, goal: float | None = None) -> Figure:
        return Figure(key=key, values=[run[part] for run in found[side]], unit="ms", goal=goal)

    return Result(
        name="index",
        figures=[
            figure("library", f"cold_ms_{FILES}", 0, 3_000),
            figure("library", f"warm_ms_{FILES}", 1, 200),
            figure("library", "discover_p50_ms", 2, 10),
            figure("library", "discover_p99_ms", 3),
            figure("library", "fork_p50_ms", 4, 20),
            figure("library", "fork_p99_ms", 5),
        ],
        peers={"fsync": [figure("fsync", "p50_ms", 0), figure("fsync", "p99_ms", 1)]},
        setting=setting(
            f"{runs} runs; {FILES} files (400 patterns, 300 profiles, 300 components, 2 MB) in the page cache; "
            f"from the call of a tool to its answer; {DISCOVERIES} discoveries and {FORKS} forks, 5 to 20 ms apart; "
            f"WAL, synchronous=FULL; fsync: 4 KiB appended and fdatasync"
        ),
    )


CHILDREN = {
    "first": lambda args: asyncio.run(first_discovery(Path(args[0]))),
    "discover": lambda args: asyncio.run(working(Path(args[0]), "discover")),
    "fork": lambda args: asyncio.run(working(Path(args[0]), "fork")),
    "fsync": lambda args: fsync(Path(args[0])),
    "profile": child_profile,
}

if __name__ == "__main__":
    main(measure, CHILDREN)
