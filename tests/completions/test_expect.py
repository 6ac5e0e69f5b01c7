"""What may be expected of a reply, and what is said when it is not met; nothing here may take long."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksi_mcp.completions.expect import MAX_CHECKED_CHARS, Expect, check, encode_expect, parse_expect
from ksi_mcp.errors import Invalid

POINT = {
    "json_schema": {
        "type": "object",
        "required": ["x"],
        "additionalProperties": False,
        "properties": {"x": {"$ref": "#/$defs/coordinate"}, "tags": {"type": "array", "items": {"enum": ["a", "b"]}}},
        "$defs": {"coordinate": {"type": "integer", "maximum": 9}},
    }
}


def wrong(expect: dict[str, Any], text: str) -> str:
    said = check(parse_expect(expect), text)
    assert said is not None
    return said


@pytest.mark.parametrize(
    ("expect", "text"),
    [
        ({}, ""),
        ({"min_length": 2, "max_length": 3}, "abc"),
        ({"contains": "b"}, "abc"),
        ({"contains": ["a", "c"]}, "abc"),
        ({"regex": "^[a-c]+$"}, "abc"),
        ({"regex": "(?i)B"}, "abc"),
        (POINT, '{"x": 9}'),
        (POINT, '  {"x": -1, "tags": ["a"]}\n'),
        (POINT, '```json\n{"x": 1}\n```'),
        (POINT, 'Here you are:\n```\n{"x": 1}\n```\nAnything else?'),
        ({"json_schema": {"$id": "https://example.org/s", "type": "string"}}, '"x"'),
    ],
)
def test_a_reply_that_is_as_expected(expect: dict[str, Any], text: str) -> None:
    assert check(parse_expect(expect), text) is None


@pytest.mark.parametrize(
    ("expect", "text", "said"),
    [
        ({"min_length": 3}, "ab", "it has 2 characters, at least 3 are needed"),
        ({"max_length": 3}, "abcd", "it has 4 characters, at most 3 are allowed"),
        ({"contains": ["a", "z"]}, "abc", "it does not contain the text 'z'"),
        ({"regex": "^[0-9]+$"}, "abc", "nothing in it matches the regular expression ^[0-9]+$"),
        (POINT, "x is 1", "it is not valid JSON: Expecting value at line 1, column 1"),
        (POINT, '{"x": 11}', "at $.x: it is greater than the maximum of 9"),
        (POINT, '{"x": 1, "tags": ["a", "c"]}', 'at $.tags[1]: it is not one of "a" or "b"'),
        (POINT, '{"tags": []}', 'at $: "x" is a required property'),
        (POINT, '{"x": 1, "y": 2}', "at $: Additional properties are not allowed ('y' was unexpected)"),
        (POINT, '{"x": NaN}', "NaN is not JSON"),
        (POINT, "[" * 100_000, "it is not JSON that can be read"),
        (POINT, "[" * 600 + "]" * 600, "it is not JSON that can be checked"),
        (POINT, '{"x": ' + "9" * 5_000 + "}", "it is not JSON that can be read"),
        (POINT, '"' + "x" * MAX_CHECKED_CHARS + '"', "more than 200,000 are not looked into"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(expect: dict[str, Any], text: str, said: str) -> None:
    told = wrong(expect, text)
    assert said in told
    assert told.startswith("Your reply was not as expected:\n- ")
    assert "Reply again, the whole answer" in told
    assert len(told) < 2_000


def test_everything_that_is_wrong_is_said_at_once() -> None:
    told = wrong({**POINT, "max_length": 5, "contains": "tags"}, '{"x": 10, "y": 1}')
    assert [line[:30] for line in told.splitlines()[1:-1]] == [
        "- it has 17 characters, at mos",
        "- it does not contain the text",
        "- at $.x: it is greater than t",
        "- at $: Additional properties ",
    ]


def test_a_fence_of_a_code_block_inside_a_value_is_left_alone() -> None:
    assert check(parse_expect({"json_schema": {"type": "string"}}), json.dumps("```a``` and ```b```")) is None


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"not": schema}
    return schema


DOUBLING = {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(30)} | {"d30": {}}


@pytest.mark.parametrize(
    ("expect", "said"),
    [
        (None, "expect must be an object, not None"),
        ([], "expect must be an object"),
        ({"schema": {}}, "unknown key 'schema'"),
        ({"min_length": -1}, "expect.min_length is -1"),
        ({"min_length": True}, "expect.min_length is True"),
        ({"min_length": 9, "max_length": 3}, "expect.min_length 9 is above expect.max_length 3"),
        ({"max_attempts": 11}, "expect.max_attempts is 11"),
        ({"max_attempts": 0}, "expect.max_attempts is 0"),
        ({"on_invalid": "shout"}, "expect.on_invalid is 'shout'"),
        ({"contains": ["a", ""]}, "expect.contains.1 is ''"),
        ({"contains": ["a"] * 21}, "expect.contains has 21 entries"),
        ({"regex": 5}, "expect.regex is 5"),
        ({"regex": "x" * 1_001}, "expect.regex is 'xxx"),
        ({"regex": "(a"}, "expect.regex '(a' cannot be used"),
        ({"regex": r"(a)\1"}, "no back-references"),
        ({"regex": "(a{1000}){1000}"}, "no huge repetitions"),
        ({"json_schema": True}, "expect.json_schema is True"),
        ({"json_schema": {"type": "nothing"}}, "expect.json_schema.type: "),
        ({"json_schema": {"properties": {"a": {"pattern": "(?=b)"}}}}, "expect.json_schema.properties.a.pattern: "),
        ({"json_schema": {"$schema": "http://example.org/"}}, "Unknown meta-schema"),
        ({"json_schema": {"$ref": "http://example.org/"}}, "expect.json_schema.$ref is 'http://example.org/'"),
        ({"json_schema": {"$ref": "file:///etc/passwd"}}, "only what is in the schema itself"),
        ({"json_schema": {"$ref": "#/$defs/none"}}, "there is no '#/$defs/none'"),
        ({"json_schema": {"properties": {"a": {"$ref": "#"}}}}, "refers to a schema it is part of"),
        ({"json_schema": {"$ref": "#/$defs/d0", "$defs": DOUBLING}}, "is too large to be checked"),
        ({"json_schema": {"patternProperties": {f"^{n}": {} for n in range(50)}}}, "is too large to be checked"),
        ({"json_schema": nested(100)}, "is nested too deep"),
        ({"json_schema": nested(3_000)}, "expect.json_schema"),
        ({"json_schema": {"enum": ["x" * 40_000]}}, "expect.json_schema has 40,0"),
        ({"json_schema": {"items": {"unevaluatedProperties": False}}}, "uses unevaluatedProperties"),
        ({"json_schema": {"items": {"$id": "x"}}}, "expect.json_schema.items uses $id"),
        ({"json_schema": {"minimum": float("nan")}}, "expect.json_schema is not JSON"),
    ],
)
def test_what_cannot_be_checked_is_refused_with_its_place(expect: Any, said: str) -> None:
    with pytest.raises(Invalid) as refused:
        parse_expect(expect)
    assert said in refused.value.text()
    assert refused.value.hint
    assert len(refused.value.text()) < 600


def test_names_of_properties_are_no_keywords() -> None:
    names = ("$ref", "$id", "pattern", "enum", "unevaluatedProperties")
    expect = parse_expect({"json_schema": {"properties": {name: {"type": "string"} for name in names}}})
    assert check(expect, json.dumps(dict.fromkeys(names, "x"))) is None


def test_a_pattern_that_hangs_other_engines_does_not_hang_this_one() -> None:
    assert check(parse_expect({"regex": "^(a+)+$"}), "a" * 150_000 + "b") is not None


def test_an_expectation_survives_its_storage() -> None:
    stored = encode_expect({**POINT, "max_attempts": "5", "on_invalid": "fail"})
    again = parse_expect(json.loads(stored))
    assert (again.max_attempts, again.on_invalid) == (5, "fail")
    assert parse_expect({}) == Expect()


keys = st.sampled_from(["$ref", "items", "not", "allOf", "properties", "x", "type"])
plain_values = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
values = st.recursive(
    plain_values, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4), max_leaves=12
)


@given(values)
def test_whatever_is_given_as_a_schema_is_taken_or_refused_in_words(schema: Any) -> None:
    try:
        expect = parse_expect({"json_schema": schema})
    except Invalid:
        return
    check(expect, "{}")
