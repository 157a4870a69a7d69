"""To be moved."""

from __future__ import annotations

from pathlib import Path

import grpc
import ledgers
from conftest import Run, make_wav
from stand_in import Fail, StandIn

NO_QUOTA = Fail(grpc.StatusCode.RESOURCE_EXHAUSTED, "quota")


def test_an_update_that_works_is_no_sign_that_uploads_do(
    upload: Run, service: StandIn, tmp_path: Path, ledger: Path
) -> None:
    folder = tmp_path / "calls"
    folder.mkdir()
    first = make_wav(folder / "0.wav", 3_000)
    first.with_suffix(".json").write_text('{"a": "b"}')
    words = ("--audio-path", folder, "--ledger", ledger, "--retries", 0, "--quiet")
    assert upload(*words).code == 0
    make_wav(folder / "1.wav", 3_000)
    first.with_suffix(".json").write_text('{"a": "changed"}')
    service.on_call = lambda call: None if call.method == "Upload" else NO_QUOTA
    assert upload(*words, "--update-metadata").code == 75
    assert [talk.fields["a"] for talk in service.talks.values()] == ["changed"]
    assert "outage" in [problem["cause"] for problem in ledgers.problems(ledger)]
