"""The protocol's own suite and the Inspector find nothing, in both eras. Both come from npm: see the scripts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.mark.skipif(
    "KSI_TEST_THOROUGH" not in os.environ, reason="KSI_TEST_THOROUGH is not set: it fetches programs from npm"
)
@pytest.mark.timeout(600)  # npm may have to fetch them first
@pytest.mark.parametrize("script", ["conformance", "inspector"])
def test_the_protocol_s_own_programs_find_nothing(script):
    if shutil.which("npx") is None:
        pytest.skip(f"scripts/{script} wants npx, of any Node.js")
    done = subprocess.run([sys.executable, SCRIPTS / script], capture_output=True, text=True, timeout=580, check=False)
    if done.stdout.startswith("skipped: "):
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
