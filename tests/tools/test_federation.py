"""composition_export and composition_import: who may call them, what they answer, and what they never take."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from ksi_mcp.compositions.manifest import from_bytes
from ksi_mcp.errors import Invalid, NotFound, Refused
from ksi_mcp.permissions import OPERATOR, agent_actor, fresh_context
from ksi_mcp.testing import AppUnderTest, open_test_app

SAMPLES = Path(__file__).parent.parent / "compositions/importers"


async def _made(app: AppUnderTest) -> None:
    await app.call("composition_create", document={"name": "tone", "type": "component", "content": "Be kind."})
    await app.call(
        "composition_create",
        document={
            "name": "helper",
            "type": "agent",
            "prompt": "Help.",
            "components": ["tone"],
            "capabilities": ["base"],
        },
    )


async def test_a_bundle_goes_from_one_data_folder_to_another(tmp_path: Path) -> None:
    async with open_test_app(worker="none") as here, open_test_app(home=tmp_path, worker="none") as there:
        await _made(here)
        made = await here.call("composition_export", names=["helper"])
        assert [name.partition("@")[0] for name in made["compositions"] + made["dependencies"]] == ["helper", "tone"]
        assert made["file"] == f"exports/helper-{made['bundle']}.ksi.zip"
        assert "base64" not in made
        file = here.app.home.root / made["file"]
        assert (file.stat().st_size, from_bytes(file.read_bytes()).id) == (made["size"], made["bundle"])
        looked = await there.call("composition_import", path=str(file))
        assert (looked["state"], looked["bundle"]) == ("quarantined", made["bundle"])
        assert [(each["name"], each["standing"]) for each in looked["compositions"]] == [
            ("tone", "new"),
            ("helper", "new"),
        ]
        assert looked["compositions"][1]["asks"] == {"capabilities": ["base"]}
        assert "allow=true" in looked["hint"]
        with pytest.raises(NotFound):
            await there.call("composition_get", name="helper")
        waiting = (await there.call("composition_import"))["waiting"]
        assert [(each["bundle"], each["compositions"]) for each in waiting] == [(made["bundle"], ["helper", "tone"])]
        allowed = await there.call("composition_import", bundle_id=made["bundle"], allow=True)
        assert (allowed["state"], allowed["placed"]) == ("imported", ["tone", "helper"])
        for name in ("helper", "tone"):
            ours, theirs = [(await app.call("composition_get", name=name))["hash"] for app in (here, there)]
            assert ours == theirs


async def test_a_small_bundle_can_come_in_the_answer(tmp_path: Path) -> None:
    async with open_test_app(worker="none") as here, open_test_app(home=tmp_path, worker="none") as there:
        await _made(here)
        made = await here.call("composition_export", names="helper", inline=True)
        assert from_bytes(base64.b64decode(made["base64"])).id == made["bundle"]
        allowed = await there.call("composition_import", bundle=made["base64"], allow=["tone", "helper"])
        assert allowed["placed"] == ["tone", "helper"]
        await here.call("composition_create", document={"name": "large", "type": "component", "content": "x" * 30_000})
        assert "base64" not in await here.call("composition_export", names="large", inline=True)


async def test_agents_import_nothing_and_name_no_files(tmp_path: Path) -> None:
    async with open_test_app(worker="none") as app:
        await _made(app)
        capabilities = ["base", "compositions", "spawn_agents", "orchestration"]
        spawned = await app.call("agent_spawn", name="ada", prompt="p", model="m", capabilities=capabilities)
        context = fresh_context(agent_actor(spawned["agent"]))
        for args in ({"path": "exports"}, {"bundle": "UEs="}, {"bundle_id": "b_" + "0" * 20, "allow": True}, {}):
            with pytest.raises(Refused):
                await app.app.toolbox.call(context, "composition_import", args)
        with pytest.raises(Refused, match="only the operator may name files"):
            await app.app.toolbox.call(
                context, "composition_export", {"names": ["helper"], "sign_with": str(tmp_path / "key.pem")}
            )
        exported = (await app.app.toolbox.call(context, "composition_export", {"names": ["helper"]})).data
        bundle = from_bytes((app.app.home.root / exported["file"]).read_bytes())
        assert bundle.stamp.by == f"agent:{spawned['agent']}"


async def test_an_agent_without_the_capability_exports_nothing() -> None:
    async with open_test_app(worker="none") as app:
        spawned = await app.call("agent_spawn", name="ada", prompt="p", model="m", capabilities=["base"])
        context = fresh_context(agent_actor(spawned["agent"]))
        with pytest.raises(Refused):
            await app.app.toolbox.call(context, "composition_export", {"names": ["base_agent"]})
        assert not (app.app.home.root / "exports").exists()


@pytest.mark.parametrize(
    ("folder", "name"), [("ksi", "data_analyst"), ("llm_orc", "code-review"), ("claude", "writer")]
)
async def test_files_of_other_programs_come_by_way_of_the_same_quarantine(folder: str, name: str) -> None:
    told: list[tuple[float, float | None]] = []

    async def progress(done: float, total: float | None, message: str) -> None:
        told.append((done, total))

    async with open_test_app(worker="none") as app:
        done = await app.app.toolbox.call(
            fresh_context(OPERATOR), "composition_import", {"path": str(SAMPLES / folder)}, progress=progress
        )
        looked = done.data
        assert looked["state"] == "quarantined"
        assert name in {each["name"] for each in looked["compositions"]}
        assert all({"file", "reason"} <= each.keys() for each in looked["unread"])
        assert any("without_effect" in each for each in looked["files"])
        assert looked["source"].startswith(folder)
        assert str(SAMPLES) not in str(looked)
        allowed = await app.call("composition_import", bundle_id=looked["bundle"], allow=True)
        assert name in allowed["placed"]
        got = await app.call("composition_get", name=name)
        assert got["document"]["lineage"]["imported_from"]["source"] == looked["source"]
        assert told[-1][0] == told[-1][1]


async def test_a_path_is_in_the_data_folder_unless_it_is_absolute() -> None:
    async with open_test_app(worker="none") as app:
        await _made(app)
        made = await app.call("composition_export", names="helper")
        assert (await app.call("composition_import", path=made["file"]))["state"] == "present"
        with pytest.raises(NotFound, match="no file or folder 'nothing'"):
            await app.call("composition_import", path="nothing")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"path": "a", "bundle_id": "b"}, "give one of"),
        ({"allow": True}, "need a bundle"),
        ({"bundle": "not base64!"}, "is not base64"),
        ({"bundle": "aGVsbG8="}, "not a bundle"),
        ({"path": "~nobody-of-that-name/x"}, "nobody's home"),
        ({"path": "", "format": "toml"}, "format"),
        ({"path": "x" * 5_000}, "cannot be the path"),
        ({"path": "a\0b"}, "no file or folder|cannot be the path"),
        ({"path": "compositions"}, "nothing in 'compositions' could be read"),
    ],
)
async def test_what_cannot_be_imported_is_said(args: dict[str, Any], says: str) -> None:
    async with open_test_app(worker="none") as app:
        (app.app.home.root / "compositions").mkdir(exist_ok=True)
        (app.app.home.root / "compositions/bad.yaml").write_text("name: [x\ntype: agent\n")
        with pytest.raises((Invalid, NotFound), match=says) as refused:
            await app.call("composition_import", **args)
        assert str(app.app.home.root) not in refused.value.text()


async def test_a_bundle_is_thrown_away_on_request(tmp_path: Path) -> None:
    async with open_test_app(worker="none") as here, open_test_app(home=tmp_path, worker="none") as there:
        await _made(here)
        made = await here.call("composition_export", names="helper", inline=True)
        looked = await there.call("composition_import", bundle=made["base64"])
        gone = await there.call("composition_import", bundle_id=looked["bundle"], allow=False)
        assert gone == {"state": "discarded", "bundle": looked["bundle"]}
        assert (await there.call("composition_import"))["waiting"] == []


async def test_an_import_is_an_event_with_its_origin(tmp_path: Path) -> None:
    async with open_test_app(worker="none") as here, open_test_app(home=tmp_path, worker="none") as there:
        await _made(here)
        made = await here.call("composition_export", names="helper", inline=True)
        await there.call("composition_import", bundle=made["base64"], allow=True)
        (event,) = (await there.call("event_query", names=["composition:imported"]))["events"]
        assert event["data"]["bundle"] == made["bundle"]
        assert event["data"]["names"] == ["helper", "tone"]
        assert event["data"]["made_by"] == "operator"
