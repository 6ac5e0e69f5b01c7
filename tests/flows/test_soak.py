"""The soak of `benchmarks/soak.py`, short: a few clients, one data folder, and `kill -9` of anybody at any moment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
MINUTES = 20 / 60
CLIENTS = 4
THOROUGH = bool(os.environ.get("KSI_TEST_THOROUGH"))


@pytest.mark.skipif(not THOROUGH, reason="takes half a minute: set KSI_TEST_THOROUGH=1, as CI does")
@pytest.mark.timeout(600)
def test_clients_and_workers_that_are_killed_lose_nothing_and_repeat_nothing() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "soak.py"), "--minutes", str(MINUTES)]
    # Nothing it looks at depends on how much of it was done: a slow machine does less, and the same must hold.
    done = subprocess.run(
        [*command, "--clients", str(CLIENTS)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("all as it must be")
