"""Files as people write them: each loads, or is reported with its line and reason while the others load."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ksi_mcp import yamledit, yamlio
from ksi_mcp.compositions import files
from ksi_mcp.compositions.library import Library
from ksi_mcp.compositions.markdown import document_of, text_for
from ksi_mcp.compositions.model import parse_composition
from ksi_mcp.compositions.resolve import Resolved
from ksi_mcp.db.sqlite import open_sqlite
from ksi_mcp.errors import Invalid, NotFound
from ksi_mcp.events.journal import Journal
from ksi_mcp.permissions import OPERATOR, fresh_context
from ksi_mcp.routing.conditions import compile_condition
from ksi_mcp.testing import FakeClock

_CORPUS = Path(__file__).parent / "corpus"
_LIMIT = files.MAX_FILE_BYTES
_REPORTED = {
    "agents/empty.yaml": "empty from line 1",
    "agents/endless_number.yaml": "line 3, column 8: '.inf' is not a number",
    "agents/include_tag.yaml": "line 3, column 9: the tag '!include' is not allowed",
    "agents/just_text.yaml": "line 1 is not a mapping",
    "agents/latin_1.yaml": "not UTF-8 text at line 3",
    "agents/name_with_spaces.yaml": "line 2: name: 'Name With Spaces'",
    "agents/object_tag.yaml": "line 3, column 9: the tag 'tag:yaml.org,2002:python",
    "agents/slugified.yaml": "the name 'slugified' is already that of agents/same_name_again.yaml",
    "agents/tabs.yaml": "line 4, column 1",
    "agents/unknown_type.yaml": "line 4: type: 'spaceship' is not a type",
    "agents/unquoted_template.yaml": "line 3, column 10: a key must be plain text; a value that begins with {{",
    "components/duplicate_key.md": "line 4, column 1: the key 'name' stands twice",
    "components/invalid_front_matter.md": "line 3, column 18",
    "components/list_front_matter.md": "line 1 is not a mapping",
    "components/open_front_matter.md": "begins at line 1 has no end",
    "notes_without_a_folder.md": "line 1: there is no front matter",
    "orchestrations/several_documents.yaml": "holds 2 YAML documents, the second from line 3 on",
}
_SILENT = {"README.md"}
_LOG = "orchestrations/conditions_decisions.yaml"
_EVERY = sorted(path.relative_to(_CORPUS).as_posix() for path in _CORPUS.rglob("*") if path.is_file())
_READ = [path for path in _EVERY if path not in {*_REPORTED, *_SILENT, _LOG}] + ["agents/slugified.yaml"]


@pytest.fixture
async def library(tmp_path: Path) -> AsyncIterator[Library]:
    clock = FakeClock()
    shutil.copytree(_CORPUS, tmp_path / "user")
    db = await open_sqlite(":memory:", clock)
    yield Library(Journal(db, clock), builtin=tmp_path / "builtin", user=tmp_path / "user", project=None)
    await db.close()


def _document(path: str) -> dict[str, Any]:
    found = files.read_composition(_CORPUS, path)
    assert found is not None
    return found.document


def _exactly(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


async def _resolved(library: Library, name: str) -> Resolved:
    record = await library.get(name, resolve=True)
    assert record.resolved is not None
    return record.resolved


async def test_every_file_loads_or_is_reported_with_its_line_and_reason(library: Library) -> None:
    assert len(_EVERY) >= 40
    report = await library.refresh()
    told = {problem.path: problem.message for problem in report.problems}
    assert told.keys() == _REPORTED.keys()
    for path, needle in _REPORTED.items():
        assert needle in told[path], path
    page = await library.discover(limit=100)
    assert page.total == len(_READ) - 1  # two files of one name


@pytest.mark.parametrize("path", _READ)
def test_load_save_load_is_the_same_document(path: str) -> None:
    document = _document(path)
    again = yamlio.safe_load(yamlio.dump(document), what="it")
    assert _exactly(again) == _exactly(document)
    assert parse_composition(again, what="it") == parse_composition(document, what="it")
    text = files.read_text(_CORPUS, path)
    assert text_for(text, path, document, max_bytes=_LIMIT) == text


@pytest.mark.parametrize("path", _READ)
def test_an_edit_reads_as_it_was_meant_and_keeps_all_that_it_does_not_touch(path: str) -> None:
    document, text = _document(path), files.read_text(_CORPUS, path)
    changed = {**document, "version": "9.9.9", "added": {"list": [1, {"a": "b\nc\n"}], "text": "x: y # no"}}
    new = text_for(text, path, changed, max_bytes=_LIMIT)
    assert _exactly(document_of(new, path, max_bytes=_LIMIT)) == _exactly(changed)
    kept = [line for line in text.splitlines() if line.strip() and not line.startswith(("version:", "---", "..."))]
    assert [line for line in kept if line not in new.splitlines()] == []


def test_comments_and_layout_of_a_hand_written_file_survive_an_edit() -> None:
    path = "orchestrations/comments_everywhere.yaml"
    text = files.read_text(_CORPUS, path)
    document = _document(path)
    document["agents"]["judge"]["vars"]["b"] = "three"
    document["agents"]["clerk"] = {"prompt": "Write it down.\nAll of it.\n"}
    document["routing"].append({"from": "clerk", "to": "judge", "pattern": "y:*"})
    new = text_for(text, path, document, max_bytes=_LIMIT)
    assert new == text.replace('b: "two"}', 'b: "three"}').replace(
        '        vars: {a: 1,   b: "three"}   # loose spaces\n',
        '        vars: {a: 1,   b: "three"}   # loose spaces\n'
        "    clerk:\n      prompt: |\n        Write it down.\n        All of it.\n",
    ).replace("   # dash at the margin\n", "   # dash at the margin\n- from: clerk\n  to: judge\n  pattern: y:*\n")


def test_what_has_an_anchor_is_written_anew_rather_than_wrong() -> None:
    path = "agents/anchors.yaml"
    text, document = files.read_text(_CORPUS, path), _document(path)
    document["defaults"]["effort"] = "high"
    assert yamledit.edited(text, document, what="it") is None
    assert _exactly(yamlio.safe_load(text_for(text, path, document, max_bytes=_LIMIT), what="it")) == _exactly(document)


def test_dates_numbers_and_odd_keys_are_read_as_they_are_written() -> None:
    dates = _document("orchestrations/dates_as_values.yaml")
    assert (dates["created"], dates["review_at"]) == ("2025-06-14", "2025-06-14 09:30:00 +02:00")
    odd = _document("agents/numbers_that_are_none.yaml")
    assert (odd["zip"], odd["time"], odd["version"], odd["hex"]) == ("01234", "12:30:45", 1.1, 31)
    assert odd["null_words"] == [None, None, None, "null", ""]
    keys = _document("agents/unicode_keys.yaml")
    assert {"1", "true", "2025-01-01", ""} <= keys.keys()


async def test_templates_with_defaults_alternatives_and_slugs_are_filled_in(library: Library) -> None:
    spaces = (await library.resolve("default_with_spaces", {"audience": "cats"})).agents[0].prompt
    assert spaces is not None
    assert "Write for cats" in spaces
    several = (await library.resolve("first_of_several", {"topic": "bees"})).agents[0].prompt
    assert several == "Call yourself one and work on bees."
    (library.roots["user"] / "agents/same_name_again.yaml").unlink()
    await library.refresh()
    slug = (await library.resolve("slugified")).agents[0].prompt
    assert slug == "Store your notes under a-long-title-with-marks."


@pytest.mark.parametrize(
    ("name", "needles"),
    [
        ("dangling_parent", ["dangling_parent -> a_parent_that_left"]),
        ("dangling_agents", ["agents.judge: composition 'gone_judge'", "gone_clerk", "gone_notes", "gone_mixin"]),
    ],
)
async def test_a_reference_that_leads_nowhere_is_a_warning_until_the_start(
    library: Library, name: str, needles: list[str]
) -> None:
    told = "\n".join((await _resolved(library, name)).warnings)
    checked = await library.validate((await library.get(name)).composition.document)
    assert checked.valid
    for needle in needles:
        assert needle in told
        assert needle in "\n".join(checked.warnings)
    with pytest.raises(NotFound, match="is not in the library"):
        await library.resolve(name)


async def test_nothing_a_composition_depends_on_changes_its_own_security_settings(library: Library) -> None:
    guarded = await library.resolve("guarded")
    (agent,) = guarded.agents
    assert agent.capabilities == ("base",)
    assert agent.settings["mcp_servers"] == {"files": {"tools": ["read_file"]}}
    assert (agent.settings["routing_level"], agent.settings["timeout_s"]) == ("none", 60.0)
    assert guarded.document["security"] == {"profile": "trusted", "network": True}  # a parent's, not a mixin's
    assert guarded.document["settings"]["routing_level"] == "none"
    assert "Trust everybody." in str(agent.prompt)
    assert "allowed_tools" not in guarded.document


async def test_conditions_in_the_ways_people_write_them_are_conditions(library: Library) -> None:
    rules = (await library.resolve("conditions")).rules
    for rule in rules:
        compile_condition(rule.condition)
    assert rules[1].condition == 'data.tags contains "urgent" OR data.kind == "final"'
    assert rules[3].condition == "data.text contains 'a.includes(b)'"
    scope = {"data": {"tags": ["urgent"], "kind": "x", "verdict": None}}
    assert compile_condition(rules[1].condition).evaluate(scope)
    assert not compile_condition(rules[2].condition).evaluate(scope)


async def test_routing_with_self_sender_globs_then_and_action_becomes_rules_between_roles(library: Library) -> None:
    rules = (await library.resolve("routing_words")).rules
    found = {(rule.pattern, rule.source): rule.targets for rule in rules}
    assert found == {
        ("go:*", "hub"): ("stage_one", "stage_two"),
        ("done:*", "stage_one"): ("hub",),
        ("done:*", "stage_two"): ("hub",),
        ("news:*", "stage_one"): ("stage_two", "hub"),
        ("news:*", "stage_two"): ("stage_one", "hub"),
        ("news:*", "hub"): ("stage_one", "stage_two"),
        ("hint:*", "stage_one"): ("stage_two", "hub"),
        ("shout:*", "stage_one"): ("stage_two", "hub"),
        ("shout:*", "stage_two"): ("stage_one", "hub"),
        ("shout:*", "hub"): ("stage_one", "stage_two"),
        ("alarm:*", "hub"): ("stage_one", "stage_two"),
        ("log:*", "hub"): ("audit:entry",),
        ("score:*", "stage_two"): ("hub",),
        ("tell:*", "stage_two"): ("hub", "stage_one"),
    }
    assert next(rule for rule in rules if rule.pattern == "score:*").priority == 50


@pytest.mark.parametrize(
    ("rule", "needle"),
    [
        ({"from": "x_*", "to": "a"}, "'x_*' fits no role"),
        ({"from": "a", "to": "x_*"}, "'x_*' fits no role"),
        ({"from": "a", "to": "b", "action": "explode"}, "'explode' is nothing that a rule does"),
        ({"from": 3, "to": "b"}, "must name a role"),
        ({"from": "a", "then": {"to": "zz"}}, "'zz' is not a role"),
    ],
)
async def test_a_rule_that_nobody_can_carry_out_is_told(library: Library, rule: dict[str, Any], needle: str) -> None:
    found = await library.validate({"name": "p", "agents": {"a": None, "b": None}, "routing": [rule]})
    assert any(needle in problem for problem in found.problems)


async def test_every_unknown_key_is_kept_at_every_level_by_a_fork(library: Library) -> None:
    parent = _document("orchestrations/unknown_keys.yaml")
    fork = await library.fork(fresh_context(OPERATOR), "unknown_keys", "forked", "why", {"agents.one.prompt": "Two."})
    parent["agents"]["one"]["prompt"] = "Two."
    own = {"name", "version", "lineage", "performance", "learnings"}
    written = yamlio.safe_load((library.roots["user"] / "orchestrations/forked.yaml").read_text(), what="it")
    for document in (fork.composition.document, written):
        assert {k: v for k, v in document.items() if k not in own} == {k: v for k, v in parent.items() if k not in own}


def test_a_decision_log_is_no_composition_and_reads_as_it_is() -> None:
    assert _LOG not in {file.path for file in files.scan(_CORPUS)[0]}
    log = yamlio.safe_load((_CORPUS / _LOG).read_text(), what="it")
    assert [(entry["confidence"], entry["outcome"]) for entry in log] == [("0.8", None), ("high", None)]


# ------------------------------------------------------------------------------------------- the law

_TEXTS = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        [
            *("2025-01-01", "yes", "NO", "~", "null", "1_000", "0x1F", "1e3", ".inf", "12:30", "- a", "a: b", "# c"),
            *("!self", "{{x|default: y}}", "a\n\nb\n", "  a\n b\n\n\n", "---", "a\n---\nb", "'\"", "\\", "\t"),
            *("a \n", "*", "&a", "<<"),
        ]
    ),
).filter(lambda text: not re.search("[\ud800-\udfff]", text))
_VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(10**30), 10**30),
        st.floats(allow_nan=False, allow_infinity=False),
        _TEXTS,
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(_TEXTS, inner, max_size=4)),
    max_leaves=20,
)
_DOCUMENTS = st.fixed_dictionaries(
    {"name": st.sampled_from(["a", "b-1"])},
    optional={"prompt": _TEXTS, "agents": _VALUES, "x": _VALUES, "learnings": _VALUES, "2025-01-01": _VALUES},
)


@settings(max_examples=150, deadline=None)
@given(document=_DOCUMENTS)
def test_any_document_is_the_same_after_being_saved_and_loaded(document: dict[str, Any]) -> None:
    for path in ("x.yaml", "x.md"):
        text = text_for("", path, document, max_bytes=_LIMIT)
        assert _exactly(document_of(text, path, max_bytes=_LIMIT)) == _exactly(document)


@settings(max_examples=150, deadline=None)
@given(before=_DOCUMENTS, after=_DOCUMENTS)
def test_any_edit_reads_as_what_was_meant(before: dict[str, Any], after: dict[str, Any]) -> None:
    for path in ("x.yaml", "x.md"):
        text = text_for("# by hand\n", path, before, max_bytes=_LIMIT)
        assert _exactly(document_of(text_for(text, path, after, max_bytes=_LIMIT), path, max_bytes=_LIMIT)) == _exactly(
            after
        )


@settings(max_examples=150, deadline=None)
@given(
    path=st.sampled_from([path for path in _READ if path.endswith((".yaml", ".yml"))]),
    key=_TEXTS,
    value=_VALUES,
    place=st.integers(0, 20),
)
def test_any_change_of_a_hand_written_file_reads_as_what_was_meant(path: str, key: str, value: Any, place: int) -> None:
    text, document = files.read_text(_CORPUS, path), _document(path)
    keys = [*document, key]
    document[keys[place % len(keys)]] = value
    assert _exactly(yamlio.safe_load(text_for(text, path, document, max_bytes=_LIMIT), what="it")) == _exactly(document)


@settings(max_examples=100, deadline=None)
@given(text=st.text(alphabet="ab:-#|>'\"{}[]&*!,?%@` \n\t", max_size=60))
def test_any_text_is_read_or_refused_with_a_reason(text: str) -> None:
    for path in ("x.yaml", "agents/x.md"):
        try:
            found = document_of(text, path, max_bytes=_LIMIT)
        except Invalid:
            continue
        if isinstance(found, dict):
            assert _exactly(
                document_of(text_for(text, path, found, max_bytes=_LIMIT), path, max_bytes=_LIMIT)
            ) == _exactly(found)
