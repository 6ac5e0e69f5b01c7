"""A pattern is forked, both are changed, and the two are made one again by a client that only sees tools."""

from __future__ import annotations

PATTERN = """\
name: trial
type: orchestration
agents:
  judge: {prompt: Judge.}
  critic: {prompt: Criticise.}
routing:
  - {from: judge, to: critic, pattern: 'verdict:*'}
orchestration_logic:
  strategy: |
    START with the question
    AWAIT all answers
    END
"""


async def test_fork_change_both_merge_resolve(serve):
    async with serve(tools="full") as (_, client):

        async def call(tool, **args):
            result = await client.call_tool(tool, args)
            assert not result.is_error, result.content
            return result.structured_content

        await call("composition_create", document=PATTERN)
        await call("composition_fork", parent="trial", name="quick", reason="answers sooner")
        await call(
            "composition_update",
            name="trial",
            modifications={"agents.judge.prompt": "Judge fairly.", "agents.critic.prompt": "Criticise kindly."},
        )
        await call(
            "composition_update",
            name="quick",
            modifications={
                "agents.judge.prompt": "Judge quickly.",
                "agents.scribe": {"prompt": "Write."},
                "orchestration_logic.strategy": "START with the question\nAWAIT two answers\nEND\n",
            },
        )

        found = await call("composition_diff", a="trial", b="quick")
        assert {"agents.judge.prompt", "agents.scribe", "orchestration_logic.strategy"} <= {
            change["path"] for change in found["changes"]
        }

        tried = await call("composition_merge", source="quick", target="trial")
        assert tried["written"] is False
        assert tried["conflicts"] == [
            {
                "path": "agents.judge.prompt",
                "base": "Judge.",
                "ours": "Judge fairly.",
                "theirs": "Judge quickly.",
            }
        ]
        assert (await call("composition_get", name="trial"))["document"]["agents"].keys() == {"judge", "critic"}

        resolve = {conflict["path"]: "Judge fairly and quickly." for conflict in tried["conflicts"]}
        shown = await call("composition_merge", source="quick", target="trial", resolve=resolve, dry_run=True)
        assert (shown["written"], shown.get("conflicts")) == (False, None)
        merged = await call("composition_merge", source="quick", target="trial", resolve=resolve)
        assert merged["written"] is True

        now = await call("composition_get", name="trial")
        assert (now["hash"], now["version"]) == (merged["hash"], merged["version"])
        assert {role: body["prompt"] for role, body in now["document"]["agents"].items()} == {
            "judge": "Judge fairly and quickly.",
            "critic": "Criticise kindly.",
            "scribe": "Write.",
        }
        assert now["document"]["orchestration_logic"]["strategy"].splitlines()[1] == "AWAIT two answers"

        # Taken the other way round, only what the fork does not have is left, and nothing conflicts any more.
        back = await call("composition_merge", source="trial", target="quick")
        assert back["written"] is True
        left = await call("composition_diff", a="trial", b="quick")
        assert {change["path"].split(".")[0] for change in left["changes"]} <= {"name", "version", "lineage"}

        line = await call("composition_lineage", name="quick")
        assert [(each["name"], each["state"]) for each in line["ancestors"]] == [("trial", "kept")]
        assert [each["name"] for each in line["merged"]] == ["trial"]

        refused = await client.call_tool("composition_merge", {"source": "quick", "target": "consensus"})
        assert refused.is_error
        assert "composition_fork" in refused.content[0].text
