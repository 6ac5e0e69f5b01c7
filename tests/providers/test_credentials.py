from __future__ import annotations

import contextlib
import logging
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import keyring
import pytest
from keyring.backend import KeyringBackend
from keyring.errors import KeyringLocked

from ksi_mcp.errors import Invalid, NotFound, StoreError
from ksi_mcp.providers.credentials import FILE, SERVICE, Credentials

KEY = "canary-key-0123456789"
FILE_KEY = {"KSI_CREDENTIALS_KEY": "a long enough passphrase"}
WITH_RING = {"PYTHON_KEYRING_BACKEND": "chosen by the test"}


class Ring(KeyringBackend):
    """A keyring that keeps what it is given as long as it lives."""

    priority = 5

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], str] = {}
        self.locked = False

    def get_password(self, service: str, username: str) -> str | None:
        if self.locked:
            raise KeyringLocked(KEY)
        return self.kept.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        if self.locked:
            raise KeyringLocked(KEY)
        self.kept[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        del self.kept[service, username]


@pytest.fixture
def ring() -> Any:
    before, ring = keyring.core._keyring_backend, Ring()
    keyring.set_keyring(ring)
    yield ring
    keyring.core._keyring_backend = before


def test_the_environment_comes_first_then_the_keyring_then_the_file(tmp_path: Path, ring: Ring) -> None:
    Credentials(FILE_KEY, tmp_path).set("A_KEY", "from-file")
    ring.kept[SERVICE, "A_KEY"] = "from-ring"
    everywhere = Credentials({**FILE_KEY, **WITH_RING, "A_KEY": " from-environment\n"}, tmp_path)
    assert (everywhere.get("A_KEY"), everywhere.source("A_KEY")) == ("from-environment", "environment")
    without = Credentials({**FILE_KEY, **WITH_RING, "A_KEY": ""}, tmp_path)
    assert (without.get("A_KEY"), without.source("A_KEY")) == ("from-ring", "keyring")
    ring.kept.clear()
    assert (without.get("A_KEY"), without.source("A_KEY")) == ("from-file", "file")
    assert without.get("B_KEY") is None


def test_a_key_is_kept_in_the_keyring_and_listed_without_its_value(tmp_path: Path, ring: Ring) -> None:
    credentials = Credentials(WITH_RING, tmp_path)
    assert credentials.set("B_KEY", KEY) == "keyring"
    assert credentials.set("A_KEY", KEY) == "keyring"
    assert credentials.kept() == {"A_KEY": "keyring", "B_KEY": "keyring"}
    assert credentials.remove("B_KEY") == "keyring"
    assert credentials.kept() == {"A_KEY": "keyring"}
    assert not (tmp_path / FILE).exists()


def test_a_keyring_that_is_locked_is_passed_over_and_says_so_without_the_key(
    tmp_path: Path, ring: Ring, caplog: pytest.LogCaptureFixture
) -> None:
    ring.locked = True
    credentials = Credentials({**WITH_RING, **FILE_KEY}, tmp_path)
    with caplog.at_level(logging.DEBUG):
        assert credentials.get("A_KEY") is None
        with pytest.raises(StoreError, match="did not take A_KEY") as caught:
            credentials.set("A_KEY", KEY)
    assert "KeyringLocked" in caplog.text
    assert KEY not in caplog.text + caught.value.text()


def test_a_keyring_that_keeps_nothing_safe_is_none(tmp_path: Path, ring: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ring, "priority", 0.5)  # as those that write plain text have it
    assert Credentials({**WITH_RING, **FILE_KEY}, tmp_path).set("A_KEY", KEY) == "file"
    assert ring.kept == {}


def test_the_file_is_encrypted_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    credentials = Credentials(FILE_KEY, tmp_path)
    assert credentials.set("A_KEY", KEY + "\n") == "file"
    credentials.set("B_KEY", "other")
    file = tmp_path / FILE
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert KEY.encode() not in file.read_bytes()
    assert b"A_KEY" not in file.read_bytes()
    assert {each.name: stat.S_IMODE(each.stat().st_mode) for each in tmp_path.iterdir()} == {
        FILE: 0o600,
        ".credentials.lock": 0o600,
    }
    again = Credentials(FILE_KEY, tmp_path)
    assert (again.get("A_KEY"), again.get("B_KEY")) == (KEY, "other")
    assert again.remove("A_KEY") == "file"
    assert credentials.get("A_KEY") is None  # it was read anew
    assert KEY not in repr(again)


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"KSI_CREDENTIALS_KEY": "another passphrase!!"}, "is not the one that it was written with"),
        ({}, "KSI_CREDENTIALS_KEY is not set"),
    ],
)
def test_a_file_that_cannot_be_decrypted_is_refused_and_left_alone(
    tmp_path: Path, environ: dict[str, str], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    Credentials(FILE_KEY, tmp_path).set("A_KEY", KEY)
    before = (tmp_path / FILE).read_bytes()
    credentials = Credentials(environ, tmp_path)
    assert credentials.get("A_KEY") is None
    assert said in str(credentials.problem())
    with pytest.raises(Invalid):
        credentials.set("B_KEY", KEY)
    assert (tmp_path / FILE).read_bytes() == before
    assert KEY not in caplog.text
    assert "passed over" in caplog.text


@pytest.mark.parametrize(
    "data", [b"", b"nonsense", b"ksi-credentials-1\n%%\n%%\n", b"ksi-credentials-1\n" + b"x" * 2000]
)
def test_a_damaged_file_is_no_file_of_credentials(tmp_path: Path, data: bytes) -> None:
    (tmp_path / FILE).write_bytes(data)
    credentials = Credentials(FILE_KEY, tmp_path)
    assert credentials.get("A_KEY") is None
    assert FILE in str(credentials.problem())


def test_a_file_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    Credentials(FILE_KEY, elsewhere).set("A_KEY", KEY)
    (tmp_path / FILE).symlink_to(elsewhere / FILE)
    assert Credentials(FILE_KEY, tmp_path).get("A_KEY") is None


def test_without_a_place_there_is_a_clear_refusal(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="no place for a credential") as caught:
        Credentials({}, tmp_path).set("A_KEY", KEY)
    assert "KSI_CREDENTIALS_KEY" in caught.value.text()
    with pytest.raises(Invalid, match="too short"):
        Credentials({"KSI_CREDENTIALS_KEY": "short"}, tmp_path).set("A_KEY", KEY)
    with pytest.raises(NotFound, match="is in the environment"):
        Credentials({"A_KEY": KEY}, tmp_path).remove("A_KEY")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "a_key", "1KEY", "A KEY", "A=B", "names", KEY, "A" * 101])
def test_what_is_no_name_is_refused_and_not_repeated(tmp_path: Path, name: str) -> None:
    with pytest.raises(Invalid, match="no name of a credential") as caught:
        Credentials(FILE_KEY, tmp_path).set(name, KEY)
    assert KEY not in caught.value.text()


@pytest.mark.parametrize("value", ["", "  \n", "two\nlines", "x" * 10_001, "nul\0"])
def test_what_is_no_key_is_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(Invalid, match="is empty or no key"):
        Credentials(FILE_KEY, tmp_path).set("A_KEY", value)


def test_what_the_file_is_encrypted_with_is_no_credential_in_it(tmp_path: Path, ring: Ring) -> None:
    ring.kept[SERVICE, "KSI_CREDENTIALS_KEY"] = "nobody asks for it there"
    assert Credentials(WITH_RING, tmp_path).get("KSI_CREDENTIALS_KEY") is None


@pytest.mark.parametrize("environ", [FILE_KEY, WITH_RING])
def test_what_the_file_is_encrypted_with_is_not_kept_beside_it(
    tmp_path: Path, ring: Ring, environ: dict[str, str]
) -> None:
    with pytest.raises(Invalid, match="cannot be kept among them") as caught:
        Credentials(environ, tmp_path).set("KSI_CREDENTIALS_KEY", KEY)
    assert KEY not in caught.value.text()
    assert ring.kept == {}
    assert list(tmp_path.iterdir()) == []
    assert Credentials(FILE_KEY, tmp_path).get("KSI_CREDENTIALS_KEY") is None  # nobody's key to be sent anywhere


def test_a_file_that_others_can_read_is_made_private_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Credentials(FILE_KEY, tmp_path).set("A_KEY", KEY)
    (tmp_path / FILE).chmod(0o644)
    assert Credentials(FILE_KEY, tmp_path).get("A_KEY") == KEY
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600
    assert "could be read by others; its mode is 0600 now" in caplog.text


SETS = """
import sys
from pathlib import Path
from ksi_mcp.providers.credentials import Credentials
kept = Credentials({"KSI_CREDENTIALS_KEY": "a long enough passphrase"}, Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for each in range(4):
    kept.set(f"KEY_{sys.argv[2]}_{each}", "value")
kept.remove(f"KEY_{sys.argv[2]}_0")
"""


def test_processes_that_set_keys_at_once_lose_none(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SETS, str(tmp_path)]
    env = {"PYTHONPATH": str(Path(__file__).parent.parent.parent)}
    with contextlib.ExitStack() as stack:
        started = [
            stack.enter_context(
                subprocess.Popen([*command, str(n)], env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            )
            for n in range(6)
        ]
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in started:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in started:
            process.communicate(timeout=60)
        assert [process.returncode for process in started] == [0] * 6
    expected = {f"KEY_{n}_{each}": "file" for n in range(6) for each in range(1, 4)}
    assert Credentials(FILE_KEY, tmp_path).kept() == expected
