"""What becomes a recording's metadata fields, and what is refused before any network use."""

from __future__ import annotations

import datetime
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, Outcome, Run, make_wav
from stand_in import METADATA_VALUE_LIMIT_BYTES, StandIn

LIMIT = METADATA_VALUE_LIMIT_BYTES
PLACEHOLDERS = {
    "operator_name": "Operator",
    "operator_id": "1111",
    "client_name": "Client",
    "client_id": "2222",
    "date_from": "2023-09-13T17:30:00.000Z",
    "date_to": "2023-09-13T17:31:00.000Z",
    "direction_outgoing": "true",
}

Send = Callable[..., Outcome]


@pytest.fixture
def call(tmp_path: Path) -> Path:
    return make_wav(tmp_path / "call.wav", 1_000)


@pytest.fixture
def metadata(tmp_path: Path) -> Path:
    return tmp_path / "fields of today.json"


@pytest.fixture
def send(upload: Run, call: Path, metadata: Path) -> Send:
    """Upload a recording with --meta-path and this text, these bytes or this object."""

    def run(content: str | bytes | dict[str, object], *words: object) -> Outcome:
        if isinstance(content, dict):
            content = json.dumps(content)
        metadata.write_bytes(content.encode() if isinstance(content, str) else content)
        return upload("--audio-path", call, "--meta-path", metadata, *words)

    return run


def fields(service: StandIn) -> dict[str, str]:
    """Answer the fields of the only talk there is."""
    [talk] = service.talks.values()
    return talk.fields


def assert_refused(outcome: Outcome, service: StandIn, metadata: Path, *texts: str) -> None:
    """One line names the metadata file and the reason; the service was not spoken to."""
    assert (outcome.code, outcome.out) == (65, "")
    assert outcome.err.count("\n") == 1
    assert outcome.err.startswith(f"upload_grpc: metadata file {metadata}: ")
    for text in texts:
        assert text in outcome.err
    assert service.calls == []


# --- Values --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ('"text"', "text"),
        ('""', ""),
        ('" spaces stay "', " spaces stay "),
        ('"line\\nbreak"', "line\nbreak"),
        ('"Анна Орлова"', "Анна Орлова"),
        ('"\\u0410\\u043d\\u043d\\u0430"', "Анна"),
        ('"\\ud83d\\ude00"', "\U0001f600"),
        ('"007"', "007"),
        ("true", "true"),
        ("false", "false"),
        ("42", "42"),
        ("-0", "-0"),
        ("1.50", "1.50"),
        ("1e5", "1e5"),
        ("1E+400", "1E+400"),
        ("0.1000000000000000055511151231257827", "0.1000000000000000055511151231257827"),
        ("9" * 1000, "9" * 1000),  # More digits than Python makes a number of.
        (json.dumps("x" * LIMIT), "x" * LIMIT),
        (json.dumps("я" * (LIMIT // 2)), "я" * (LIMIT // 2)),
    ],
    ids=lambda value: value if len(value) < 30 else f"{value[:10]}...",
)
def test_a_value_is_sent_as_it_is_written(
    send: Send, service: StandIn, written: str, sent: str
) -> None:
    outcome = send(f'{{"note": {written}}}')
    assert (outcome.code, outcome.err) == (0, "")
    assert fields(service) == {"note": sent}


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("null", "null"),
        ("[]", "a list"),
        ('["a", "b"]', "a list"),
        ("{}", "a nested object"),
        ('{"a": "b"}', "a nested object"),
        ('{"a": 1, "a": 2}', "a nested object"),
        (json.dumps("x" * (LIMIT + 1)), "1,025 bytes long, the service takes 1,024"),
        (json.dumps("я" * (LIMIT // 2 + 1)), "1,026 bytes long"),
        ("9" * (LIMIT + 1), "1,025 bytes long"),
        ('"\\ud83d"', "half a surrogate pair"),
    ],
    ids=lambda value: value if len(value) < 30 else f"{value[:10]}...",
)
def test_a_value_that_the_service_does_not_take_is_refused(
    send: Send, service: StandIn, metadata: Path, written: str, reason: str
) -> None:
    outcome = send(f'{{"language": "ru-RU", "note": {written}}}')
    assert_refused(outcome, service, metadata, 'key "note"', reason)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"": "value"}', 'key "": it is empty'),
        ('{"note": "a", "other": "b", "note": "c"}', 'key "note": it is there twice'),
        ('{"note": "same", "note": "same"}', 'key "note": it is there twice'),
        ('{"note": 1, "not\\u0065": 1}', 'key "note": it is there twice'),
        (json.dumps({"k" * (LIMIT + 1): "value"}), 'key "kkk'),
        ('{"\\ud83d": "value"}', "half a surrogate pair"),
    ],
    ids=lambda value: value if len(value) < 40 else f"{value[:10]}...",
)
def test_a_key_that_the_service_does_not_take_is_refused(
    send: Send, service: StandIn, metadata: Path, content: str, reason: str
) -> None:
    assert_refused(send(content), service, metadata, reason)


# --- The file ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [b'\xef\xbb\xbf{"note": "text"}', b'\r\n\t {"note" : "text"}\r\n'],
    ids=["BOM", "white space"],
)
def test_a_byte_order_mark_and_white_space_are_passed_over(
    send: Send, service: StandIn, content: bytes
) -> None:
    outcome = send(content)
    assert (outcome.code, outcome.err) == (0, "")
    assert fields(service) == {"note": "text"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"note": "text"}'.encode("utf-16"), "not UTF-8"),
        ('{"note": "Анна"}'.encode("cp1251"), "not UTF-8"),
        ('{"note": "text"}'.encode("utf-16-le"), "not JSON"),
        (b"", "not JSON"),
        (b"note: text\n", "not JSON"),
        (b'{"note": "text",}', "not JSON"),
        (b"{'note': 'text'}", "not JSON"),
        (b'{"note": "text"} {}', "not JSON"),
        (b'{"note": "te\nxt"}', "not JSON"),
        (b'{"note": 007}', "not JSON"),
        (b'{"note": NaN}', "NaN and Infinity are not JSON"),
        (b'{"note": -Infinity}', "NaN and Infinity are not JSON"),
        (b"NaN", "not a JSON object"),
        (b'{"a": ' * 100_000, "nested too deeply"),
        (b'"text"', "not a JSON object"),
        (b"7", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'[{"note": "text"}]', "not a JSON object"),
        (b'{"note": "' + bytes(2_000_000) + b'"}', "larger than 1,048,576 bytes"),
    ],
    ids=lambda value: repr(value[:20]) if isinstance(value, bytes) else "",
)
def test_a_file_that_is_no_json_object_is_refused(
    send: Send, service: StandIn, metadata: Path, content: bytes, reason: str
) -> None:
    assert_refused(send(content), service, metadata, reason)


def test_not_json_is_refused_with_the_place(send: Send, service: StandIn, metadata: Path) -> None:
    outcome = send('{\n  "note": text\n}')
    assert_refused(outcome, service, metadata, "line 2 column 11")


@pytest.mark.parametrize("what", ["missing", "folder", "loop", "below a file"])
def test_a_file_that_cannot_be_read_is_no_input(
    upload: Run, service: StandIn, call: Path, tmp_path: Path, what: str
) -> None:
    path = tmp_path / what
    if what == "folder":
        path.mkdir()
    elif what == "loop":
        path.symlink_to(path)
    elif what == "below a file":
        path = call / "fields.json"
    outcome = upload("--audio-path", call, "--meta-path", path)
    assert (outcome.code, outcome.out) == (66, "")
    assert outcome.err.count("\n") == 1
    assert f"metadata file {path}: " in outcome.err
    assert "name a recording" not in outcome.err
    assert service.calls == []


def test_a_pipe_can_be_the_metadata_file(upload: Run, service: StandIn, call: Path) -> None:
    """As with `--meta-path <(jq ...)`."""
    reader, writer = os.pipe()
    os.write(writer, b'{"client_id": "1"}')
    os.close(writer)
    outcome = upload("--audio-path", call, "--meta-path", f"/dev/fd/{reader}")
    os.close(reader)
    assert (outcome.code, outcome.err) == (0, "")
    assert fields(service) == {"client_id": "1"}


def test_an_empty_file_name_is_not_taken_as_none(upload: Run, service: StandIn, call: Path) -> None:
    """As with `--meta-path "$META"`, where META was never set."""
    outcome = upload("--audio-path", call, "--meta-path", "")
    assert outcome.code in (2, 66)
    assert outcome.out == ""
    assert service.calls == []


def test_the_example_is_taken_whole(upload: Run, service: StandIn, call: Path) -> None:
    example = ROOT / "metadata_example.json"
    outcome = upload("--audio-path", call, "--meta-path", example)
    assert (outcome.code, outcome.err) == (0, "")
    expected = {**json.loads(example.read_text("utf-8")), "direction_outgoing": "true"}
    assert fields(service) == expected


# --- The recording's own metadata -----------------------------------------------------


def test_a_json_file_beside_the_recording_is_its_metadata(
    upload: Run, service: StandIn, tmp_path: Path
) -> None:
    call = make_wav(tmp_path / "call.2026.wav", 1_000)
    (tmp_path / "call.2026.json").write_text('{"client_id": "own"}')
    (tmp_path / "call.json").write_text('{"client_id": "of another"}')
    outcome = upload("--audio-path", call)
    assert (outcome.code, outcome.err) == (0, "")
    assert fields(service) == {"client_id": "own"}


def test_a_recordings_own_fields_win_one_by_one(
    send: Send, service: StandIn, tmp_path: Path
) -> None:
    (tmp_path / "call.json").write_text('{"client_id": "own", "rating": 5}')
    outcome = send({"client_id": "common", "language": "ru-RU"})
    assert (outcome.code, outcome.err) == (0, "")
    assert fields(service) == {"client_id": "own", "language": "ru-RU", "rating": "5"}


def test_a_name_in_capitals_is_found(upload: Run, service: StandIn, tmp_path: Path) -> None:
    """As machines write it that know no other."""
    call = make_wav(tmp_path / "CALL.WAV", 1_000)
    (tmp_path / "CALL.JSON").write_text('{"client_id": "own"}')
    outcome = upload("--audio-path", call)
    assert (outcome.code, outcome.err) == (0, "")
    assert fields(service) == {"client_id": "own"}


def test_each_recording_has_its_own(upload: Run, service: StandIn, tmp_path: Path) -> None:
    common = tmp_path / "common.json"
    common.write_text('{"language": "ru-RU"}')
    calls = tmp_path / "calls"
    calls.mkdir()
    for name in ("1", "2"):
        make_wav(calls / f"{name}.wav", 1_000)
        (calls / f"{name}.json").write_text(f'{{"client_id": "{name}"}}')
    make_wav(calls / "3.wav", 1_000)
    outcome = upload("--audio-path", calls, "--meta-path", common, "--quiet")
    assert (outcome.code, outcome.err) == (0, "")
    received = [talk.fields for talk in service.talks.values()]
    assert sorted(received, key=lambda fields: fields.get("client_id", "3")) == [
        {"language": "ru-RU", "client_id": "1"},
        {"language": "ru-RU", "client_id": "2"},
        {"language": "ru-RU"},
    ]


def test_a_recording_whose_own_metadata_is_wrong_stays_behind_alone(
    upload: Run, service: StandIn, tmp_path: Path
) -> None:
    good, bad = (make_wav(tmp_path / f"{name}.wav", 1_000) for name in ("good", "bad"))
    good.with_suffix(".json").write_text("{}")
    bad.with_suffix(".json").write_text('{"note": null}')
    outcome = upload("--audio-path", bad, good, "--quiet")
    assert outcome.code == 65
    [talk_id] = service.talks
    assert outcome.out == f"{good}: Dialog ID: {talk_id}\n"
    reason = f'{bad}: metadata file {bad.with_suffix(".json")}: key "note": null'
    assert outcome.err.startswith(f"upload_grpc: {reason}")
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize("what", ["folder", "dangling link"])
def test_own_metadata_that_cannot_be_read_is_not_passed_over(
    upload: Run, service: StandIn, call: Path, what: str
) -> None:
    sidecar = call.with_suffix(".json")
    sidecar.mkdir() if what == "folder" else sidecar.symlink_to("nowhere")
    outcome = upload("--audio-path", call)
    assert (outcome.code, outcome.out) == (66, "")
    assert f"{call}: metadata file {sidecar}: " in outcome.err
    assert service.calls == []


# --- No metadata ----------------------------------------------------------------------


def test_without_metadata_the_guides_placeholders_are_sent_and_named_as_such(
    upload: Run, service: StandIn, call: Path
) -> None:
    outcome = upload("--audio-path", call)
    assert outcome.code == 0
    assert re.fullmatch(f"upload_grpc: {call}: .*placeholder.*--meta-path.*\n", outcome.err)
    sent = fields(service)
    date = datetime.datetime.fromisoformat(sent.pop("date"))
    assert sent == PLACEHOLDERS
    assert date.utcoffset() == datetime.timedelta(0)
    age = datetime.datetime.now(datetime.timezone.utc) - date
    assert datetime.timedelta(0) <= age < datetime.timedelta(seconds=30)


def test_the_placeholder_date_is_utc_whatever_the_time_zone(
    command: Run, service: StandIn, call: Path
) -> None:
    outcome = command("--audio-path", call, env={"TZ": "Asia/Vladivostok"})
    assert outcome.code == 0
    date = datetime.datetime.fromisoformat(fields(service)["date"])
    assert abs(datetime.datetime.now(datetime.timezone.utc) - date).total_seconds() < 30


def test_an_empty_object_is_metadata(send: Send, service: StandIn) -> None:
    outcome = send("{}")
    assert (outcome.code, outcome.err) == (0, "")
    assert fields(service) == {}


def test_quiet_silences_the_placeholder_warning(upload: Run, call: Path) -> None:
    outcome = upload("--audio-path", call, "--quiet")
    assert (outcome.code, outcome.err) == (0, "")


# --- Dates ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "date",
    [
        "2026-03-17T14:05:30+03:00",
        "2026-03-17T11:05:30Z",
        "2026-03-17T11:05:30.123Z",
        "2026-03-17T11:05:30.123456+00:00",
        "2026-03-17T11:05Z",
        "2026-03-17T14:05:30+0300",
        "2026-03-17T14:05:30+03",
        "2024-02-29T00:00:00-11:30",
    ],
)
def test_a_date_with_an_offset_gives_no_warning(send: Send, service: StandIn, date: str) -> None:
    outcome = send({"date": date})
    assert (outcome.code, outcome.err) == (0, "")
    assert fields(service) == {"date": date}


@pytest.mark.parametrize("key", ["date", "date_from", "date_to"])
@pytest.mark.parametrize(
    "date",
    [
        "2026-03-17T14:05:30",
        "2026-03-17",
        "2026-03-17 14:05:30+03:00",
        "17.03.2026 14:05",
        "2026-02-30T14:05:30Z",
        "2026-03-17T24:30:00Z",
        "2026-03-17T14:05:30+25:00",
        "2026-03-17T14:05:30+03:60",
        "1773745530",
        "yesterday",
        "",
    ],
)
def test_a_date_without_an_offset_is_sent_with_a_warning(
    send: Send, service: StandIn, key: str, date: str
) -> None:
    outcome = send({key: date})
    assert outcome.code == 0
    assert outcome.err.count("\n") == 1
    assert f'key "{key}"' in outcome.err
    assert f'"{date}"' in outcome.err
    assert "+03:00" in outcome.err
    assert fields(service) == {key: date}


@pytest.mark.parametrize("words", [(), ("--dry-run",)], ids=["", "dry run"])
def test_a_date_for_all_is_warned_of_once_and_in_the_users_fields_too(
    upload: Run, tmp_path: Path, metadata: Path, words: tuple[str, ...]
) -> None:
    user = {"id": "1", "role": "client", "fields": {"date_of_birth": "17.03.1980"}}
    metadata.write_text(json.dumps({"date": "yesterday", "users": [user]}))
    paths = [make_wav(tmp_path / f"{number}.wav", 1_000) for number in range(3)]
    outcome = upload("--audio-path", *paths, "--meta-path", metadata, *words)
    assert outcome.code == 0
    for key, date in (("date", "yesterday"), ("date_of_birth", "17.03.1980")):
        warning = f'upload_grpc: {metadata}: metadata key "{key}": "{date}" is no ISO 8601 date'
        assert outcome.err.count(warning) == outcome.err.count(date) == 1


def test_other_fields_may_hold_any_text(send: Send) -> None:
    outcome = send({"update": "17.03.2026", "candidate": "yesterday", "language": "ru-RU"})
    assert (outcome.code, outcome.err) == (0, "")


def test_quiet_silences_the_date_warning(send: Send) -> None:
    outcome = send({"date": "yesterday"}, "--quiet")
    assert (outcome.code, outcome.err) == (0, "")


# --- What is shown --------------------------------------------------------------------


def test_a_dry_run_shows_the_fields(send: Send, service: StandIn) -> None:
    content = {"client_name": "Пётр Соколов", "rating": 5, "direction_outgoing": True}
    outcome = send(content, "--dry-run")
    assert (outcome.code, outcome.err) == (0, "")
    shown = json.loads(re.sub(r"^[^{]*", "", outcome.out))
    assert shown == {"client_name": "Пётр Соколов", "rating": "5", "direction_outgoing": "true"}
    assert service.calls == []


def test_text_is_shown_as_people_write_it(send: Send) -> None:
    assert "Пётр Соколов" in send({"client_name": "Пётр Соколов"}, "--dry-run").out
    assert 'key "имя"' in send('{"имя": null}').err
    assert '"вчера"' in send({"date": "вчера"}).err


def test_control_characters_cannot_reach_a_terminal(send: Send) -> None:
    outcome = send({"date": "\x1b[2J\u009b2J\n\ud7ff", "note": "a\nb"}, "--dry-run")
    assert outcome.code == 0
    for text in (outcome.out, outcome.err):
        assert text.count("\n") == 1
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", text)


@pytest.mark.parametrize("encoding", ["ascii", "koi8-r", "utf-8"])
def test_a_terminal_of_another_encoding_is_no_reason_to_fail(
    command: Run, service: StandIn, call: Path, encoding: str
) -> None:
    call.with_suffix(".json").write_text('{"client_name": "Пётр \U0001f600"}', "utf-8")
    environment = {"PYTHONIOENCODING": encoding}
    outcome = command("--audio-path", call, "--dry-run", env=environment, encoding=encoding)
    assert (outcome.code, outcome.err) == (0, "")


def test_reasons_stand_in_json_lines_too(upload: Run, call: Path) -> None:
    call.with_suffix(".json").write_text('{"note": null}')
    outcome = upload("--audio-path", call, "--format", "json")
    assert outcome.code == 65
    answer = json.loads(outcome.out)
    assert (answer["path"], answer["outcome"], answer["exit_code"]) == (
        os.fspath(call),
        "rejected",
        65,
    )
    assert 'key "note": null' in answer["error"]
