"""--talk-id: other metadata for a dialog that is there already."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from conftest import SCRIPT, Outcome, Run, arguments, make_wav
from stand_in import Fail, Freeze, StandIn, Talk

pytestmark = pytest.mark.usefixtures("waits")

STATUS = grpc.StatusCode
ANNA = {"id": "op-7", "role": "operator", "fields": {"name": "Анна"}}
FIRST, NEW = {"language": "en-US", "note": "first"}, {"language": "ru-RU"}


@pytest.fixture
def talk(upload: Run, service: StandIn, tmp_path: Path) -> Talk:
    """Upload a dialog with metadata, and forget how."""
    path = make_wav(tmp_path / "call.wav", 1_000)
    path.with_suffix(".json").write_text(json.dumps(FIRST))
    assert upload("--audio-path", path).code == 0
    service.calls.clear()
    [talk] = service.talks.values()
    return talk


@pytest.fixture
def metadata(tmp_path: Path) -> Path:
    path = tmp_path / "new.json"
    path.write_text(json.dumps({**NEW, "users": [ANNA]}))
    return path


@pytest.fixture
def update(upload: Run, talk: Talk, metadata: Path) -> Run:
    return lambda *words: upload("--talk-id", talk.talk_id, "--meta-path", metadata, *words)


def test_metadata_alone_is_sent_and_takes_the_place_of_what_is_there(
    update: Run, service: StandIn, talk: Talk
) -> None:
    before = (talk.sha256, talk.size, talk.connection_id)
    assert update() == Outcome(0, f"Dialog ID: {talk.talk_id}\n", "")
    assert (talk.fields, talk.users) == (NEW, [{**ANNA, "role": "USER_ROLE_OPERATOR"}])
    assert (talk.sha256, talk.size, talk.connection_id) == before
    [received] = service.calls
    assert (received.method, received.messages) == ("Upload", ["talk_id", "metadata"])
    assert list(service.talks) == [talk.talk_id]

    outcome = update("--format", "json")
    result = json.loads(outcome.out)
    assert (outcome.code, outcome.err) == (0, "")
    assert (result["outcome"], result["talk_id"]) == ("updated", talk.talk_id)
    assert result["request_id"] == service.calls[1].client_request_id


def test_a_dry_run_says_what_would_be_sent(update: Run, service: StandIn, talk: Talk) -> None:
    outcome = update("--dry-run")
    assert (outcome.code, outcome.err, service.calls) == (0, "", [])
    assert outcome.out.startswith(f"{talk.talk_id}: would be updated: ")
    assert "ru-RU" in outcome.out and "1 user" in outcome.out
    assert json.loads(update("--dry-run", "--format", "json").out)["outcome"] == "checked"
    assert talk.fields == FIRST


def test_an_id_that_cannot_be_printed_is_on_stderr(
    service: StandIn, talk: Talk, metadata: Path
) -> None:
    words = arguments(service, "--talk-id", talk.talk_id, "--meta-path", metadata)
    with open("/dev/full", "w", encoding="utf-8") as full:
        command = [sys.executable, str(SCRIPT), *words]
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=30, check=False
        )
    assert done.returncode == os.EX_IOERR
    assert "stdout cannot be written" in done.stderr
    assert f"Dialog ID: {talk.talk_id}" in done.stderr


def test_metadata_that_is_wrong_is_not_sent(update: Run, service: StandIn, metadata: Path) -> None:
    metadata.write_text('{"users": [{"id": "1"}]}')
    outcome = update()
    assert (outcome.code, outcome.out, service.calls) == (65, "", [])
    assert f"{metadata}: " in outcome.err and "role" in outcome.err


def test_a_try_without_an_answer_is_repeated_as_it_makes_no_second_dialog(
    update: Run, service: StandIn, talk: Talk
) -> None:
    for step in (
        Fail(STATUS.UNAVAILABLE, "gone", store=True),
        Fail(STATUS.INTERNAL, "broken", store=True),
        Fail(STATUS.RESOURCE_EXHAUSTED, "too many"),
        Freeze(store=True),
    ):
        talk.fields = FIRST
        service.script, service.calls[:] = [step], []
        timeout = ("--timeout", 3 if isinstance(step, Freeze) else 30)
        outcome = update(*timeout)
        assert (outcome.code, outcome.out) == (0, f"Dialog ID: {talk.talk_id}\n"), step
        assert (len(service.calls), talk.fields) == (2, NEW)
        # And never unknown.
        service.script = [step]
        outcome = update(*timeout, "--retries", 0, "--format", "json")
        assert (outcome.code, json.loads(outcome.out)["outcome"]) == (75, "failed")


@pytest.mark.parametrize(
    ("status", "code"),
    [(STATUS.NOT_FOUND, 78), (STATUS.PERMISSION_DENIED, 77), (STATUS.INVALID_ARGUMENT, 65)],
)
def test_a_refusal_is_final_and_names_the_dialog(
    update: Run, service: StandIn, talk: Talk, status: grpc.StatusCode, code: int
) -> None:
    service.script.append(Fail(status, "as scripted"))
    outcome = update()
    assert (outcome.code, outcome.out, len(service.calls)) == (code, "", 1)
    assert talk.talk_id in outcome.err and status.name in outcome.err
    assert talk.fields == FIRST
