"""`credentials`, and what `doctor` and `init` say of models: real processes, whose output holds no key."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import termios
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
ENV = {
    "PYTHONPATH": str(ROOT),
    "PATH": "/usr/bin:/bin",
    "HOME": "/nonexistent",
    "PYTHON_KEYRING_BACKEND": "keyring.backends.fail.Keyring",
}
FILE_KEY = {"KSI_CREDENTIALS_KEY": "a long enough passphrase"}
CANARY = "canary-key-0123456789"


def ksi(home: Path, *arguments: str, stdin: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ksi_mcp", *arguments, "--home", str(home)]
    env = {**ENV, **environ}
    return subprocess.run(command, capture_output=True, text=True, env=env, input=stdin, timeout=60, check=False)


def test_a_key_is_set_from_stdin_listed_used_and_removed(tmp_path: Path) -> None:
    said = [ksi(tmp_path, "credentials", "set", "ANTHROPIC_API_KEY", stdin=f"{CANARY}\n", **FILE_KEY)]
    said.append(ksi(tmp_path, "credentials", "list", **FILE_KEY))
    assert said[-1].stdout == "ANTHROPIC_API_KEY  credentials.enc in the data folder, encrypted\n"
    said.append(ksi(tmp_path, "credentials", "list", "--json", **FILE_KEY))
    assert json.loads(said[-1].stdout) == {"credentials": {"ANTHROPIC_API_KEY": "file"}}
    said.append(ksi(tmp_path, "doctor", "--json", **FILE_KEY))
    facts = json.loads(said[-1].stdout)
    assert facts["default"]["provider"] == "anthropic"
    assert facts["credentials"] == {"ANTHROPIC_API_KEY": "file"}
    assert facts["providers"]["anthropic"] == {
        "answers": True, "why": "the key is in ANTHROPIC_API_KEY (file)", "default": True,
    }  # fmt: skip
    said.append(ksi(tmp_path, "credentials", "remove", "ANTHROPIC_API_KEY", **FILE_KEY))
    said.append(ksi(tmp_path, "credentials", "list", **FILE_KEY))
    assert said[-1].stdout == "none is kept\n"
    assert [each.returncode for each in said] == [0] * len(said)
    assert not any(CANARY in each.stdout + each.stderr for each in said)
    assert not any(CANARY.encode() in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


def test_a_key_is_typed_without_being_shown(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "ksi_mcp", "credentials", "set", "A_KEY", "--home", str(tmp_path)]
    with subprocess.Popen(command, env={**ENV, **FILE_KEY}, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        while b"A_KEY:" not in shown:
            shown += os.read(ours, 1000)
        while termios.tcgetattr(ours)[3] & termios.ECHO:  # what comes before that is thrown away
            time.sleep(0.01)
        os.write(ours, CANARY.encode() + b"\n")
        while b"is kept in" not in shown:
            shown += os.read(ours, 1000)
        assert process.wait(30) == 0
    os.close(ours)
    assert CANARY.encode() not in shown


def test_a_key_in_place_of_a_name_is_refused_and_not_repeated(tmp_path: Path) -> None:
    ended = ksi(tmp_path, "credentials", "set", CANARY, stdin="x", **FILE_KEY)
    assert ended.returncode == 2
    assert "no name of a credential" in ended.stderr
    assert CANARY not in ended.stderr


def test_what_the_file_is_encrypted_with_is_refused_before_it_is_asked_for(tmp_path: Path) -> None:
    ended = ksi(tmp_path, "credentials", "set", "KSI_CREDENTIALS_KEY", stdin=CANARY, **FILE_KEY)
    assert ended.returncode == 2
    assert "cannot be kept among them" in ended.stderr
    assert CANARY not in ended.stdout + ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_without_a_keyring_or_a_key_for_the_file_nothing_is_kept(tmp_path: Path) -> None:
    ended = ksi(tmp_path, "credentials", "set", "A_KEY", stdin=CANARY)
    assert ended.returncode == 2
    assert "no keyring" in ended.stderr
    assert "KSI_CREDENTIALS_KEY" in ended.stderr
    assert CANARY not in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_doctor_shows_profiles_places_and_what_is_wrong_with_them(tmp_path: Path) -> None:
    (tmp_path / "profiles.yaml").write_text(
        "mine: {model: m-1, base_url: 'https://mine.example/v1', api_key_env: MINE_KEY, fallback: [fast]}\n"
        "circle: {model: m-1, fallback: [circle]}\n"
    )
    project = tmp_path / "project"
    (project / ".ksi").mkdir(parents=True)
    (project / ".ksi" / "profiles.yaml").write_text("fast: {base_url: 'https://evil.example'}\n")
    facts = json.loads(ksi(tmp_path, "doctor", "--json", "--project", str(project), MINE_KEY=CANARY).stdout)
    assert facts["providers"]["openai_compatible@mine"]["why"] == "mine.example, the key is in MINE_KEY (environment)"
    problems = " | ".join(facts["profile_problems"])
    assert "circle -> circle" in problems
    assert "profiles.yaml (project): fast: base_url is not a project's to say" in problems
    assert "mine" not in facts["profiles"]  # what stands in for it cannot be used
    alone = ksi(tmp_path, "doctor", MINE_KEY=CANARY)
    assert "profile      mine (user): openai_compatible@mine:m-1, then claude-haiku-5-5" in alone.stdout
    assert alone.returncode == 0
    assert CANARY not in alone.stdout + alone.stderr + json.dumps(facts)


def test_doctor_and_init_say_who_answers_and_why(tmp_path: Path) -> None:
    made = ksi(tmp_path, "init", ANTHROPIC_API_KEY=CANARY).stdout
    assert "Models: anthropic, since there is a key in ANTHROPIC_API_KEY (environment)." in made
    (tmp_path / "profiles.yaml").write_text("ollama: {base_url: 'http://127.0.0.1:1/v1'}\n")
    (tmp_path / "config.yaml").write_text("provider: external\n")
    lines = ksi(tmp_path, "doctor").stdout
    assert "default      external host: config.yaml says so" in lines
    assert "Ollama       does not answer" in lines
    assert "claude code  no, " in lines
    assert CANARY not in made + lines
