"""Comparing, merging and tracing compositions through their tools: nothing is written unless all of it is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ksi_mcp import yamlio
from ksi_mcp.app import App, AppOptions
from ksi_mcp.compositions import files
from ksi_mcp.config import Config, Home
from ksi_mcp.errors import Conflict, Invalid, KsiError, NotFound, Refused
from ksi_mcp.events.model import EventFilter
from ksi_mcp.permissions import OPERATOR, agent_actor, fresh_context
from ksi_mcp.tools.bounding import MAX_RESULT_CHARS, result_text

PATTERN = """\
# How we judge.
name: trial
type: orchestration
version: 1.2.3
agents:
  judge:
    prompt: Judge.  # briefly
  critic:
    prompt: Criticise.
routing:
  - {from: judge, to: critic, pattern: 'verdict:*'}
orchestration_logic:
  strategy: |
    START
    AWAIT
    VOTE
learnings: [it works]
unheard_of: {kept: 2024-01-01}
"""


class Opened:
    def __init__(self, app: App, root: Path) -> None:
        self.app, self.root = app, root

    async def call(self, tool: str, **args: Any) -> dict[str, Any]:
        done = await self.app.toolbox.call(fresh_context(OPERATOR), tool, args)
        assert len(result_text(done.data)) <= MAX_RESULT_CHARS
        return done.data

    async def put(self, text: str, name: str = "trial") -> None:
        path = self.root / "orchestrations" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        await self.app.services.library.refresh()

    def text(self, name: str = "trial") -> str:
        return (self.root / "orchestrations" / f"{name}.yaml").read_text()

    def everything(self) -> dict[str, tuple[bytes, int]]:
        found = [path for path in sorted(self.root.rglob("*")) if path.is_file()]
        return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in found}

    async def events(self, name: str) -> list[dict[str, Any]]:
        page = await self.app.services.journal.query(EventFilter(), limit=100)
        return [event.data for event in page.events if event.name == name]


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Opened]:
    async with App(Home(root=tmp_path), AppOptions(worker="none"), config=Config(provider="scripted")) as app:
        house = Opened(app, app.services.library.roots["user"])
        await house.put(PATTERN)
        await house.call("composition_fork", parent="trial", name="fork", reason="faster")
        yield house


async def _change(opened: Opened, name: str, **modifications: Any) -> None:
    path = opened.root / "orchestrations" / f"{name}.yaml"
    document = yamlio.safe_load(path.read_text(), what="it")
    for dotted, value in modifications.items():
        *way, last = dotted.split("__")
        here = document
        for key in way:
            here = here[key]
        here[last] = value
    path.write_text(yamlio.dump(document))
    await opened.app.services.library.refresh()


async def test_a_diff_names_the_versions_and_every_change(opened):
    await _change(opened, "fork", agents__judge__prompt="Judge quickly.", orchestration_logic__strategy="START\nVOTE\n")
    found = await opened.call("composition_diff", a="trial", b="fork")
    assert found["a"].startswith("trial@")
    changes = {change["path"]: change for change in found["changes"]}
    assert changes["agents.judge.prompt"] == {
        "path": "agents.judge.prompt",
        "kind": "changed",
        "section": "agents",
        "before": "Judge.",
        "after": "Judge quickly.",
    }
    assert changes["orchestration_logic.strategy"]["hunk"] == "@@ -2,1 +2,0 @@\n-AWAIT"
    assert changes["orchestration_logic.strategy"]["section"] == "dsl"
    assert found["total"] == len(found["changes"]) == sum(found["sections"].values())
    same = await opened.call("composition_diff", a="trial", b=found["a"])
    assert (same["changes"], same["total"]) == ([], 0)
    with pytest.raises(NotFound, match="unknown composition"):
        await opened.call("composition_diff", a="trial", b="trail")


async def test_a_long_diff_comes_in_pages(opened):
    await _change(opened, "fork", extra={f"key{n}": "x" * 50 for n in range(5)}, more="z" * 100_000)
    await _change(opened, "trial", **{f"k{n}": "y" * 500 for n in range(400)})
    seen: list[str] = []
    cursor: str | None = None
    while True:
        page = await opened.call("composition_diff", a="trial", b="fork", **({"cursor": cursor} if cursor else {}))
        seen += [change["path"] for change in page["changes"]]
        cursor = page.get("cursor")
        if cursor is None:
            break
    assert len(seen) == len(set(seen)) == page["total"] > 400
    first = (await opened.call("composition_diff", a="trial", b="fork"))["cursor"]
    await _change(opened, "fork", agents__judge__prompt="Changed between two pages.")
    for bad in (first, "x", "-1", "99999999", "9" * 5_000, "²"):
        with pytest.raises(Invalid, match="cursor"):
            await opened.call("composition_diff", a="trial", b="fork", cursor=bad)


async def test_a_merge_writes_the_next_version_and_leaves_the_rest_of_the_file_as_it_is(opened):
    await opened.put(PATTERN.replace("Criticise.", "Criticise kindly."))
    await _change(opened, "fork", agents__judge__prompt="Judge quickly.", learnings=["so does this"])
    merged = await opened.call("composition_merge", source="fork", target="trial")
    assert merged["written"] is True
    assert merged["version"] == "1.2.4"
    text = opened.text()
    assert text.startswith("# How we judge.\nname: trial\n")
    assert "Judge quickly.  # briefly" in text
    assert "Criticise kindly." in text
    document = yamlio.safe_load(text, what="it")
    assert document["learnings"] == ["it works", "so does this"]
    assert document["unheard_of"] == {"kept": "2024-01-01"}
    (entry,) = document["lineage"]["improvements"]
    assert (entry["merged"], entry["strategy"], entry["author"]) == ("fork@1.0.0", "three_way", "operator")
    (event,) = await opened.events("composition:merged")
    assert (event["name"], event["source_hash"], event["hash"][:12]) == ("trial", entry["hash"], merged["hash"])
    # What is merged is merged: doing it again finds nothing, and writes nothing.
    before = opened.everything()
    again = await opened.call("composition_merge", source="fork", target="trial")
    assert (again["written"], again["note"]) == (False, "target has all of it already")
    assert opened.everything() == before
    assert len(await opened.events("composition:merged")) == 1
    # The next merge starts from here: neither what was merged nor what was resolved comes up again.
    await _change(opened, "fork", agents__judge__prompt="Judge at once.")
    later = await opened.call("composition_merge", source="fork", target="trial")
    assert (later["written"], later["changed"]) == (True, 1)
    # And the version before the merges is still there.
    kept = await opened.call("composition_get", name=f"trial@{event['target_hash'][:12]}")
    assert kept["document"]["agents"]["critic"]["prompt"] == "Criticise kindly."


async def test_conflicts_are_listed_and_nothing_is_written_until_they_are_resolved(opened):
    strategy = "START {}\nAWAIT\nVOTE\n"
    for name, word in (("trial", "ours"), ("fork", "theirs")):
        await _change(
            opened, name, agents__judge__prompt=f"Judge {word}.", orchestration_logic__strategy=strategy.format(word)
        )
    await _change(opened, "fork", extra=1)
    before = opened.everything()
    found = await opened.call("composition_merge", source="fork", target="trial")
    assert found["written"] is False
    assert found["conflicts"] == [
        {"path": "agents.judge.prompt", "base": "Judge.", "ours": "Judge ours.", "theirs": "Judge theirs."},
        {"path": "orchestration_logic.strategy[1]", "base": "START", "ours": "START ours", "theirs": "START theirs"},
    ]
    half = await opened.call(
        "composition_merge", source="fork", target="trial", resolve={"agents.judge.prompt": "theirs"}
    )
    assert [conflict["path"] for conflict in half["conflicts"]] == ["orchestration_logic.strategy[1]"]
    for resolve in ({"nowhere": "ours"}, {"agents.judge.prompt": {"value": None}, "../x": 1}, {"": "theirs"}):
        with pytest.raises(Invalid, match="no conflict at"):
            await opened.call("composition_merge", source="fork", target="trial", resolve=resolve)
    with pytest.raises(Invalid, match="is lines of a text"):
        await opened.call(
            "composition_merge", source="fork", target="trial", resolve={"orchestration_logic.strategy[1]": [1]}
        )
    with pytest.raises(Invalid, match="must be text"):  # the result could not be used
        await opened.call(
            "composition_merge", source="fork", target="trial", strategy="ours", resolve={"agents.judge.prompt": 7}
        )
    assert opened.everything() == before
    assert await opened.events("composition:merged") == []
    done = await opened.call(
        "composition_merge",
        source="fork",
        target="trial",
        resolve={"agents.judge.prompt": "Judge both.", "orchestration_logic.strategy[1]": "ours"},
    )
    assert done["written"] is True
    document = yamlio.safe_load(opened.text(), what="it")
    assert (document["agents"]["judge"]["prompt"], document["extra"]) == ("Judge both.", 1)
    assert document["orchestration_logic"]["strategy"].startswith("START ours\n")


@pytest.mark.parametrize("more", [{}, {"strategy": "theirs"}, {"fields": ["agents.judge"]}, {"name": "third"}])
async def test_a_dry_run_shows_what_would_change_and_writes_nothing(opened, more):
    await _change(opened, "fork", agents__judge__prompt="Judge quickly.")
    before = opened.everything()
    found = await opened.call("composition_merge", source="fork", target="trial", dry_run=True, **more)
    assert found["written"] is False
    assert [change["path"] for change in found["changes"]] == ["agents.judge.prompt"]
    assert opened.everything() == before
    assert await opened.events("composition:merged") == []


async def test_strategies_settle_conflicts_for_one_side_and_fields_take_no_more_than_was_named(opened):
    await _change(opened, "trial", agents__judge__prompt="Ours.")
    await _change(opened, "fork", agents__judge__prompt="Theirs.", agents__critic__prompt="Theirs, too.", extra=1)
    for name, more in (
        ("o", {"strategy": "ours"}),
        ("t", {"strategy": "theirs"}),
        ("f", {"fields": ["agents.critic"]}),
    ):
        made = await opened.call("composition_merge", source="fork", target="trial", name=name, **more)
        assert made["name"] == name
    prompts = {}
    for name in "otf":
        document = yamlio.safe_load(opened.text(name), what="it")
        prompts[name] = [agent["prompt"] for agent in document["agents"].values()] + [document.get("extra")]
        assert document["lineage"]["parent"] == "trial@1.2.3"
    assert prompts == {
        "o": ["Ours.", "Theirs, too.", 1],
        "t": ["Theirs.", "Theirs, too.", 1],
        "f": ["Ours.", "Theirs, too.", None],
    }


async def test_what_cannot_be_merged_is_refused_with_the_next_step(opened):
    builtin = next(
        head["name"]
        for head in (await opened.call("composition_discover", type="orchestration"))["compositions"]
        if head["layer"] == "builtin"
    )
    await opened.call("composition_create", document={"name": "part", "type": "component", "content": "x"})
    old = (await opened.call("composition_get", name="trial"))["hash"]
    await opened.put(PATTERN.replace("Criticise.", "Criticise kindly."))
    before = opened.everything()
    for wrong, kind, message in (
        ({"source": "fork", "target": builtin}, Refused, "composition_fork"),
        ({"source": "fork", "target": f"trial@{old}"}, Refused, "earlier version"),
        ({"source": "trial", "target": "trial"}, Invalid, "with itself"),
        ({"source": "part", "target": "trial"}, Invalid, "type component"),
        ({"source": "nobody", "target": "trial"}, NotFound, "nobody"),
        ({"source": "../../etc/passwd", "target": "trial"}, KsiError, "passwd"),
        ({"source": "fork", "target": "trial", "name": "../x"}, Invalid, "plain name"),
        ({"source": "fork", "target": "trial", "name": "part"}, Conflict, "taken"),
        ({"source": "fork", "target": "trial", "fields": ["lineage"]}, Invalid, "cannot be merged"),
        ({"source": "fork", "target": "trial", "strategy": "fields"}, Invalid, "go together"),
    ):
        with pytest.raises(kind) as caught:
            await opened.call("composition_merge", **wrong)
        assert message in caught.value.text()
    assert opened.everything() == before


async def test_a_file_that_was_changed_in_the_meantime_is_not_written_over(opened, monkeypatch):
    await _change(opened, "fork", agents__judge__prompt="Judge quickly.")
    read = files.read_text

    def read_after_somebody_else(root: Path, path: str, **more: Any) -> str:
        if path.endswith("trial.yaml"):
            (root / path).write_text(PATTERN.replace("Criticise.", "Mine."))
        return read(root, path, **more)

    monkeypatch.setattr(files, "read_text", read_after_somebody_else)
    with pytest.raises(Conflict, match="in the meantime"):
        await opened.call("composition_merge", source="fork", target="trial")
    assert "Mine." in opened.text()


async def test_a_merge_that_a_crash_cut_off_before_its_event_is_told_when_it_is_repeated(opened, monkeypatch):
    await _change(opened, "fork", agents__judge__prompt="Judge quickly.")
    library = opened.app.services.library

    async def crash(*_args: Any, **_more: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(library, "index", crash)
        with pytest.raises(KeyboardInterrupt):
            await opened.call("composition_merge", source="fork", target="trial")
    await library.refresh()
    assert await opened.events("composition:merged") == []
    for _ in range(2):
        again = await opened.call("composition_merge", source="fork", target="trial")
        assert again["note"] == "target has all of it already"
    (event,) = await opened.events("composition:merged")
    assert (event["name"], event["version"]) == ("trial", "1.2.4")


async def test_without_a_common_ancestor_every_difference_is_a_conflict(opened):
    await opened.put(PATTERN.replace("name: trial", "name: stranger").replace("Judge.", "Gauge."), "stranger")
    found = await opened.call("composition_merge", source="stranger", target="trial")
    assert [conflict["path"] for conflict in found["conflicts"]] == ["agents.judge.prompt"]
    assert "no common ancestor" in found["note"]


async def test_many_conflicts_and_long_values_are_cut_with_a_count(opened):
    for name in ("trial", "fork"):
        await _change(opened, name, **{f"k{n}": f"{name} " + "\x01ä" * 1_200 for n in range(60)})
    found = await opened.call("composition_merge", source="fork", target="trial")
    assert len(found["conflicts"]) + found["left_out"] == 60
    assert "cut at 2,000 of" in found["conflicts"][0]["ours"]


async def test_lineage_shows_ancestors_descendants_and_what_was_merged(opened):
    await opened.call("composition_fork", parent="fork", name="leaf", reason="even faster")
    await _change(opened, "leaf", agents__judge__prompt="Now.")
    await opened.call("composition_merge", source="leaf", target="trial")
    leaf = await opened.call("composition_lineage", name="leaf")
    assert [(each["name"], each["state"], each["reason"]) for each in leaf["ancestors"]] == [
        ("fork", "current", "even faster"),
        ("trial", "kept", "faster"),
    ]
    trial = await opened.call("composition_lineage", name="trial")
    assert trial["ancestors"] == []
    assert [(each["name"], each["parent"]) for each in trial["descendants"]] == [("fork", "trial"), ("leaf", "fork")]
    assert [each["name"] for each in trial["merged"]] == ["leaf"]
    assert all(len(each["hash"]) == 12 and each["date"] for each in leaf["ancestors"])
    await opened.put(
        PATTERN.replace("name: trial", "name: orphan") + "lineage: {parent: gone@1, parent_hash: abcdef12}\n", "orphan"
    )
    (gone,) = (await opened.call("composition_lineage", name="orphan"))["ancestors"]
    assert (gone["state"], gone["note"]) == ("missing", "not in the library")


async def test_an_agent_without_the_capability_cannot_merge(opened):
    made = await opened.call("agent_spawn", name="a", prompt="x", model="m", capabilities=["base"])
    ctx = fresh_context(agent_actor(made["agent"]))
    with pytest.raises(Refused):
        await opened.app.toolbox.call(ctx, "composition_merge", {"source": "fork", "target": "trial"})
    assert await opened.events("composition:merged") == []
