"""A few seconds of the campaigns that `make chaos` runs for minutes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CHAOS = Path(__file__).parent / "chaos.py"


@pytest.mark.parametrize(
    "campaign", ["cuts", "kills", "pairs", "lookups", "clock", "first", "conversions", "updates"]
)
def test_nothing_is_lost_or_doubled(campaign: str) -> None:
    command = [sys.executable, str(CHAOS), "--short", campaign]
    result = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert ", 0 failed" in result.stdout.splitlines()[-1]
    assert result.stderr == ""
