from __future__ import annotations

import stat

import pytest

from ksi_mcp.config import Home
from ksi_mcp.errors import Invalid
from ksi_mcp.permissions import OPERATOR
from ksi_mcp.transports.auth import caller_of, read_or_make_token


def mode(home: Home) -> int:
    return stat.S_IMODE(home.token.stat().st_mode)


def test_a_token_is_made_once_and_is_for_its_owner_only(home):
    token = read_or_make_token(home)
    assert len(token) >= 40
    assert read_or_make_token(home) == token
    assert mode(home) == 0o600
    assert [path.name for path in home.root.iterdir() if "token" in path.name] == ["token"]


def test_a_token_that_others_can_read_is_made_private(home, caplog):
    token = read_or_make_token(home)
    home.token.chmod(0o644)
    assert read_or_make_token(home) == token
    assert mode(home) == 0o600
    assert token not in caplog.text


@pytest.mark.parametrize("content", ["", "short", "two words that are long enough", "ünïcödé-that-is-long-enough"])
def test_a_file_without_a_secret_in_it_is_refused(home, content):
    home.token.write_text(content)
    with pytest.raises(Invalid, match="does not hold a token") as failure:
        read_or_make_token(home)
    assert str(home.root) not in failure.value.text()


def test_a_link_in_place_of_the_token_is_refused(home, tmp_path):
    (tmp_path / "elsewhere").write_text("x" * 40)
    home.token.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Invalid, match="cannot be used"):
        read_or_make_token(home)


@pytest.mark.parametrize(
    ("headers", "let_in"),
    [
        ([(b"authorization", b"Bearer secret")], True),
        ([(b"authorization", b"bearer secret")], True),
        ([(b"authorization", b"Bearer secret2")], False),
        ([(b"authorization", b"Bearer ")], False),
        ([(b"authorization", b"Bearer secret"), (b"authorization", b"Bearer other")], False),
        ([(b"authorization", "Bearer sécret".encode())], False),
        ([(b"x-token", b"Bearer secret")], False),
        ([], False),
    ],
)
async def test_only_the_very_token_lets_the_operator_in(headers, let_in):
    async def nobody(text: str) -> None:
        assert text not in ("", "secret")

    assert await caller_of(headers, "secret", nobody) == (OPERATOR if let_in else None)
