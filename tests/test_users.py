"""`users` in a metadata file: who took part in the call, with fields of their own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Outcome, Run, make_wav
from stand_in import METADATA_VALUE_LIMIT_BYTES, StandIn

LIMIT = METADATA_VALUE_LIMIT_BYTES
ANNA = {"id": "op-7", "role": "operator", "fields": {"name": "Анна"}}
PETER = {"id": "cl-9", "role": "client"}
ANNA_SENT = {"id": "op-7", "role": "USER_ROLE_OPERATOR", "fields": {"name": "Анна"}}
PETER_SENT = {"id": "cl-9", "role": "USER_ROLE_CLIENT", "fields": {}}

Send = Callable[..., Outcome]


@pytest.fixture
def call(tmp_path: Path) -> Path:
    return make_wav(tmp_path / "call.wav", 1_000)


@pytest.fixture
def metadata(tmp_path: Path) -> Path:
    return tmp_path / "fields.json"


@pytest.fixture
def send(upload: Run, call: Path, metadata: Path) -> Send:
    """Upload a recording with --meta-path and this text or object."""

    def run(content: object, *words: object) -> Outcome:
        metadata.write_text(content if isinstance(content, str) else json.dumps(content))
        return upload("--audio-path", call, "--meta-path", metadata, *words)

    return run


def users(service: StandIn) -> list[dict[str, object]]:
    """Answer the users of the only talk there is."""
    [talk] = service.talks.values()
    return talk.users


# --- What is sent -----------------------------------------------------------------------------


@pytest.mark.parametrize("way", [(), ("--single-message",), ("--split",)], ids=" ".join)
def test_users_are_sent_in_their_order_beside_the_fields(
    send: Send, service: StandIn, way: tuple[str, ...]
) -> None:
    outcome = send({"language": "ru-RU", "users": [PETER, ANNA]}, *way)
    assert (outcome.code, outcome.err) == (0, "")
    for talk in service.talks.values():
        assert talk.users == [PETER_SENT, ANNA_SENT]
        assert talk.fields == {"language": "ru-RU"}


@pytest.mark.parametrize(
    ("role", "sent"),
    [
        ("operator", "USER_ROLE_OPERATOR"),
        ("client", "USER_ROLE_CLIENT"),
        ("bot", "USER_ROLE_BOT"),
        ("Operator", "USER_ROLE_OPERATOR"),
        ("BOT", "USER_ROLE_BOT"),
        ("USER_ROLE_OPERATOR", "USER_ROLE_OPERATOR"),
        ("USER_ROLE_CLIENT", "USER_ROLE_CLIENT"),
        ("USER_ROLE_BOT", "USER_ROLE_BOT"),
    ],
)
def test_a_role_is_a_word_or_the_apis_name(
    send: Send, service: StandIn, role: str, sent: str
) -> None:
    assert send({"users": [{"id": "1", "role": role}]}).code == 0
    assert users(service) == [{"id": "1", "role": sent, "fields": {}}]


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ('{"id": 7, "role": "bot"}', {"id": "7", "fields": {}}),
        ('{"id": 1.50, "role": "bot"}', {"id": "1.50", "fields": {}}),
        ('{"id": "я", "role": "bot", "fields": {}}', {"id": "я", "fields": {}}),
        (
            '{"fields": {"n": 1e5, "b": true, "t": "x"}, "role": "bot", "id": "1"}',
            {"id": "1", "fields": {"n": "1e5", "b": "true", "t": "x"}},
        ),
        (
            json.dumps({"id": "x" * LIMIT, "role": "bot", "fields": {"a": "я" * (LIMIT // 2)}}),
            {"id": "x" * LIMIT, "fields": {"a": "я" * (LIMIT // 2)}},
        ),
    ],
    ids=["a number", "as written", "empty fields", "fields in any order", "at the limit"],
)
def test_values_are_sent_as_fields_are(
    send: Send, service: StandIn, written: str, sent: dict[str, object]
) -> None:
    assert send(f'{{"users": [{written}]}}').code == 0
    assert users(service) == [{"role": "USER_ROLE_BOT", **sent}]


def test_an_empty_list_is_nobody(send: Send, service: StandIn) -> None:
    assert send({"users": []}).code == 0
    assert users(service) == []


def test_a_field_may_be_named_users(send: Send, service: StandIn) -> None:
    assert send({"users": "two"}).code == 0
    [talk] = service.talks.values()
    assert (talk.fields, talk.users) == ({"users": "two"}, [])


def test_two_users_may_have_the_same_id(send: Send, service: StandIn) -> None:
    assert send({"users": [PETER, PETER]}).code == 0
    assert users(service) == [PETER_SENT, PETER_SENT]


def test_many_users_are_sent(send: Send, service: StandIn) -> None:
    assert send({"users": [{"id": n, "role": "client"} for n in range(500)]}).code == 0
    assert [user["id"] for user in users(service)] == [str(n) for n in range(500)]


# --- From which file --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("common", "own", "sent"),
    [
        (None, [ANNA], [ANNA_SENT]),
        ([PETER], None, [PETER_SENT]),
        ([PETER], [ANNA], [ANNA_SENT]),
        ([PETER], [], []),
    ],
    ids=["its own", "everybody's", "its own win", "nobody wins too"],
)
def test_a_recordings_own_users_win(
    upload: Run,
    service: StandIn,
    call: Path,
    metadata: Path,
    common: list[object] | None,
    own: list[object] | None,
    sent: list[object],
) -> None:
    metadata.write_text(json.dumps({"a": "common"} | ({} if common is None else {"users": common})))
    sidecar = call.with_suffix(".json")
    sidecar.write_text(json.dumps({"b": "own"} | ({} if own is None else {"users": own})))
    outcome = upload("--audio-path", call, "--meta-path", metadata)
    assert (outcome.code, outcome.err) == (0, "")
    assert users(service) == sent
    [talk] = service.talks.values()
    assert talk.fields == {"a": "common", "b": "own"}


def test_each_recording_has_its_own(upload: Run, service: StandIn, tmp_path: Path) -> None:
    for number in range(3):
        path = make_wav(tmp_path / f"{number}.wav", 1_000)
        own = {"number": number, "users": [{"id": number, "role": "client"}]}
        path.with_suffix(".json").write_text(json.dumps(own))
    assert upload("--audio-path", *sorted(tmp_path.glob("*.wav"))).code == 0
    assert len(service.talks) == 3
    for talk in service.talks.values():
        assert [user["id"] for user in talk.users] == [talk.fields["number"]]


# --- What is refused, before the network is touched -------------------------------------------

REFUSED = [
    ('"Anna"', "user 1: not an object"),
    ("7", "user 1: not an object"),
    ("null", "user 1: not an object"),
    ('["op-7", "operator"]', "user 1: not an object"),
    ("{}", "user 1: must have id and role"),
    ('{"id": "1"}', "user 1: must have id and role"),
    ('{"role": "bot"}', "user 1: must have id and role"),
    ('{"id": "1", "role": "bot", "name": "x"}', "user 1: must have id and role"),
    ('{"id": "1", "id": "2", "role": "bot"}', "user 1: must have id and role"),
    ('{"id": "1", "role": "boss"}', 'user 1: role "boss" is not operator, client or bot'),
    ('{"id": "1", "role": ""}', 'user 1: role "" is not'),
    ('{"id": "1", "role": 1}', "user 1: role "),
    ('{"id": "1", "role": null}', "user 1: role "),
    ('{"id": "1", "role": ["bot"]}', "user 1: role "),
    ('{"id": "1", "role": NaN}', "user 1: role "),
    ('{"id": "1", "role": "unspecified"}', 'user 1: role "unspecified" is not'),
    ('{"id": "1", "role": "USER_ROLE_UNSPECIFIED"}', "user 1: role "),
    ('{"id": "1", "role": "\\ud800"}', "user 1: role "),
    ('{"id": null, "role": "bot"}', 'user 1: key "id": null'),
    ('{"id": ["1"], "role": "bot"}', 'user 1: key "id": a list'),
    ('{"id": {"a": "1"}, "role": "bot"}', 'user 1: key "id": a nested object'),
    ('{"id": NaN, "role": "bot"}', 'user 1: key "id": NaN'),
    ('{"id": "\\udfff", "role": "bot"}', 'user 1: key "id": half a surrogate pair'),
    (json.dumps({"id": "x" * (LIMIT + 1), "role": "bot"}), 'user 1: key "id": 1,025 bytes long'),
    ('{"id": "1", "role": "bot", "fields": null}', "user 1: fields must be an object"),
    ('{"id": "1", "role": "bot", "fields": "x"}', "user 1: fields must be an object"),
    ('{"id": "1", "role": "bot", "fields": []}', "user 1: fields must be an object"),
    ('{"id": "1", "role": "bot", "fields": {"a": null}}', 'user 1: key "a": null'),
    ('{"id": "1", "role": "bot", "fields": {"a": [1]}}', 'user 1: key "a": a list'),
    ('{"id": "1", "role": "bot", "fields": {"a": {}}}', 'user 1: key "a": a nested object'),
    ('{"id": "1", "role": "bot", "fields": {"": "x"}}', 'user 1: key "": it is empty'),
    (
        '{"id": "1", "role": "bot", "fields": {"a": 1, "a": 1}}',
        'user 1: key "a": it is there twice',
    ),
    (
        json.dumps({"id": "1", "role": "bot", "fields": {"a": "я" * LIMIT}}),
        'user 1: key "a": 2,048 bytes long',
    ),
    ('{"id": "1", "role": "bot"}, {"id": "2"}', "user 2: must have id and role"),
]


@pytest.mark.parametrize(("written", "reason"), REFUSED, ids=lambda value: value[:60])
@pytest.mark.parametrize("where", ["--meta-path", "sidecar"])
def test_what_is_no_user_is_refused(
    send: Send, service: StandIn, call: Path, metadata: Path, written: str, reason: str, where: str
) -> None:
    text = f'{{"language": "ru-RU", "users": [{written}]}}'
    if where == "sidecar":
        metadata = call.with_suffix(".json")
        metadata.write_text(text)
        outcome = send({})
    else:
        outcome = send(text)
    assert (outcome.code, outcome.out, service.calls) == (65, "", [])
    assert re.fullmatch(r"upload_grpc: .*\n", outcome.err)
    assert f"metadata file {metadata}: {reason}" in outcome.err
    for word in ("object at", "None", "['", "('"):  # Python's words, not those of the file.
        assert word not in outcome.err


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"users": {"id": "1", "role": "bot"}}', 'key "users" must be a list'),
        ('{"users": {}}', 'key "users" must be a list'),
        ('{"users": null}', 'key "users": null'),
        ('{"users": [], "users": []}', 'key "users" is there twice'),
        ('{"users": "two", "users": []}', 'key "users" is there twice'),
        ('{"users": [], "users": "two"}', 'key "users"'),
    ],
)
def test_users_must_be_one_list(send: Send, service: StandIn, text: str, reason: str) -> None:
    outcome = send(text)
    assert (outcome.code, outcome.out, service.calls) == (65, "", [])
    assert reason in outcome.err


def test_a_dry_run_names_them(send: Send, service: StandIn) -> None:
    outcome = send({"language": "ru-RU", "users": [PETER, ANNA]}, "--dry-run")
    assert (outcome.code, outcome.err, service.calls) == (0, "", [])
    assert "2 users" in outcome.out
    assert "1 user" in send({"users": [PETER]}, "--dry-run").out
    assert "1 users" not in send({"users": [PETER]}, "--dry-run").out
    assert " user" not in send({"language": "ru-RU"}, "--dry-run").out


def test_other_users_are_other_metadata_to_the_ledger(
    send: Send, service: StandIn, tmp_path: Path
) -> None:
    """One that was rejected is sent again once its users change."""
    words = ("--ledger", tmp_path / "ledger.sqlite")
    service.fields = {"known"}
    first = {"unknown": "1", "users": [PETER]}
    assert send(first, *words).code == 65
    assert send(first, *words).code == 65
    assert len(service.calls) == 1
    assert send({"unknown": "1", "users": [ANNA]}, *words).code == 65
    assert len(service.calls) == 2
