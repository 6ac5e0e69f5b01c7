"""A program that misbehaves as Claude Code might, told by the prompt how. Run as a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SESSION = "00000000-0000-4000-8000-000000000001"


def put(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def say(**event: Any) -> None:
    put(json.dumps(event))


def delta(text: str) -> None:
    say(type="stream_event", event={"type": "message_start", "message": {"model": "claude-fake"}})
    say(type="stream_event", event={"type": "content_block_delta", "delta": {"type": "text_delta", "text": text}})


def result(text: str, **more: Any) -> None:
    say(
        type="result",
        **{
            "subtype": "success", "is_error": False, "result": text, "session_id": SESSION, "stop_reason": "end_turn",
            "total_cost_usd": 0.001, "usage": {"input_tokens": 10, "output_tokens": 5},
            "modelUsage": {"claude-fake": {"inputTokens": 10, "outputTokens": 5}}, **more,
        },
    )  # fmt: skip


def tree() -> None:
    """Children in the same group, and one that has left it for a session of its own; their ids go to a file."""
    sleep = [sys.executable, "-c", "import signal,time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"]
    children = [subprocess.Popen(sleep), subprocess.Popen(sleep, start_new_session=True)]
    Path("pids").write_text(json.dumps([os.getpid(), *(child.pid for child in children)]))


def act(prompt: str) -> None:
    match prompt.split(maxsplit=1)[0]:
        case "HANG":
            time.sleep(600)
        case "DEAF":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            delta("I hear nothing")
            time.sleep(600)
        case "TREE":
            tree()
            delta("three of us")
            time.sleep(600)
        case "DIE":
            sys.exit(7)
        case "ORPHAN":
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])  # holds stdout
            sys.exit(3)
        case "HALF":
            delta("half an ans")
            os.kill(os.getpid(), signal.SIGKILL)
        case "LINE":
            sys.stdout.write('{"type": "' + "x" * (17 * 1024 * 1024) + '"}\n')
            sys.stdout.flush()
            time.sleep(600)
        case "FLOOD":
            line = json.dumps({"type": "noise", "text": "x" * 1_000_000}) + "\n"
            while True:
                sys.stdout.write(line)
        case "PROSE":
            put("Something went wrong, and here is prose about sk-canary-0123456789abcdef.")
            sys.exit(1)
        case "CHATTER":
            put("Update available!\n[1, 2]\n" + "[" * 100_000)
            sys.stderr.write("warning\n" * 100_000)  # more than a pipe holds
            sys.stderr.flush()
            delta("still fine")
            result("still fine")
        case "QUIET":
            os.close(1)
            time.sleep(600)
        case "OPTION":
            sys.stderr.write("error: unknown option '--restricted'\n")
            sys.exit(1)
        case "ASK":
            say(type="control_request", request_id="r1", request={"subtype": "can_use_tool"})
            answer = json.loads(sys.stdin.readline())
            result(answer["response"]["error"])
        case "ARGS":
            result(json.dumps([sys.argv[1:], dict(os.environ)]))
        case _:
            result(prompt)


def main() -> None:
    for line in sys.stdin:
        act(json.loads(line)["message"]["content"][0]["text"])


if __name__ == "__main__":
    main()
