from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ksi_mcp.errors import Invalid
from ksi_mcp.templates import MissingValue, get_path, names, render, render_tree, required

SCOPE: dict[str, Any] = {
    "data": {"score": 0.5, "items": [{"score": 3}, {"score": 4}], "none": None, "odd key": 1, "flag": True},
    "agent": "ann",
    "text": "{{agent}}",
}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{data.score}}", 0.5),
        ("{{ data.items[0].score }}", 3),
        ("{{data.items.1.score}}", 4),
        ("{{data.items[-1].score}}", 4),
        ('{{data["odd key"]}}', 1),
        ("{{data.none}}", None),
        ("{{data.none|7}}", None),
        ("{{$}}", SCOPE),
        ("{{$.agent}}", "ann"),
        ("hello {{agent}}!", "hello ann!"),
        ("{{data.flag}} {{data.none}} {{data.score}}", "true null 0.5"),
        ("got {{data.items}}", 'got [{"score": 3}, {"score": 4}]'),
        ("{{nobody|agent}}", "ann"),
        ("{{nobody|nothing}}", "nothing"),
        ("{{nobody|3}}", 3),
        ("{{nobody|no such thing}}", "no such thing"),
        ("{{nobody|default: a | b}}", "a | b"),
        ("{{nobody|default: 12.5}}", 12.5),
        ("{{nobody|default: false}}", False),
        ("{{nobody|default: null}}", None),
        ('{{nobody|default: "12"}}', "12"),
        ("{{nobody|default: '12'}}", "12"),
        ("{{nobody|default:}}", ""),
        ("n={{nobody|default: 12}}", "n=12"),
        ("{{nobody|default: 1.0.2}}", "1.0.2"),
        ("no template", "no template"),
        ("", ""),
        ("open {{ only", "open {{ only"),
        ('{"a": {{data.score}}}', '{"a": 0.5}'),
    ],
)
def test_a_template_gives(template: str, expected: Any) -> None:
    assert render(template, SCOPE) == expected


def test_a_missing_value_names_the_path_and_the_expression() -> None:
    with pytest.raises(MissingValue) as caught:
        render("to {{data.nobody}}", SCOPE)
    assert (caught.value.name, caught.value.template) == ("data.nobody", "{{data.nobody}}")
    assert caught.value.code == "invalid"


@pytest.mark.parametrize("path", ["a.b|c.d", "a|b[0]"])
def test_a_last_path_that_is_not_a_bare_word_is_no_default(path: str) -> None:
    with pytest.raises(MissingValue):
        render("{{" + path + "}}", {})


@pytest.mark.parametrize(
    "template", ["{{}}", "{{a b}}", "{{a..b}}", "{{a()}}", "{{a|}}}}", "{{1a}}", "{{a {{b}}", "{{|a}}", "{{a[}}"]
)
def test_a_malformed_expression_is_refused(template: str) -> None:
    if template == "{{a|}}}}":  # an empty default is fine; the rest is text
        assert render(template, {}) == "}}"
        return
    with pytest.raises(Invalid, match="malformed"):
        render(template, {"a": 1, "b": 2})


def test_what_a_template_puts_out_is_not_expanded_again() -> None:
    assert render("{{text}}", SCOPE) == "{{agent}}"
    assert render("<{{text}}>", SCOPE) == "<{{agent}}>"
    assert render_tree({"a": ["{{text}}"]}, SCOPE) == {"a": ["{{agent}}"]}


def test_attributes_are_never_reached() -> None:
    for path in ("data.__class__", "agent.upper", "agent.__len__", "data.items.append"):
        with pytest.raises(MissingValue):
            get_path(SCOPE, path)


def test_a_path_with_a_default_does_not_raise() -> None:
    assert get_path(SCOPE, "data.nobody", default=None) is None
    assert get_path([{"a": 1}], "$[0].a") == 1
    with pytest.raises(Invalid, match="not a path"):
        get_path(SCOPE, "data.", default=None)


def test_a_tree_keeps_keys_and_types_and_shares_nothing_with_the_scope() -> None:
    made = render_tree({"to": "{{agent}}", "n": 1, "all": "{{data.items}}", "{{agent}}": [None, True]}, SCOPE)
    assert made == {"to": "ann", "n": 1, "all": [{"score": 3}, {"score": 4}], "{{agent}}": [None, True]}
    made["all"].append(1)
    assert len(SCOPE["data"]["items"]) == 2


@pytest.mark.parametrize(
    ("value", "scope"),
    [
        (["{{a}}"] * 100, {"a": "x" * 1000}),
        ("{{a}}" * 100, {"a": "x" * 1000}),
        ("{{a}}" * 100 + ".", {"a": ["x" * 1000]}),
        (["{{a}}"] * 200, {"a": list(range(100))}),
        ("x" * 64_001, {}),
    ],
)
def test_a_result_beyond_the_bounds_is_refused(value: Any, scope: dict[str, Any]) -> None:
    with pytest.raises(Invalid, match="longer than|more than"):
        render_tree(value, scope)


def test_endless_depth_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(Invalid, match="deeper"):
        render_tree("{{a}}", {"a": loop})
    with pytest.raises(Invalid, match="deeper"):
        render("a {{a}}", {"a": loop})
    with pytest.raises(Invalid, match="deeper"):
        names(loop)


def test_values_that_json_does_not_know_are_refused() -> None:
    for value in (object(), {1: 2}, 10**5000):
        with pytest.raises(Invalid):
            render("{{a}}", {"a": value})


def test_names_and_required_list_the_paths() -> None:
    tree = {"a": "{{x}} {{y.z|0}} {{u|v}}", "b": ["{{x}}", {"c": "{{w|default: 1}}"}]}
    assert names(tree) == ["x", "y.z", "u", "v", "w"]
    assert required(tree) == ["x"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)
plain_text = st.text(max_size=50).filter(lambda text: "{{" not in text)


@settings(deadline=None)
@given(json_values)
def test_a_whole_string_template_gives_back_the_value(value: Any) -> None:
    assert render("{{v}}", {"v": value}) == value


@settings(deadline=None)
@given(json_values, plain_text)
def test_inside_text_anything_but_text_is_json(value: Any, before: str) -> None:
    if before.endswith("{"):
        return
    written = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    assert render(before + "{{v}}.", {"v": value}) == f"{before}{written}."


@settings(deadline=None)
@given(st.text(alphabet="{}|ab.[]0 :\"'$default", max_size=30), json_values)
def test_no_text_raises_anything_but_invalid(template: str, value: Any) -> None:
    with contextlib.suppress(Invalid):
        names(template)
        render(template, {"a": value, "b": {"a": [value]}})


@settings(deadline=None)
@given(st.text(alphabet="ab.[]0$'\" x", max_size=15), json_values)
def test_get_path_finds_a_value_or_says_that_it_is_missing(path: str, value: Any) -> None:
    try:
        found = get_path({"a": value, "b": [value, {"a": value}]}, path)
    except Invalid:
        return
    json.dumps(found)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{title|slugify}}", "a-long-title"),
        ("notes/{{ title | slugify }}.md", "notes/a-long-title.md"),
        ("{{gone|title|slugify}}", "a-long-title"),
        ("{{gone|slugify|default: none}}", "none"),
        ("{{number|slugify}}", "7"),
        ("{{odd|slugify}}", "cafe-x"),
    ],
)
def test_a_value_can_be_written_as_a_slug(template: str, expected: str) -> None:
    assert render(template, {"title": "  A long, Title! ", "number": 7, "odd": "Café/../x"}) == expected


def test_a_slug_of_what_is_not_there_is_missing() -> None:
    with pytest.raises(MissingValue) as caught:
        render("{{gone|slugify}}", {})
    assert caught.value.name == "gone"
    assert names("{{a|b|slugify}}") == ["a", "b"]
