"""What becomes a recording's metadata, and what is refused before any network use."""

from __future__ import annotations

import datetime
import json
import os
import re
import time
from pathlib import Path
from typing import Any

import grpc
import ledgers
import pytest
from conftest import Outcome, Run, Waits, make_wav
from stand_in import METADATA_VALUE_LIMIT_BYTES, Fail, StandIn, Talk

LIMIT = METADATA_VALUE_LIMIT_BYTES
# The guide's.
PLACEHOLDERS = {
    "operator_name": "Operator",
    "operator_id": "1111",
    "client_name": "Client",
    "client_id": "2222",
    "date_from": "2023-09-13T17:30:00.000Z",
    "date_to": "2023-09-13T17:31:00.000Z",
    "direction_outgoing": "true",
    "language": "ru-RU",
}
ANNA = {"id": "op-7", "role": "operator", "fields": {"name": "Анна"}}
PETER = {"id": "cl-9", "role": "client"}
ANNA_SENT = {"id": "op-7", "role": "USER_ROLE_OPERATOR", "fields": {"name": "Анна"}}
PETER_SENT = {"id": "cl-9", "role": "USER_ROLE_CLIENT", "fields": {}}


@pytest.fixture
def call(tmp_path: Path) -> Path:
    return make_wav(tmp_path / "call.wav", 1_000)


@pytest.fixture
def metadata(tmp_path: Path) -> Path:
    return tmp_path / "fields of today.json"


@pytest.fixture
def send(upload: Run, call: Path, metadata: Path) -> Run:
    """Upload a recording with --meta-path and this text, these bytes or this object."""

    def run(content: object, *words: object) -> Outcome:
        if not isinstance(content, (str, bytes)):
            content = json.dumps(content, ensure_ascii=False)
        metadata.write_bytes(content.encode() if isinstance(content, str) else content)
        return upload("--audio-path", call, "--meta-path", metadata, *words)

    return run


def only_talk(service: StandIn) -> Talk:
    [talk] = service.talks.values()
    return talk


# --- What is sent ------------------------------------------------------------------------


def test_a_value_is_sent_as_it_is_written(send: Run, service: StandIn) -> None:
    values = [
        *(('""', ""), ('" spaces stay "', " spaces stay "), ('"line\\nbreak"', "line\nbreak")),
        *(('"Анна"', "Анна"), ('"\\u042f\\ud83d\\ude00"', "Я\U0001f600"), ('"007"', "007")),
        *((word, word) for word in ("true", "false", "-0", "1.50", "1E+400")),
        ("0.1000000000000000055511151231257827", "0.1000000000000000055511151231257827"),
        ("9" * 1000, "9" * 1000),  # More digits than Python makes a number of.
        (json.dumps("x" * LIMIT), "x" * LIMIT),
        (json.dumps("я" * (LIMIT // 2)), "я" * (LIMIT // 2)),
    ]
    text = ", ".join(f'"{number}": {written}' for number, (written, _) in enumerate(values))
    # A byte order mark and white space are passed over.
    outcome = send(b"\xef\xbb\xbf\r\n {" + text.encode() + b"}\n")
    assert (outcome.code, outcome.err) == (0, "")
    assert only_talk(service).fields == {str(n): sent for n, (_, sent) in enumerate(values)}


def test_users_are_sent_in_their_order_beside_the_fields(send: Run, service: StandIn) -> None:
    for words in ([], ["--single-message"], ["--split"]):
        service.talks.clear()
        outcome = send({"language": "ru-RU", "users": [PETER, ANNA, PETER]}, *words)
        assert (outcome.code, outcome.err) == (0, "")
        for talk in service.talks.values():
            assert talk.users == [PETER_SENT, ANNA_SENT, PETER_SENT]
            assert talk.fields == {"language": "ru-RU"}


def test_a_role_is_a_word_or_the_apis_name_and_values_are_those_of_fields(
    send: Run, service: StandIn
) -> None:
    roles = ["operator", "Client", "BOT", "USER_ROLE_OPERATOR", "USER_ROLE_CLIENT", "USER_ROLE_BOT"]
    users = [f'{{"id": 1.50, "fields": {{"n": 1e5, "b": true}}, "role": "{r}"}}' for r in roles]
    assert send(f'{{"users": [{", ".join(users)}]}}').code == 0
    found = only_talk(service).users
    assert [user["role"][10:].lower() for user in found] == ["operator", "client", "bot"] * 2
    assert all(user["id"] == "1.50" for user in found)
    assert all(user["fields"] == {"n": "1e5", "b": "true"} for user in found)


# --- What is refused ---------------------------------------------------------------------

WRONG_FILES: list[tuple[str | bytes, str]] = [
    # Values.
    ('{"note": null}', '"note"'),
    ('{"note": ["a", "b"]}', '"note"'),
    ('{"note": {"a": 1}}', '"note"'),
    (json.dumps({"note": "x" * (LIMIT + 1)}), "1,025"),
    (json.dumps({"note": "я" * (LIMIT // 2 + 1)}), "1,026"),
    (f'{{"note": {"9" * (LIMIT + 1)}}}', "1,025"),
    ('{"note": "\\ud83d"}', '"note"'),
    # Keys.
    ('{"": "value"}', '""'),
    ('{"note": "same", "other": "b", "note": "same"}', '"note"'),
    ('{"note": 1, "not\\u0065": 1}', '"note"'),
    ('{"users": [{"id": "1", "id": "2", "role": "bot"}]}', '"id"'),
    (json.dumps({"k" * (LIMIT + 1): "value"}), "kkk"),
    ('{"имя": null}', '"имя"'),
    # Files.
    ('{"note": "text"}'.encode("utf-16"), "UTF-8"),
    ('{"note": "Анна"}'.encode("cp1251"), "UTF-8"),
    (b"", "JSON"),
    (b'{\n  "note": text\n}', "line 2 column 11"),
    (b'{"note": "text",}', "JSON"),
    (b'{"note": "text"} {}', "JSON"),
    (b'{"note": NaN}', "NaN"),
    (b'{"note": -Infinity}', "Infinity"),
    (b'{"a": ' * 100_000, "nested too deeply"),
    (b"null", "object"),
    (b'[{"note": "text"}]', "object"),
    (b'{"note": "' + bytes(2_000_000) + b'"}', "1,048,576"),
    # Lists of users.
    ('{"users": {"id": "1", "role": "bot"}}', '"users"'),
    ('{"users": null}', '"users"'),
]
WRONG_USERS = [
    ('"Anna"', "object"),
    ("null", "object"),
    ('{"id": "1"}', "role"),
    ('{"role": "bot"}', "id"),
    ('{"id": "1", "role": "bot", "name": "x"}', ""),
    ('{"id": "1", "role": "boss"}', '"boss"'),
    ('{"id": "1", "role": null}', "role"),
    ('{"id": "1", "role": ["bot"]}', "role"),
    ('{"id": "1", "role": "USER_ROLE_UNSPECIFIED"}', "role"),
    ('{"id": null, "role": "bot"}', '"id"'),
    (json.dumps({"id": "x" * (LIMIT + 1), "role": "bot"}), "1,025"),
    ('{"id": "1", "role": "bot", "fields": []}', "fields"),
    ('{"id": "1", "role": "bot", "fields": {"a": null}}', '"a"'),
    ('{"id": "1", "role": "bot", "fields": {"": "x"}}', '""'),
    (json.dumps({"id": "1", "role": "bot", "fields": {"a": "я" * LIMIT}}), "2,048"),
]
WRONG_FILES += [(f'{{"users": [{written}]}}', f"user 1.*{key}") for written, key in WRONG_USERS]


def test_what_the_service_does_not_take_is_refused(
    send: Run, service: StandIn, metadata: Path
) -> None:
    for content, reason in WRONG_FILES:
        outcome = send(content)
        assert (outcome.code, outcome.out, service.calls) == (65, "", []), content[:40]
        assert outcome.err.count("\n") == 1 and f"{metadata}: " in outcome.err
        assert re.search(reason, outcome.err), outcome.err
        # Python's words, not those of the file.
        assert not re.search(r"object at|None|\['|\('", outcome.err), outcome.err


@pytest.mark.parametrize("what", ["missing", "folder", "loop", "pipe"])
def test_a_file_that_cannot_be_read_is_no_input(
    upload: Run, service: StandIn, call: Path, tmp_path: Path, what: str
) -> None:
    for path, words in (
        (call.with_suffix(".json"), ()),
        (tmp_path / "fields.json", ("--meta-path", tmp_path / "fields.json")),
    ):
        if what == "folder":
            path.mkdir()
        elif what == "pipe":
            os.mkfifo(path)  # Nobody ever writes to it.
        else:
            path.symlink_to(path if what == "loop" else "nowhere")
        outcome = upload("--audio-path", call, *words)
        assert (outcome.code, outcome.out, service.calls) == (66, "", [])
        assert outcome.err.count("\n") == 1 and f"{path}: " in outcome.err
        path.rmdir() if what == "folder" else path.unlink()


def test_a_pipe_can_be_the_metadata_file(upload: Run, service: StandIn, call: Path) -> None:
    """As with `--meta-path <(jq ...)`."""
    reader, writer = os.pipe()
    os.write(writer, b'{"client_id": "1"}')
    os.close(writer)
    outcome = upload("--audio-path", call, "--meta-path", f"/dev/fd/{reader}")
    os.close(reader)
    assert (outcome.code, outcome.err) == (0, "")
    assert only_talk(service).fields == {"client_id": "1"}


def test_metadata_nested_almost_too_deeply_is_refused(
    upload: Run, service: StandIn, call: Path
) -> None:
    """Near the limit it can be read, and not shown any more."""
    for depth in range(940, 1_000):
        call.with_suffix(".json").write_text('{"a": ' + "[" * depth + "]" * depth + "}")
        outcome = upload("--audio-path", call)
        assert (outcome.code, outcome.out) == (65, ""), depth
    assert service.calls == []


# --- The recording's own metadata --------------------------------------------------------


def test_a_recordings_own_fields_win_one_by_one_and_its_users_as_a_list(
    send: Run, service: StandIn, call: Path
) -> None:
    users: list[tuple[Any, Any, list[object]]] = [
        ({}, {"users": [ANNA]}, [ANNA_SENT]),
        ({"users": [PETER]}, {}, [PETER_SENT]),
        ({"users": [PETER]}, {"users": [ANNA]}, [ANNA_SENT]),
    ]
    for common, own, sent in users:
        service.talks.clear()
        call.with_suffix(".json").write_text(json.dumps({"client_id": "own", "rating": 5, **own}))
        outcome = send({"client_id": "common", "language": "ru-RU", **common})
        assert (outcome.code, outcome.err) == (0, "")
        talk = only_talk(service)
        assert talk.fields == {"client_id": "own", "language": "ru-RU", "rating": "5"}
        assert talk.users == sent


def test_each_recording_has_its_own_and_a_broken_one_keeps_only_its_recording_back(
    upload: Run, service: StandIn, folder: Path, metadata: Path
) -> None:
    metadata.write_text('{"language": "ru-RU"}')
    # As machines write names that know no capitals; and a name that is the beginning of another.
    own = {"1.wav": "1.json", "1.2026.wav": "1.2026.json", "2.WAV": "2.JSON"}
    for audio, sidecar in own.items():
        make_wav(folder / audio, 1_000)
        (folder / sidecar).write_text(json.dumps({"client_id": audio}))
    make_wav(folder / "none.wav", 1_000)
    broken = make_wav(folder / "broken.wav", 1_000)
    broken.with_suffix(".json").write_text('{"note": null}')
    outcome = upload("--audio-path", folder, "--meta-path", metadata, "--format", "json", "--quiet")
    assert outcome.code == 65
    assert outcome.err.count("\n") == 1 and f"{broken.with_suffix('.json')}: " in outcome.err
    results = {Path(r["path"]).name: r for r in map(json.loads, outcome.out.splitlines())}
    failed = results.pop("broken.wav")
    assert (failed["outcome"], failed["exit_code"]) == ("rejected", 65)
    assert '"note"' in failed["error"]
    for name, result in results.items():
        expected = {"client_id": name} if name in own else {}
        assert service.talks[result["talk_id"]].fields == {"language": "ru-RU", **expected}
    assert len(results) == 4


# --- No metadata -------------------------------------------------------------------------


def test_without_metadata_the_guides_placeholders_are_sent_and_named_as_such(
    command: Run, service: StandIn, call: Path
) -> None:
    """Somebody else's name on a customer's call: told of with --quiet, too."""
    outcome = command("--audio-path", call, "--quiet", env={"TZ": "Asia/Vladivostok"})
    assert outcome.code == 0
    [line] = outcome.err.splitlines()
    assert f"{call}: " in line and "placeholder" in line and "--meta-path" in line
    sent = only_talk(service).fields
    # Python 3.10 does not read the Z.
    date = datetime.datetime.fromisoformat(sent.pop("date").replace("Z", "+00:00"))
    assert sent == PLACEHOLDERS
    assert date.utcoffset() == datetime.timedelta(0), "not UTC"
    assert abs(datetime.datetime.now(datetime.timezone.utc) - date).total_seconds() < 30

    service.talks.clear()
    call.with_suffix(".json").write_text("{}")  # Metadata, if no more than that.
    outcome = command("--audio-path", call)
    assert (outcome.code, outcome.err, only_talk(service).fields) == (0, "", {})


# --- Dates -------------------------------------------------------------------------------


def test_a_date_with_an_offset_gives_no_warning_nor_does_any_other_text(
    send: Run, service: StandIn
) -> None:
    dates = [
        *("2026-03-17T14:05:30+03:00", "2026-03-17T11:05:30Z", "2026-03-17T11:05:30.123456+00:00"),
        *("2026-03-17T11:05Z", "2026-03-17T14:05:30+0300", "2026-03-17T14:05:30+03"),
        "2024-02-29T00:00:00-11:30",
    ]
    content = {f"date_{number}": date for number, date in enumerate(dates)}
    content |= {"date": dates[0], "update": "17.03.2026", "candidate": "yesterday"}
    outcome = send(content)
    assert (outcome.code, outcome.err) == (0, "")
    assert only_talk(service).fields == content


def test_a_date_without_an_offset_is_sent_with_a_warning_once_for_all_recordings(
    send: Run, service: StandIn, tmp_path: Path
) -> None:
    dates = [
        *("2026-03-17T14:05:30", "2026-03-17", "2026-03-17 14:05:30+03:00", "17.03.2026 14:05"),
        *("2026-02-30T14:05:30Z", "2026-03-17T24:30:00Z", "2026-03-17T14:05:30+25:00"),
        *("1773745530", "вчера", ""),
    ]
    fields = {f"date_{number}": date for number, date in enumerate(dates)}
    user = {"id": "1", "role": "client", "fields": {"date_of_birth": "17.03.1980"}}
    paths = [make_wav(tmp_path / f"{number}.wav", 1_000) for number in range(2)]
    outcome = send(fields | {"users": [user]}, "--audio-path", *paths)
    assert (outcome.code, len(service.talks)) == (0, 3)
    assert all(talk.fields == fields for talk in service.talks.values())
    warnings = [line for line in outcome.err.splitlines() if "ISO 8601" in line]
    for key, date in (fields | {"date_of_birth": "17.03.1980"}).items():
        [warning] = [line for line in warnings if f'"{key}"' in line]
        assert f'"{date}"' in warning
    assert len(warnings) == len(dates) + 1


# --- What is shown -----------------------------------------------------------------------


def test_a_dry_run_shows_the_metadata(send: Run, service: StandIn) -> None:
    content = {"client_name": "Пётр", "rating": 5, "direction_outgoing": True}
    content["users"] = [PETER, ANNA]
    outcome, in_json = (send(content, "--dry-run", *more) for more in ((), ("--format", "json")))
    assert (outcome.code, outcome.err, service.calls) == (0, "", [])
    assert '"Пётр"' in outcome.out and "2 users" in outcome.out
    [shown] = re.findall(r"\{.*\}", outcome.out)
    assert json.loads(shown) == {"client_name": "Пётр", "rating": "5", "direction_outgoing": "true"}
    description = json.loads(in_json.out)["description"]
    assert shown in description and description in outcome.out


def test_control_characters_cannot_reach_a_terminal(send: Run) -> None:
    outcome = send({"date": "\x1b[2J\u009b2J\n\ud7ff", "note": "a\nb"}, "--dry-run")
    assert outcome.code == 0
    for text in (outcome.out, outcome.err):
        assert text.count("\n") == 1
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", text)


def test_a_terminal_of_another_encoding_is_no_reason_to_fail(command: Run, call: Path) -> None:
    call.with_suffix(".json").write_text('{"client_name": "Пётр \U0001f600"}', "utf-8")
    for encoding in ("ascii", "koi8-r"):
        environment = {"PYTHONIOENCODING": encoding}
        outcome = command("--audio-path", call, "--dry-run", env=environment, encoding=encoding)
        assert (outcome.code, outcome.err) == (0, "")


@pytest.mark.parametrize(
    "date",
    [
        "0001-01-01T00:00:00Z",  # .NET's and Go's zero time.
        "0001-01-01T00:00:00+03:00",
        "9999-12-31T23:59:59Z",
        "9999-12-31T23:59:59-03:00",
        "1900-01-01T00:00:00+02:30",
    ],
)
def test_a_date_of_nowhere_is_uploaded_as_it_is(
    upload: Run, service: StandIn, tmp_path: Path, ledger: Path, date: str, waits: Waits,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("TZ", "Asia/Vladivostok")
    time.tzset()
    call = make_wav(tmp_path / "call.wav", 3_000)
    call.with_suffix(".json").write_text(json.dumps({"date": date}))
    service.script.append(Fail(grpc.StatusCode.UNAVAILABLE, "lost", after_bytes=None))
    words = ("--audio-path", call, "--ledger", ledger)
    outcome = upload(*words)
    assert outcome.code == 76 and "look for it in the console by its time: " in outcome.err
    assert upload(*words).code == 76
    assert upload(*words, "--retry-unknown").code == 0
    assert [talk.fields["date"] for talk in service.talks.values()] == [date]
    for form in ("text", "json", "csv"):
        outcome = upload("--report", "--ledger", ledger, "--format", form)
        assert outcome.code == 0 and "Traceback" not in outcome.err


def test_a_date_that_no_calendar_has_counts_as_none(upload: Run, call: Path, ledger: Path) -> None:
    """The 30th of February: the report has the call on the day of its file, not of its upload."""
    call.with_suffix(".json").write_text('{"date": "2026-02-30T10:00:00Z"}')
    os.utime(call, (86_400 * 365 * 50,) * 2)
    assert upload("--audio-path", call, "--ledger", ledger).code == 0
    assert ledgers.row(ledger)["recorded_at"].startswith("2019")
