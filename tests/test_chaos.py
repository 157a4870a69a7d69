"""A few seconds of the campaigns that `make chaos` runs for minutes."""

from __future__ import annotations

import chaos
import pytest
from conftest import WAITS

import upload_grpc


@pytest.mark.parametrize("campaign", [*chaos.CAMPAIGNS])
def test_nothing_is_lost_or_doubled(
    campaign: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload_grpc, WAITS["backoff"], upload_grpc.BACKOFF_S)  # Put back then.
    code = chaos.main(["--short", campaign])
    out, err = capfd.readouterr()
    assert code == 0, out + err
    assert ", 0 failed" in out.splitlines()[-1]
    assert err == ""
