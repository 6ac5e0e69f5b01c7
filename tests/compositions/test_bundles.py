"""Bundles: out of one data folder and into another, with the same hashes, and never half of it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksi_mcp import yamlio
from ksi_mcp.compositions import bundles, runs, store
from ksi_mcp.compositions.federation import Federation
from ksi_mcp.compositions.library import Library
from ksi_mcp.compositions.manifest import Stamp, from_bytes, make_bundle, to_bytes
from ksi_mcp.compositions.model import parse_composition
from ksi_mcp.db import Tx
from ksi_mcp.db.sqlite import open_sqlite
from ksi_mcp.errors import Conflict, Invalid, NotFound
from ksi_mcp.events.journal import Journal
from ksi_mcp.events.model import EventFilter
from ksi_mcp.permissions import OPERATOR, fresh_context
from ksi_mcp.testing import FakeClock, open_test_app

ROOT = Path(__file__).parent.parent.parent
CTX = fresh_context(OPERATOR)

SEARCH = """\
# How we search.
name: search
type: orchestration
version: 1.4.0   # the one that works
agents:
  lead: {composition: lead, capabilities: [base, spawn_agents], routing_level: children}
  judge:
    prompt: Judge.
    mcp_servers: [github]
routing:
  - {from: lead, to: judge, pattern: "search:found"}
orchestration_logic:
  strategy: |
    SPAWN lead
budget: {usd: 2.5}
unheard_of: {kept: 2024-01-01}
"""
LEAD = "name: lead\ntype: agent\nextends: base\nprompt: Lead.\n"
BASE = "name: base\ntype: agent\nprompt: Be kind.\nmodel: m\n"


class Folder:
    """A data folder with its library, and federation with others."""

    def __init__(self, root: Path, journal: Journal) -> None:
        self.root = root
        self.journal = journal
        self.library = Library(journal, builtin=root / "builtin", user=root / "compositions", project=None)
        self.federation = Federation(journal, self.library, home=root)

    def write(self, path: str, text: str, *, layer: str = "compositions") -> None:
        target = self.root / layer / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    async def hashes(self) -> dict[str, str]:
        await self.library.refresh()
        heads = await self.journal.read(store.heads)
        return {head.name: head.hash for head in heads}

    async def export(self, *names: str, **more: Any) -> bytes:
        return to_bytes((await self.federation.export(CTX, names, **more)).bundle)

    async def take(self, data: bytes, **more: Any) -> Any:
        """Import and allow."""
        incoming = await self.federation.receive(CTX, data)
        if incoming.state == "present":
            return incoming
        return await self.federation.allow(CTX, incoming.bundle.id, **more)

    async def claim(self, run_id: str, name: str, score: float, *, hash: str = "a" * 64, origin: str | None = None):
        values = {
            "run_id": run_id, "name": name, "hash": hash, "version": "1.0.0", "outcome": "success", "success": 1,
            "score": score, "metrics": '{"rounds": 3}', "usd_micros": 5, "tokens": 7, "turns": 2, "duration_s": 1.5,
            "ended_at_ms": 1_800_000_000_000, "origin": origin,
        }  # fmt: skip
        await self.journal.commit(lambda tx: tx.run("compositions.claim_run", values))

    async def claims(self, name: str) -> list[dict[str, Any]]:
        return await self.journal.read(lambda tx: bundles.claims(tx, [name]))

    async def events(self, name: str) -> list[dict[str, Any]]:
        page = await self.journal.query(EventFilter(), limit=200)
        return [event.data for event in page.events if event.name == name]

    def tree(self) -> dict[str, bytes]:
        """Every file but the database and locks."""
        return {
            str(path.relative_to(self.root)): path.read_bytes()
            for path in sorted(self.root.rglob("*"))
            if path.is_file() and path.name != ".lock"
        }


@asynccontextmanager
async def open_folder(root: Path) -> AsyncIterator[Folder]:
    root.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240
    clock = FakeClock()
    db = await open_sqlite(":memory:", clock)
    try:
        yield Folder(root, Journal(db, clock))
    finally:
        await db.close()


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Folder]:
    async with open_folder(tmp_path / "here") as folder:
        folder.write("orchestrations/search.yaml", SEARCH)
        folder.write("agents/lead.yaml", LEAD)
        folder.write("agents/base.yaml", BASE)
        yield folder


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[Folder]:
    async with open_folder(tmp_path / "there") as folder:
        yield folder


# --------------------------------------------------------------------------------------------- round trip


async def test_what_is_exported_and_allowed_elsewhere_has_the_same_hashes(here: Folder, there: Folder) -> None:
    allowed = await there.take(await here.export("search"))
    assert await there.hashes() == await here.hashes()
    assert (allowed.state, set(allowed.placed)) == ("imported", {"search", "lead", "base"})
    resolved = await there.library.resolve("search")
    assert [agent.role for agent in resolved.agents] == ["lead", "judge"]


async def test_a_second_import_changes_nothing(here: Folder, there: Folder) -> None:
    await here.claim("o_11111", "search", 0.5)
    data = await here.export("search")
    await there.take(data)
    before = (there.tree(), await there.events("composition:imported"))
    assert (await there.take(data)).state == "present"
    assert (await there.take(await here.export("search", "lead"))).state == "present"
    assert (there.tree(), await there.events("composition:imported")) == before


async def test_what_came_in_can_go_out_again_with_the_same_hashes(here: Folder, there: Folder, tmp_path: Path) -> None:
    await there.take(await here.export("search"))
    async with open_folder(tmp_path / "third") as third:
        await third.take(await there.export("search"))
        assert await third.hashes() == await here.hashes()


async def test_comments_and_unknown_keys_come_along_and_the_origin_is_noted(here: Folder, there: Folder) -> None:
    allowed = await there.take(await here.export("search"))
    text = (there.root / f"compositions/imported/{allowed.bundle.id}/orchestrations/search.yaml").read_text()
    assert text.startswith("# How we search.\n")
    assert "# the one that works" in text
    document = yamlio.safe_load(text, what="x")
    assert document["unheard_of"] == {"kept": "2024-01-01"}
    origin = document.pop("lineage")["imported_from"]
    assert document == yamlio.safe_load(SEARCH, what="x")
    assert origin["bundle"] == allowed.bundle.id
    assert origin["hash"] == (await here.hashes())["search"]
    assert (origin["made_by"], origin["imported_by"]) == ("operator", "operator")


async def test_the_same_contents_are_the_same_bytes(here: Folder) -> None:
    first = await here.export("search")
    os.utime(here.root / "compositions/agents/lead.yaml", (1, 1))
    assert await here.export("search") == first
    assert from_bytes(first).id == from_bytes(await here.export("search", "search")).id
    await here.journal.clock.advance(3600)
    later = await here.export("search")
    assert later != first
    assert from_bytes(later).id == from_bytes(first).id


async def test_a_fork_brings_the_version_it_was_forked_from(here: Folder, there: Folder) -> None:
    parent = (await here.hashes())["search"]
    await here.library.fork(CTX, "search", "search_2", "faster", {"budget.usd": 1})
    here.write("orchestrations/search.yaml", SEARCH.replace("Judge.", "Judge well."))
    await there.take(await here.export("search_2"))
    kept = await there.library.get(f"search@{parent}")
    assert kept.composition.hash == parent
    lineage = (await there.library.get("search_2")).composition.document["lineage"]
    assert (lineage["parent_hash"], lineage["fork_reason"]) == (parent, "faster")
    assert "imported_from" in lineage


async def test_what_comes_with_the_program_is_named_and_not_carried(here: Folder, there: Folder) -> None:
    here.write("agents/base.yaml", BASE.replace("Be kind.", "Be brief."), layer="builtin")
    (here.root / "compositions/agents/base.yaml").unlink()
    made = (await here.federation.export(CTX, ["search"])).bundle
    assert [item.entry.name for item in made.items] == ["lead", "search"]
    assert [name for name, _ in made.requires] == ["base"]
    incoming = await there.federation.receive(CTX, to_bytes(made))
    assert incoming.warnings == ("it needs 'base', which is not in the library",)


async def test_what_is_missing_is_told_and_what_is_unknown_refused(here: Folder) -> None:
    (here.root / "compositions/agents/base.yaml").unlink()
    assert (await here.federation.export(CTX, ["search"])).missing == ("base",)
    alone = await here.federation.export(CTX, ["search"], with_dependencies=False)
    assert [item.entry.name for item in alone.bundle.items] == ["search"]
    for names in (["nothing"], ["../search"], ["search@1.4.0"]):
        with pytest.raises((NotFound, Invalid)):
            await here.federation.export(CTX, names)


async def test_markdown_travels_as_the_document_it_is(here: Folder, there: Folder) -> None:
    here.write("components/tone.md", "---\nname: tone\ntype: component\n---\n# Tone\n\nFriendly.\n")
    await there.take(await here.export("tone"))
    assert (await there.hashes())["tone"] == (await here.hashes())["tone"]


_NAMES = st.from_regex(r"[a-z][a-z0-9_-]{0,12}", fullmatch=True).filter(lambda name: not name.endswith("_decisions"))
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1, max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(_NAMES, st.tuples(st.text(max_size=60), _VALUES), min_size=1, max_size=4))
def test_any_documents_come_out_of_a_bundle_as_they_went_in(found: dict[str, tuple[str, Any]]) -> None:
    members: list[Any] = []
    for name, (prompt, extra) in found.items():
        document = {"name": name, "type": "agent", "prompt": prompt, "extra": extra}
        members.append(("composition", parse_composition(document, what="x"), yamlio.dump(document)))
    stamp = Stamp(at="2026-01-01T00:00:00Z", by="operator")
    made = make_bundle(stamp=stamp, names=tuple(found), members=members)
    again = from_bytes(to_bytes(made))
    assert again == made
    assert {item.entry.name: item.composition.hash for item in again.items} == {m[1].name: m[1].hash for m in members}


# --------------------------------------------------------------------------------------------- quarantine


async def test_nothing_is_in_the_library_before_it_is_allowed(here: Folder, there: Folder) -> None:
    incoming = await there.federation.receive(CTX, await here.export("search"))
    assert incoming.state == "quarantined"
    assert await there.hashes() == {}
    assert not (there.root / "compositions").exists()
    held = await there.federation.waiting()
    assert [each.bundle.id for each in held] == [incoming.bundle.id]
    shown = there.root / f"quarantine/{incoming.bundle.id}/files/compositions/orchestrations/search.yaml"
    assert shown.read_text() == SEARCH


async def test_the_report_says_what_each_one_asks_for(here: Folder, there: Folder) -> None:
    incoming = await there.federation.receive(CTX, await here.export("search"))
    asks = {each.composition.name: each.asks.as_document() for each in incoming.reviewed}
    assert asks["search"] == {
        "capabilities": ["base", "spawn_agents"],
        "routing_level": "children",
        "mcp_servers": ["github"],
        "budget": {"usd": 2.5},
        "rules": 1,
    }
    assert asks["base"] == asks["lead"] == {"models": ["m"]}
    assert [each.composition.name for each in incoming.reviewed] == ["base", "lead", "search"]


async def test_what_one_would_inherit_here_is_what_it_asks_for(here: Folder, there: Folder) -> None:
    there.write("agents/base.yaml", f"{BASE}capabilities: [spawn_agents]\n")
    (here.root / "compositions/agents/base.yaml").unlink()
    (lead,) = (await there.federation.receive(CTX, await here.export("lead"))).reviewed
    assert lead.asks.capabilities == ("spawn_agents",)


async def test_a_name_that_is_taken_is_shown_with_its_differences(here: Folder, there: Folder) -> None:
    there.write("agents/base.yaml", BASE.replace("Be kind.", "Be brief."))
    incoming = await there.federation.receive(CTX, await here.export("base"))
    (base,) = incoming.reviewed
    assert (base.standing, base.layer) == ("differs", "user")
    assert base.differences == ("prompt: here 'Be brief.', in the bundle 'Be kind.'",)
    before = there.tree()
    with pytest.raises(Conflict, match="other compositions named 'base'"):
        await there.federation.allow(CTX, incoming.bundle.id)
    assert there.tree() == before


async def test_with_a_prefix_names_that_are_taken_are_changed_and_references_follow(
    here: Folder, there: Folder
) -> None:
    there.write("agents/base.yaml", BASE.replace("Be kind.", "Be brief."))
    data = await here.export("search")
    allowed = await there.take(data, prefix="acme_")
    assert set(allowed.placed) == {"acme_base", "lead", "search"}
    lead = (await there.library.get("lead")).composition.document
    assert lead["extends"] == "acme_base"
    assert lead["lineage"]["imported_from"]["hash"] == (await here.hashes())["lead"]
    renamed = (await there.library.get("acme_base")).composition.document
    assert renamed["lineage"]["imported_from"]["name"] == "base"
    assert (await there.library.get("base")).composition.document["prompt"] == "Be brief."
    before = {path: data for path, data in there.tree().items() if path.startswith("compositions/")}
    again = await there.take(data, prefix="acme_")
    assert (again.placed, again.state) == ((), "imported")
    assert {path: data for path, data in there.tree().items() if path.startswith("compositions/")} == before


async def test_some_names_can_be_allowed_and_the_others_wait(here: Folder, there: Folder) -> None:
    incoming = await there.federation.receive(CTX, await here.export("search"))
    bundle_id = incoming.bundle.id
    first = await there.federation.allow(CTX, bundle_id, names=["base"])
    assert (first.state, first.placed) == ("quarantined", ("base",))
    assert (await there.hashes()).keys() == {"base"}
    with pytest.raises(NotFound, match="no 'nobody'"):
        await there.federation.allow(CTX, bundle_id, names=["nobody"])
    rest = await there.federation.allow(CTX, bundle_id)
    assert (rest.state, set(rest.placed)) == ("imported", {"lead", "search"})
    assert await there.hashes() == await here.hashes()
    assert await there.federation.waiting() == []


async def test_a_bundle_can_be_thrown_away(here: Folder, there: Folder) -> None:
    incoming = await there.federation.receive(CTX, await here.export("search"))
    await there.federation.discard(incoming.bundle.id)
    assert await there.federation.waiting() == []
    for bundle_id in (incoming.bundle.id, "../..", "b_" + "0" * 20):
        with pytest.raises(NotFound):
            await there.federation.discard(bundle_id)
        with pytest.raises(NotFound):
            await there.federation.allow(CTX, bundle_id)


async def test_two_that_allow_the_same_bundle_place_it_once(here: Folder, there: Folder) -> None:
    incoming = await there.federation.receive(CTX, await here.export("search"))
    both = (there.federation.allow(CTX, incoming.bundle.id) for _ in range(2))
    first, second = await asyncio.gather(*both, return_exceptions=True)
    assert {type(first).__name__, type(second).__name__} == {"Incoming", "NotFound"}
    assert len(await there.events("composition:imported")) == 1


# --------------------------------------------------------------------------------------------------- runs


async def test_runs_come_along_as_claims_and_are_never_counted(here: Folder, there: Folder) -> None:
    await here.claim("o_11111", "search", 0.5)
    await here.claim("o_22222", "search", 1.0)
    await here.claim("o_33333", "search", 0.0, origin="bundle:b_x")
    await here.claim("o_44444", "elsewhere", 0.0)
    data = await here.export("search")
    assert [run.run_id for run in from_bytes(data).runs] == ["o_11111", "o_22222"]
    assert from_bytes(await here.export("search", with_runs=False)).runs == ()
    allowed = await there.take(data)
    assert await there.journal.read(lambda tx: runs.performance(tx, names=["search"])) == {}
    assert await there.claims("search") == [
        {
            "name": "search",
            "origin": f"bundle:{allowed.bundle.id}",
            "runs": 2,
            "success_rate": 1.0,
            "avg_score": 0.75,
        }
    ]
    assert from_bytes(await there.export("search")).runs == ()


async def test_a_claim_does_not_replace_what_was_measured_here(here: Folder, there: Folder) -> None:
    await here.claim("o_11111", "search", 1.0)
    await there.claim("o_11111", "search", 0.1)
    await there.take(await here.export("search"))

    def score(tx: Tx) -> float:
        return runs.by_ids(tx, ["o_11111"])["o_11111"].score or 0

    assert await there.journal.read(score) == 0.1
    assert await there.claims("search") == []


# ---------------------------------------------------------------------------------------------- signatures


def _keys(folder: Path, name: str) -> tuple[Path, bytes]:
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415

    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / name).write_bytes(pem)
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return folder / name, public


async def test_a_signature_says_whose_key_it_was(here: Folder, there: Folder, tmp_path: Path) -> None:
    key, public = _keys(tmp_path, "key.pem")
    data = await here.export("search", sign_with=key)
    unknown = await there.federation.receive(CTX, data)
    assert (unknown.signed or "").startswith("unknown key ")
    (there.root / "trusted_keys").mkdir()
    (there.root / "trusted_keys/ada.pem").write_bytes(public)
    (there.root / "trusted_keys/broken.pem").write_text("-----BEGIN NONSENSE")
    trusted = await there.federation.receive(CTX, data)
    assert (trusted.signed, trusted.state) == ("trusted: ada", "quarantined")


async def test_a_key_file_that_is_none_is_refused_without_being_quoted(here: Folder, tmp_path: Path) -> None:
    bad = tmp_path / "key.pem"
    bad.write_text("canary-in-a-key-file")
    with pytest.raises(Invalid, match="key file cannot be used") as refused:
        await here.export("search", sign_with=bad)
    assert "canary" not in refused.value.text()


# --------------------------------------------------------------------------------------------------- crash

_VICTIM = """
import asyncio, os, signal, sys
from pathlib import Path
from ksi_mcp.app import App
from ksi_mcp.compositions import quarantine
from ksi_mcp.compositions.federation import Federation
from ksi_mcp.config import Home
from ksi_mcp.permissions import OPERATOR, fresh_context

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

where, home, bundle = sys.argv[1:]
become, write, count = quarantine._Staged.become, quarantine._write, 0
if where == "while staging":
    def torn(path, data, **more):
        global count
        count += 1
        write(path, data[: len(data) // 2] if count == 7 else data)
        if count == 7:
            die()
    quarantine._write = torn
elif where == "before the rename into quarantine":
    quarantine._Staged.become = lambda self, to: die()
elif where == "before the rename into the library":
    quarantine._Staged.become = lambda self, to: die() if "imported" in str(to) else become(self, to)
elif where == "after the rename into the library":
    quarantine._Staged.become = lambda self, to: (become(self, to), "imported" in str(to) and die())
elif where == "before the transaction":
    Federation._record = die
elif where == "before the bundle leaves quarantine":
    quarantine.Quarantine.discard = die

async def main():
    async with App(Home(root=Path(home))) as app:
        context = fresh_context(OPERATOR)
        await app.toolbox.call(context, "composition_import", {"path": bundle, "allow": True})

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("where", "placed"),
    [
        ("while staging", False),
        ("before the rename into quarantine", False),
        ("before the rename into the library", False),
        ("after the rename into the library", True),
        ("before the transaction", True),
        ("before the bundle leaves quarantine", True),
    ],
)
async def test_a_killed_import_leaves_nothing_half_and_works_again(
    here: Folder, there: Folder, tmp_path: Path, where: str, placed: bool
) -> None:
    await here.claim("o_11111", "search", 0.5)
    bundle = tmp_path / "b.ksi.zip"
    bundle.write_bytes(await here.export("search"))
    victim = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", _VICTIM, where, str(there.root), str(bundle)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=50,
        check=False,
    )
    assert victim.returncode == -signal.SIGKILL, victim.stderr.decode()
    wanted = await here.hashes()
    assert await there.hashes() == (wanted if placed else {})
    async with open_test_app(home=there.root, worker="none") as app:
        again = await app.call("composition_import", path=str(bundle), allow=True)
        assert again["state"] == "imported"
        assert {each["standing"] for each in again["compositions"]} == {"identical" if placed else "new"}
        told = await app.call("event_query", names=["composition:imported"])
        assert [event["data"]["runs"] for event in told["events"]] == [1]
        assert len((await app.call("composition_get", name="search"))["measured"]["claimed_runs"]) == 1
        assert (await app.call("composition_import", path=str(bundle), allow=True))["state"] == "present"
    assert await there.hashes() == wanted
    assert [path for path in there.root.rglob("*") if path.name.startswith(".import-")] == []
