"""A mistake at the command line: what was wrong, with which value, and the command that comes next."""

from __future__ import annotations

from pathlib import Path

import pytest

from ksi_mcp.__main__ import run
from ksi_mcp.cli.twin.wording import as_commands

MISTAKES = [
    (("init", "--client", "bogus"), "--client cannot be 'bogus'; one of claude-code, claude-desktop, cursor,"),
    (("tokens", "foo"), "ACTION cannot be 'foo'; one of create, list, revoke;"),
    (("events", "--limit", "-1"), "--limit must be at least 0, not -1;"),
    (("serve", "--port", "99999"), "--port must be at most 65535, not 99999;"),
    (("serve", "--port", "abc"), "--port takes a whole number, not 'abc';"),
    (("run", "consensus", "--budget", "usd=1"), "--budget takes a number, not 'usd=1'; see `ksi-mcp run --help`"),
    (("call",), "missing argument 'TOOL'; see `ksi-mcp call --help`"),
    (("api-sim", "--script", "/nope"), "'/nope' does not exist"),
    (("--home", "x", "agent", "list"), "--home, --project, --json, --yes come after the command"),
    (("agent", "spawn", "--budget", "1"), "fields are usd, tokens, turns, seconds, policy"),
    (("usage", "--since", "yesterday"), "--since cannot be 'yesterday'; write 90m, 24h, 7d or 4w, or a day or moment"),
]


@pytest.mark.parametrize(("arguments", "says"), MISTAKES, ids=lambda each: " ".join(each)[:30])
def test_a_mistake_names_the_word_its_value_and_what_it_takes(arguments: tuple[str, ...], says: str, capsys) -> None:
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert says in err
    assert (out, err.count("\n"), "Value error" in err, "Input should" in err) == ("", 1, False, False)


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_has_its_short_name_everywhere(flag: str, capsys) -> None:
    for arguments in ((flag,), ("tokens", flag), ("agent", flag), ("agent", "list", flag)):
        assert run(arguments) == 0
        assert "-h, --help" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("hint", "here"),
    [
        ("agent_list shows 6 agents", "`ksi-mcp agent list` shows 6 agents"),
        ("routing_query_rules lists them", "`ksi-mcp routing query-rules` lists them"),
        ("composition_discover(type='agent') lists", "`ksi-mcp composition discover --type agent` lists"),
        ("event_query(names=['x'], limit=3) says", "event_query(names=['x'], limit=3) says"),
        ("completion_answer(turn, text) ends it", "`ksi-mcp completion answer TURN TEXT` ends it"),
        ("its agent_name is taken", "its agent_name is taken"),
        ("`ksi-mcp agent list` and mcp__ksi__agent_list", "`ksi-mcp agent list` and mcp__ksi__agent_list"),
        ("did you mean agent_send?", "did you mean agent_send?"),
    ],
)
def test_a_hint_names_commands_and_not_tools(hint: str, here: str) -> None:
    assert as_commands(hint) == here


def test_what_is_not_valid_ends_a_check_with_the_code_of_an_invalid_value(tmp_path: Path, capsys) -> None:
    home = ("--home", str(tmp_path), "--json")
    rule = ("routing", "validate-rule", "--target", "c:d", *home, "--source-pattern")
    for code, arguments in (
        (2, ("composition", "validate", '{"name": 1}', *home)),
        (0, ("composition", "validate", '{"name": "mine", "type": "component", "content": "x"}', *home)),
        (2, (*rule, "a b")),
        (0, (*rule, "a:b")),
    ):
        assert run(arguments) == code
        assert f'"valid": {"true" if code == 0 else "false"}' in capsys.readouterr().out
