"""--talk-id: other metadata for a dialog that is there already."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from conftest import Outcome, Run, make_wav
from stand_in import Fail, Freeze, StandIn, Talk

ANNA = {"id": "op-7", "role": "operator", "fields": {"name": "Анна"}}
ANNA_SENT = {"id": "op-7", "role": "USER_ROLE_OPERATOR", "fields": {"name": "Анна"}}

Update = Callable[..., Outcome]


@pytest.fixture
def talk(upload: Run, service: StandIn, tmp_path: Path) -> Talk:
    """Upload a dialog with metadata, and forget how."""
    path = make_wav(tmp_path / "call.wav", 1_000)
    path.with_suffix(".json").write_text('{"language": "en-US", "note": "first"}')
    assert upload("--audio-path", path).code == 0
    service.calls.clear()
    [talk] = service.talks.values()
    return talk


@pytest.fixture
def metadata(tmp_path: Path) -> Path:
    path = tmp_path / "new.json"
    path.write_text(json.dumps({"language": "ru-RU", "users": [ANNA]}))
    return path


@pytest.fixture
def update(upload: Run, talk: Talk, metadata: Path) -> Update:
    return lambda *words: upload("--talk-id", talk.talk_id, "--meta-path", metadata, *words)


def untouched(talk: Talk) -> bool:
    return talk.fields == {"language": "en-US", "note": "first"} and talk.users == []


# --- What it does -----------------------------------------------------------------------------


def test_fields_and_users_take_the_place_of_those_there(
    update: Update, service: StandIn, talk: Talk
) -> None:
    before = (talk.sha256, talk.size, talk.connection_id)
    outcome = update()
    assert outcome == Outcome(0, f"Dialog ID: {talk.talk_id}\n", "")
    assert (talk.fields, talk.users) == ({"language": "ru-RU"}, [ANNA_SENT])
    assert (talk.sha256, talk.size, talk.connection_id) == before
    [received] = service.calls
    assert (received.method, received.messages) == ("Upload", ["talk_id", "metadata"])
    assert list(service.talks) == [talk.talk_id]


def test_json_says_updated(update: Update, service: StandIn, talk: Talk) -> None:
    outcome = update("--format", "json")
    result = json.loads(outcome.out)
    assert (outcome.code, outcome.err) == (0, "")
    assert (result["outcome"], result["exit_code"]) == ("updated", 0)
    assert (result["talk_id"], result["talk_ids"]) == (talk.talk_id, [talk.talk_id])
    assert result["request_id"] == service.calls[0].metadata["x-client-request-id"]


def test_space_around_the_id_is_dropped(upload: Run, talk: Talk, metadata: Path) -> None:
    assert upload("--talk-id", f" {talk.talk_id}\n", "--meta-path", metadata).code == 0
    assert not untouched(talk)


def test_dates_are_looked_at(update: Update, metadata: Path) -> None:
    metadata.write_text('{"date": "2026-03-17 14:05"}')
    outcome = update()
    assert outcome.code == 0
    assert "no ISO 8601 date with an offset" in outcome.err


@pytest.mark.parametrize("words", [(), ("--quiet",), ("--format", "json")], ids=" ".join)
def test_a_dry_run_says_what_would_be_sent(
    update: Update, service: StandIn, talk: Talk, words: tuple[str, ...]
) -> None:
    outcome = update("--dry-run", *words)
    assert (outcome.code, outcome.err, service.calls) == (0, "", [])
    assert talk.talk_id in outcome.out
    if "json" in words:
        assert json.loads(outcome.out)["outcome"] == "checked"
    else:
        assert '{"language": "ru-RU"}, 1 user' in outcome.out
    assert untouched(talk)


# --- What goes wrong --------------------------------------------------------------------------


@pytest.mark.parametrize("words", [(), ("--format", "json")], ids=["text", "json"])
def test_an_unknown_dialog_is_named(
    upload: Run, service: StandIn, metadata: Path, words: tuple[str, ...]
) -> None:
    outcome = upload("--talk-id", "nobody", "--meta-path", metadata, *words)
    assert outcome.code == 78
    assert re.fullmatch(
        r"upload_grpc: nobody: talk 'nobody' not found \(NOT_FOUND, .*\n", outcome.err
    )
    assert "--talk-id" in outcome.err.partition(";")[2]
    if words:
        result = json.loads(outcome.out)
        assert (result["outcome"], result["talk_id"]) == ("failed", None)
        assert (result["exit_code"], result["tries"]) == (78, 1)
    else:
        assert outcome.out == ""
    assert len(service.calls) == 1


def test_a_dialog_of_another_connection_stays_as_it_is(update: Update, talk: Talk) -> None:
    assert update("--connection-id", "connection-2").code == 78
    assert untouched(talk)


def test_a_key_that_the_connection_does_not_have_is_refused(
    update: Update, service: StandIn, talk: Talk
) -> None:
    service.fields = {"operator_name"}
    outcome = update()
    assert (outcome.code, outcome.out) == (65, "")
    assert "'language' is not configured" in outcome.err
    assert untouched(talk)


@pytest.mark.parametrize(
    ("content", "code", "reason"),
    [
        ("{", 65, "not JSON"),
        ("[]", 65, "not a JSON object"),
        ('{"a": null}', 65, 'key "a": null'),
        ('{"users": [{"id": "1"}]}', 65, "user 1: must have id and role"),
        (None, 66, "No such file"),
    ],
)
def test_metadata_that_is_wrong_is_not_sent(
    update: Update, service: StandIn, metadata: Path, content: str | None, code: int, reason: str
) -> None:
    if content is None:
        metadata.unlink()
    else:
        metadata.write_text(content)
    outcome = update()
    assert (outcome.code, outcome.out, service.calls) == (code, "", [])
    assert f"metadata file {metadata}: " in outcome.err and reason in outcome.err


@pytest.mark.parametrize(
    ("talk_id", "words"),
    [
        ("1", ()),
        ("", ("--meta-path", "FIELDS")),
        (" ", ("--meta-path", "FIELDS")),
        ("a\nb", ("--meta-path", "FIELDS")),
        ("a\udcff", ("--meta-path", "FIELDS")),
        *(
            ("1", ("--meta-path", "FIELDS", *words.split()))
            for words in (
                "--audio-path call.wav",
                "--split",
                "--split --wait",
                "--wait",
                "--single-message",
                "--ledger ledger.sqlite",
                "--retry-unknown",
                "--sample-rate 8000",
                "--audio-type pcm --sample-rate 8000 --channels 1",
                "--audio-type mp3",
                "--min-age 60",
            )
        ),
    ],
    ids=lambda value: ascii(value if isinstance(value, str) else " ".join(value[2:])),
)
def test_it_goes_with_metadata_and_nothing_about_audio(
    upload: Run,
    service: StandIn,
    metadata: Path,
    tmp_path: Path,
    talk_id: str,
    words: tuple[str, ...],
) -> None:
    given = [metadata if word == "FIELDS" else word for word in words]
    outcome = upload("--talk-id", talk_id, *given)
    assert (outcome.code, outcome.out, service.calls) == (2, "", [])
    assert not (tmp_path / "ledger.sqlite").exists()


# --- To say the same twice makes no second dialog, so it is said again --------------------------


@pytest.mark.parametrize(
    "step",
    [
        Fail(grpc.StatusCode.UNAVAILABLE, "gone"),
        Fail(grpc.StatusCode.UNAVAILABLE, "gone", store=True),
        Fail(grpc.StatusCode.INTERNAL, "broken", store=True),
        Fail(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many"),
        Freeze(store=True),
    ],
    ids=["gone", "gone after it was done", "broken after it was done", "quota", "no answer"],
)
def test_a_try_without_an_answer_is_repeated(
    update: Update, service: StandIn, talk: Talk, step: Fail | Freeze
) -> None:
    service.script.append(step)
    outcome = update("--timeout", 0.3)
    assert (outcome.code, outcome.out) == (0, f"Dialog ID: {talk.talk_id}\n")
    assert [received.method for received in service.calls] == ["Upload"] * 2
    assert talk.fields == {"language": "ru-RU"}
    assert "next try in" in outcome.err


def test_after_the_last_try_it_is_not_delivered(
    update: Update, service: StandIn, talk: Talk
) -> None:
    """And never unknown: whoever repeats it does no harm."""
    service.script += [Fail(grpc.StatusCode.UNAVAILABLE, "gone", store=True)] * 2
    outcome = update("--retries", 1, "--format", "json")
    result = json.loads(outcome.out)
    assert (outcome.code, result["outcome"], result["tries"]) == (75, "failed", 2)
    assert len(service.calls) == 2


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        (grpc.StatusCode.PERMISSION_DENIED, 77),
        (grpc.StatusCode.INVALID_ARGUMENT, 65),
        (grpc.StatusCode.UNIMPLEMENTED, 78),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_refusal_is_final(
    update: Update, service: StandIn, talk: Talk, code: grpc.StatusCode, exit_code: int
) -> None:
    service.script.append(Fail(code, "no"))
    assert update().code == exit_code
    assert len(service.calls) == 1
    assert untouched(talk)
