#!/usr/bin/env python3
"""Upload call recordings with their metadata to Yandex SpeechSense and print the dialog IDs.

from a shell:
  export API_KEY=...
  python3 upload_grpc.py --audio-path call.wav \\
      --meta-path metadata_example.json --connection-id ID
from cron (all in one line; README.md has the first run by hand):
  */5 * * * *  timeout 6h /opt/upload_grpc/upload_grpc.py --quiet
      --audio-path /var/calls --require-json --convert --since 7d
      --min-age 300 --meta-path /etc/speechsense.json --connection-id ID
      --key-file /etc/speechsense.key
      --ledger /var/lib/speechsense/ledger.sqlite
      >>/var/lib/speechsense/uploaded.log

exit codes:
  0   everything is uploaded            2    bad command line
  65  a recording or its metadata was refused: fix the file
  66  a file is missing or unreadable   70   a bug: report it
  74  stdout cannot be written          75   not delivered: run again
  76  sent, but the response was lost: look for the dialog before sending again
  77  the credential was refused        78   a wrong setting
  129, 130, 143: stopped by SIGHUP, SIGINT, SIGTERM

Results go to stdout, everything else to stderr. README.md says more.
"""

# The file follows a recording: found, checked without touching the network, sent over one call,
# remembered in the ledger, counted and reported; only what chooses it (13) comes after what it
# uses. Who wants the loop first begins with Run, then Source, Examiner and Worker.
# Whether a call can be lost or doubled: Transfer.commit (when may a dialog exist?), RULES with
# call_error (what does the end of a call prove?), Uploader._retrying (the only repetition within a
# run, but for a copy of what failed), Ledger (what survives a crash) and decide (the only
# repetition by a later run).

# --- 1. Start: modules and stubs --------------------------------------------------------------

from __future__ import annotations

# What `signal` is made of; that one imports half a dozen modules, in which Ctrl-C may come.
import _signal  # type: ignore[import-not-found]

if __name__ == "__main__" and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    # Until the run begins nothing needs cleaning up, so Ctrl-C may simply end the process.
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)

import argparse
import collections
import contextlib
import datetime
import enum
import errno
import functools
import gc
import importlib
import io
import itertools
import json
import logging
import math
import os
import re
import signal
import socket
import stat
import struct
import sys
import threading
import time
import traceback
import types
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple, NoReturn, TextIO

try:
    import fcntl
except ImportError:
    print("upload_grpc: this system has no fcntl; use Linux, macOS or WSL", file=sys.stderr)
    sys.exit(78)

# Importing grpc creates tens of thousands of objects and no garbage: 3 ms of 130.
gc.disable()
# argparse would look for translations of its words, of which there are none: 2 ms.
vars(argparse)["_"] = str
# Before grpc is imported: cron would email its lines about failed handshakes.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
HERE = os.path.dirname(os.path.realpath(__file__))
sys.path.insert(0, os.path.join(HERE, "generated"))


def import_later(name: str) -> None:
    """Import a module only when one of its attributes is used."""

    def first_use(attribute: str) -> object:
        if sys.modules.get(name) is placeholder:
            del sys.modules[name]
        return getattr(importlib.import_module(name), attribute)

    placeholder = types.ModuleType(name)
    placeholder.__getattr__ = first_use  # type: ignore[method-assign] # PEP 562
    sys.modules[name] = placeholder


if __name__ == "__main__":
    # grpc and protobuf import these modules without needing them here; that is a third of the time
    # of a short upload. importlib.util.LazyLoader would import grpc to find grpc.aio.
    python_message = "google.protobuf.internal.python_message"
    for unused in ("asyncio", "calendar", "grpc.aio", "inspect", python_message):
        if unused not in sys.modules:
            import_later(unused)

# Why grpc or the stubs could not be loaded; reported later, so that --help and --version work.
import_error: Exception | None = None
try:
    import grpc
    from google.protobuf.message import DecodeError
    from yandex.cloud.speechsense.v1 import audio_pb2, talk_service_pb2, talk_service_pb2_grpc
    from yandex.cloud.speechsense.v1.talk_service_pb2 import TalkMetadata
except Exception as failure:  # Missing packages, missing stubs, or stubs of another protobuf.
    if __name__ != "__main__":
        raise
    # `make` installs the packages in .venv: start again with its Python, but only once.
    if "UPLOAD_GRPC_VENV" not in os.environ:
        os.environ["UPLOAD_GRPC_VENV"] = python = os.path.join(HERE, ".venv/bin/python")
        with contextlib.suppress(OSError):
            os.execv(python, [python, __file__, *sys.argv[1:]])
    import_error = failure
gc.freeze()
gc.enable()

# With --quiet only WARNING and above are shown; DEBUG only with --verbose.
log = logging.getLogger("upload_grpc")

__version__ = "2.0.0"


# --- 2. Limits and times ----------------------------------------------------------------------

ENDPOINT = "api.speechsense.yandexcloud.net:443"
# Where the official SDK looks up the operations of every service.
OPERATIONS_ENDPOINT = "operation.api.cloud.yandex.net:443"

# 100 MB over TLS with a round trip of 50 ms: 16 KiB 1.52 s, 64 KiB 0.77, 256 KiB 0.72, 1 MiB 0.75
# (tests/bench/run.py --chunks). Larger chunks gain little, and progress would come in larger
# steps; a gRPC server takes 4 MiB a message by default.
CHUNK_SIZE_BYTES = 256 * 1024

# Long, because giving up after the last byte was sent leaves an unknown recording to a person.
TIMEOUT_S = 120.0
BACKOFF_S = 0.5
BACKOFF_LIMIT_S = 30.0
# Limit for the time that one recording's attempts spend waiting; time in which bytes move is not
# counted.
ATTEMPTS_LIMIT_S = 120.0

# This many failures of the service or the network in a row are an outage and end the run; fewer if
# the run began half open, so that each cron run during an outage costs little.
FAILURES_LIMIT = 5
FAILURES_LIMIT_HALF_OPEN = 2
# How long a recording that is sent half open waits for a refusal before its half-close.
REFUSAL_WAIT_S = 1.0
# After a signal: how long to wait for responses that are due, and for cancelled calls to end.
ANSWER_GRACE_S = 10.0
CANCEL_GRACE_S = 1.0
# Open files that a run needs: of Python, grpc and the ledger, and for each upload its recording and
# connections, one of which may be closing.
FILES_NEEDED = 20
FILES_PER_JOB = 3
# Polling interval of the main thread, and of a worker that may not begin.
TICK_S = 0.05

# How often to ask whether a recording has been split, and for how long; the service names no limit.
POLL_S = 1.0
POLL_LIMIT_S = 30.0
WAIT_LIMIT_S = 2 * 60 * 60.0

# Limits of the service: SpeechSense documentation, "Supported audio formats" and "Quotas".
SINGLE_MESSAGE_LIMIT_BYTES = 128 * 1024 * 1024
DURATION_LIMIT_S = 4 * 60 * 60
SAMPLE_RATES_HZ = range(8_000, 48_000 + 1)
SAMPLE_SIZE_BITS = 16
METADATA_VALUE_LIMIT_BYTES = 1024
# Our own limit, so that a file named by mistake is not read to its end.
SMALL_FILE_LIMIT_BYTES = 1024 * 1024
# With --quiet: how many problems of one cause are named on a day (without a ledger: in a run), so
# that a dead exporter is no email in each run; how long what may pass by itself (exit code 75), and
# what a lookup may still find, has to last before it is named.
SAID_LIMIT = 10
PASSING_S = 60 * 60.0
LOOKUP_HOPE_S = 24 * 60 * 60.0
# What has not changed for so long is no temporary file.
STEADY_AFTER_S = 5 * 60.0
# How far ahead of ours the clock of a file server is believed to be, such as one in another zone.
CLOCK_AHEAD_LIMIT_S = 24 * 60 * 60.0

# Our own limit, so that a service's error text of many KB stays one readable line.
LINE_LIMIT_CHARACTERS = 1000


# --- 3. Errors, what the end of a call means, and results -------------------------------------

AGAIN = "run again"
CHECK_PATH = "check the path and its permissions"
LOOK_FOR_IT = "look for it in the console"
RAISE_FILES = "raise the limit: ulimit -n 1024, or use fewer --jobs"
RAISE_MEMORY = "raise the limits: ulimit -v, ulimit -u, or use fewer --jobs"
STREAM_IT = "leave out --single-message to send it as a stream"
# If recordings ended differently, the exit code is the first of these (os.EX_*) that occurred.
GRAVEST_FIRST = (70, 77, 78, 74, 76, 65, 66, 75)


class Meaning(NamedTuple):
    """What an error means for a recording and for the run: the whole policy in one line.

    exit_code   one of os.EX_*; the run's is the first of GRAVEST_FIRST. 65 makes the recording
                rejected, 76 unknown, others failed (result_of_error)
    id          identifies the cause in the ledger's problems, as the text may differ each time;
                with the exit code it decides when --quiet says it (SAID_AFTER_S)
    may_retry   no dialog can have been created, and the next attempt may succeed (_retrying)
    is_outage   the service or the network, not this recording: CircuitBreaker.record counts it.
                With 75, Problems has one problem for all, OUTAGE, even if stops_run is set; in a
                run in which an upload works its end has one for each recording, UNDELIVERED
    pauses_run  other workers back off too (_retrying)
    stops_run   every other recording would meet the same: CircuitBreaker.record ends the run (the
                next one is half open only with is_outage), and Problems._key makes it a problem
                of the run, by its id; with 75 it is said after an hour. --report lists it so, and
                is itself 75 at least, as something was not tried (find_last_runs)

    What is no upload is judged from these by a function of its own:

    update of metadata  update_meaning: 65, or 75, perhaps an outage; with a setting or credential
                        that is wrong (77, 78) the meaning stays, and stops the run
    wait for a split    Uploader.follow: no outage; stops the run if the credential is refused
    lookup              would_repeat: whether more of them are tried
    """

    exit_code: int
    id: str
    cause: str
    advice: str
    may_retry: bool = False
    is_outage: bool = False
    pauses_run: bool = False
    stops_run: bool = False


class UploadError(Exception):
    """Why a recording, or the whole run, did not go through. Complete when raised; never changed.

    details: gRPC's status and text, and the IDs that the service's support asks for.
    """

    def __init__(self, meaning: Meaning, details: str = "") -> None:
        super().__init__(meaning.cause)
        self.meaning = meaning
        self.details = details

    @property
    def error_text(self) -> str:
        """What happened, without advice: for the ledger."""
        return f"{self.meaning.cause} ({self.details})" if self.details else self.meaning.cause

    def __str__(self) -> str:
        details = f" ({self.details})" if self.details else ""
        return f"{self.meaning.cause}; {self.meaning.advice}{details}"


def data_error(id: str, cause: str, advice: str) -> UploadError:
    """Return the error for a file that the service would not accept."""
    return UploadError(Meaning(os.EX_DATAERR, id, cause, advice))


def config_error(id: str, cause: str, advice: str) -> UploadError:
    """Return the error for a setting with which nothing can be sent."""
    return UploadError(Meaning(os.EX_CONFIG, id, cause, advice, stops_run=True))


def unreadable_error(error: Exception, what: str = "") -> UploadError:
    """Return the error for a file that cannot be read; what: which one, if not the recording."""
    if limit := limit_error(error):
        return limit
    if getattr(error, "errno", 0) in (errno.EBUSY, errno.ETXTBSY, errno.ESTALE):
        # A recorder on a Windows share keeps a file to itself; NFS looks for it anew.
        cause = f"{what}cannot be read now: {error_text(error)}"
        return UploadError(Meaning(os.EX_TEMPFAIL, "busy", cause, AGAIN))
    cause = f"{what}cannot be read: {error_text(error)}"
    return UploadError(Meaning(os.EX_NOINPUT, "unreadable", cause, CHECK_PATH))


def limit_error(error: BaseException | None) -> UploadError | None:
    """Return the error for a limit of this process that every recording would meet, or None."""
    while error:
        number = getattr(error, "errno", 0)
        if number in (errno.EMFILE, errno.ENFILE):
            return config_error("files", "too many open files", RAISE_FILES)
        is_thread = isinstance(error, RuntimeError) and "start new thread" in str(error)
        if is_thread or isinstance(error, MemoryError) or number == errno.ENOMEM:
            cause = "no more threads" if is_thread else "no more memory"
            return config_error("memory", cause, RAISE_MEMORY)
        error = error.__cause__ or error.__context__
    return None


FILE_CHANGED = "changed"  # Meaning.id


def file_changed_error(what: str) -> UploadError:
    """Return the error for a file that changed after it was checked, so it must not be sent."""
    cause, advice = f"{what}, so nothing was uploaded", "run again when it is complete"
    return UploadError(Meaning(os.EX_TEMPFAIL, FILE_CHANGED, cause, advice))


def stopped_error() -> UploadError:
    """Return the error for what a stopped run did not get to."""
    return UploadError(Meaning(os.EX_TEMPFAIL, "stopped", "the run was stopped", AGAIN))


def error_text(error: Exception) -> str:
    """Return the text of an error, without errno and file name."""
    return getattr(error, "strerror", None) or str(error) or repr(error)


class CallError(UploadError):
    """A call brought no response, or not the one that it should.

    status: the name of a grpc.StatusCode, or "" if we gave up; idle_s: how long nothing had moved.
    """

    def __init__(self, meaning: Meaning, details: str, call: Call, status: str = "") -> None:
        meaning = meaning._replace(advice=call.advice.get(meaning.id, meaning.advice))
        super().__init__(meaning, f"{details}, {call.ids()}")
        self.status = status
        self.idle_s = call.watch.idle_s()


HAS_ROLE = "the service account needs the role speech-sense.data.editor in the space"
CHECK_KEY = f"check the key or token; {HAS_ROLE}, and its API key the scope yc.speech-sense.use"
CHECK_HOST = "check --endpoint and https_proxy"
CHECK_PROXY = "check https_proxy (http://USER:PASSWORD@HOST:PORT) and no_proxy"
CHECK_TLS = "check --endpoint, --ca-file and the clock"
FIX_IT = "fix the recording or its metadata"

# fmt: off
# Calls that never got a connection, so that nothing was sent:
UNTRUSTED = Meaning(78, "untrusted", "the server's certificate is not trusted", CHECK_TLS,
                    stops_run=True)
NO_GRPC = Meaning(78, "no-grpc", "no gRPC service with TLS at this endpoint", CHECK_HOST,
                  stops_run=True)
NO_HOST = Meaning(78, "no-host", "there is no such host", CHECK_HOST, stops_run=True)
NO_PROXY = Meaning(78, "proxy", "the proxy refused the connection", CHECK_PROXY, stops_run=True)
NO_CONNECTION = Meaning(75, "no-connection", "no connection to the service", AGAIN,
                        may_retry=True, is_outage=True, pauses_run=True)
# Refusals by the service:
BAD_KEY = Meaning(77, "credential", "the service refused the credential", CHECK_KEY, stops_run=True)
NOT_KNOWN = Meaning(78, "not-known", "not known to the service", "check --connection-id, --talk-id",
                    stops_run=True)
NO_METHOD = Meaning(78, "no-method", "this server does not offer this method", "check --endpoint",
                    stops_run=True)
BAD_FILE = Meaning(65, "refused", "the service refused the recording", FIX_IT)
EXISTS = Meaning(65, "exists", "the service has this dialog already", LOOK_FOR_IT)
TOO_LARGE_BETWEEN = Meaning(
    65, "too-large", "the recording is too large for something between here and the service",
    "raise the limit of the proxy or gateway there")
TOO_LARGE = Meaning(65, "too-large", "the message is too large for the service", STREAM_IT)
QUOTA = Meaning(75, "quota", "the quota is used up", "run again later",
                may_retry=True, is_outage=True, pauses_run=True)
# Everything else, including calls that we gave up: the status may be the service's or gRPC's own.
# Before the commit point no dialog exists; after it one may, so the outcome is unknown.
FAILED = Meaning(75, "failed", "the upload failed before it was complete", AGAIN,
                 may_retry=True, is_outage=True)
BROKE = "the connection broke, or the service failed, after the whole recording was sent"
UNKNOWN = Meaning(76, "unknown", f"{BROKE}, so the dialog may or may not exist", LOOK_FOR_IT,
                  is_outage=True)
# fmt: on

# The policy: a pattern for "STATUS: details", and what it means; the first match counts. None of
# these calls created a dialog. A new meaning needs its line here and its flags, no more: see
# Meaning for who goes by them.
RULES = (
    # A proxy's or gateway's limit for a request's body.
    (".*Received http2 header with status: 413", TOO_LARGE_BETWEEN),
    ("UNAUTHENTICATED|PERMISSION_DENIED", BAD_KEY),
    ("NOT_FOUND", NOT_KNOWN),
    ("UNIMPLEMENTED", NO_METHOD),
    ("INVALID_ARGUMENT|FAILED_PRECONDITION|OUT_OF_RANGE", BAD_FILE),
    ("ALREADY_EXISTS", EXISTS),
    ("RESOURCE_EXHAUSTED: .*larger than max", TOO_LARGE),
    ("RESOURCE_EXHAUSTED", QUOTA),
)
# For calls that never got a connection, so that nothing was sent. These are grpc's own words; tests
# check them against the installed grpc.
NO_CONNECTION_RULES = (
    ("UNAVAILABLE: .*(CERTIFICATE_VERIFY_FAILED|in peer certificate)", UNTRUSTED),
    ("UNAVAILABLE: .*(Hostname Verification|security handshaker)", UNTRUSTED),
    ("UNAVAILABLE: empty address list", UNTRUSTED),
    ("UNAVAILABLE: .*(WRONG_VERSION_NUMBER|missing selected ALPN)", NO_GRPC),
    ("UNAVAILABLE: .*(Domain name not found|Misformatted domain name)", NO_HOST),
    ("UNAVAILABLE: .*Name or service not known", NO_HOST),
    # Request Timeout and Too Many Requests pass; other refusals of a proxy do not.
    ("UNAVAILABLE: .*proxy returned response code (408|429)", NO_CONNECTION),
    ("UNAVAILABLE: .*proxy returned response code 4", NO_PROXY),
    ("UNAVAILABLE: (failed to connect to all addresses|errors resolving)", NO_CONNECTION),
    ("UNAVAILABLE: DNS resolution failed", NO_CONNECTION),
)
# After the commit point these are no refusals by the service: grpc turns a broken stream, too large
# a response, or the web page of something in between into any status
# (grpc/doc/PROTOCOL-HTTP2.md, "Errors"; doc/http-grpc-status-mapping.md).
LOST_ANSWER = (
    "Stream removed|CLIENT:|.*RST_STREAM|.*metadata size exceeds|.*http2 header with status"
    "|.*content-type"
)


def call_error(error: Exception, call: Call) -> CallError:
    """Say what a call that brought no response means for the recording it was to upload.

    error: grpc.RpcError, or grpc's exception for a call that we cancelled.
    """
    # After the commit point only the service's own refusal proves that no dialog was created.
    # Anything else may be a lost response: sending again without being asked could create a second
    # dialog.
    is_committed = call.phase is Phase.COMMITTED
    fallback = UNKNOWN if is_committed else FAILED
    if isinstance(error, grpc.FutureCancelledError):  # The run is ending: no outage.
        meaning = fallback._replace(may_retry=False, is_outage=False)
        return CallError(meaning, "the run was stopped", call)
    if not isinstance(error, grpc.Call):  # Nothing moved, so we gave up.
        never_connected = not (call.has_connected or is_committed)
        return CallError(NO_CONNECTION if never_connected else fallback, str(error), call)
    status = error.code().name
    # Rules look at grpc's own words; the proxy's password may be one of them.
    words = " ".join((error.details() or "no details").split())
    details = f"{status}: {masked(words, SECRETS + PROXY_SECRETS)}"
    if is_committed and re.match(LOST_ANSWER, words):
        return CallError(UNKNOWN, details, call, status)
    # grpc's words describe our own connection only if nothing was sent or received on it: a service
    # may forward such words from calls of its own, after it has stored the recording.
    received = error.initial_metadata() or error.trailing_metadata()
    reached_service = is_committed or call.has_connected or received
    for pattern, meaning in RULES if reached_service else NO_CONNECTION_RULES + RULES:
        if re.match(pattern, f"{status}: {words}", re.IGNORECASE):
            return CallError(meaning, details, call, status)
    return CallError(fallback, details, call, status)


def update_meaning(error: CallError, row: Row) -> Meaning:
    """Return what the failed update of a dialog's metadata means.

    It stops the run only if nothing could be sent, as no upload could be either; and what something
    in between has answered is no refusal by the service.
    """
    meaning, cause = error.meaning, f"its metadata could not be updated: {error.meaning.cause}"
    # Somebody may have written by hand that it is uploaded.
    age_s = abs(time.time() - seconds_of(row["uploaded_at"] or row["updated_at"]))
    is_lost = re.match(f"[A-Z_]+: ({LOST_ANSWER})", error.details)
    if meaning.exit_code == os.EX_TEMPFAIL or is_lost:
        is_outage = meaning.is_outage or bool(is_lost)
        return Meaning(os.EX_TEMPFAIL, UPDATE_FAILED, cause, AGAIN, is_outage=is_outage)
    if error.status in ("UNAVAILABLE", "UNAUTHENTICATED"):
        return meaning
    if error.status == "NOT_FOUND" and age_s < LOOKUP_HOPE_S:
        return Meaning(os.EX_TEMPFAIL, UPDATE_TOO_EARLY, cause, AGAIN)
    return Meaning(os.EX_DATAERR, UPDATE_REFUSED, cause, UPDATE_ADVICE)


class Outcome(str, enum.Enum):
    """What became of a recording, as --format json has it."""

    UPLOADED = "uploaded"
    UPDATED = "updated"  # New metadata for a dialog that exists.
    ALREADY = "already"  # Uploaded by an earlier run.
    CHECKED = "checked"  # By a dry run: would be uploaded.
    LEFT_OUT = "left out"  # By --min-duration, once it was converted.
    REJECTED = "rejected"
    FAILED = "failed"
    UNKNOWN = "unknown"  # May or may not have become a dialog.


class Result(NamedTuple):
    """What became of a recording: assigned once, by Tally.add, and never changed after that.

    Of an upload, what comes later replaces what was before:
    Uploader.upload_talk  result_of_response (rejected, if it could not be split, and that was said
                          at once); Worker makes result_of_error of what is raised
    Worker._recorded      writes it to the ledger; if that fails, result_unrecorded
    Uploader.follow       with --wait: with its dialogs, recorded once more (result_of_operation);
                          or with an error, which the ledger has only as a problem
    Of the others: Worker._convert (left out), Worker._update (updated, or update_meaning's error),
    Worker.deliver (a wait for one of an earlier run: uploaded, or already if that fails),
    update_talk, Lookup._take (found, recorded),
    result_of_row (known), result_of_error (Source), Run.plan and Examiner (in a dry run),
    Run._result_of_abandoned (where a worker hangs).
    """

    outcome: Outcome
    talk_ids: tuple[str, ...] = ()
    badge_id: str = ""
    operation_id: str = ""
    error: UploadError | None = None
    found_id: str = ""  # The dialog's ID as a lookup in the service found it.
    description: str = ""  # What would be uploaded.

    @property
    def dialog_ids(self) -> tuple[str, ...]:
        """The IDs to print: those that Upload returned, else the one found."""
        return self.talk_ids or ((self.found_id,) if self.found_id else ())


def result_of_error(error: UploadError) -> Result:
    """Return the result that an error means."""
    outcomes = {os.EX_DATAERR: Outcome.REJECTED, os.EX_PROTOCOL: Outcome.UNKNOWN}
    return Result(outcomes.get(error.meaning.exit_code, Outcome.FAILED), error=error)


def result_of_response(response: Any, call: Call) -> Result:
    """Accept a response only if it has an ID and came after the last byte.

    response: UploadTalkResponse, or the Operation of a recording to be split.
    Raises CallError (EX_PROTOCOL) otherwise.
    """
    # OK without a message: neither attribute.
    talk_id = getattr(response, "talk_id", "").strip()
    operation_id = getattr(response, "id", "").strip()
    dialog_id = talk_id or operation_id
    if call.phase is not Phase.COMMITTED or not dialog_id:
        early = f"before it had the whole file (ID: {dialog_id})" if dialog_id else "without an ID"
        cause = f"the service responded {early}, so the dialog may be missing or incomplete"
        raise CallError(UNKNOWN._replace(cause=cause), "OK", call)
    badge = talk_service_pb2.UploadBadgeMetadata()
    if operation_id:
        with contextlib.suppress(DecodeError):
            response.metadata.Unpack(badge)
    talk_ids = (talk_id,) if talk_id else ()
    result = Result(Outcome.UPLOADED, talk_ids, badge.badge_id, operation_id)
    if operation_id and response.done:
        result = result_of_operation(result, response)
    return result._replace(outcome=Outcome.REJECTED) if result.error else result


def result_of_operation(result: Result, operation: Any) -> Result:
    """Return the result of a recording whose operation is done: with the IDs of its dialogs."""
    badge = talk_service_pb2.UploadBadgeResponse()
    with contextlib.suppress(DecodeError):
        operation.response.Unpack(badge)  # Empty where there is an error instead.
    if talk_ids := tuple(filter(None, map(str.strip, badge.talk_ids))):
        return result._replace(talk_ids=talk_ids)
    reason = masked(operation.error.message) or "its result has no dialog"
    cause = f"uploaded, but not split: {reason}, operation {operation.id}"
    return result._replace(error=data_error("not-split", cause, LOOK_FOR_IT))


def result_unrecorded(result: Result, error: UploadError) -> Result:
    """Return the result of a recording that the ledger could not record (error says why).

    The ledger's own line is printed first, and ends the run. Then this recording's, with its ID:
    exit code 76. Its row is still `finishing`, so the next run calls it unknown.
    """
    if result.outcome is not Outcome.UPLOADED:
        return result
    dialog_id = " ".join(result.talk_ids) or result.operation_id
    cause = f"uploaded as {dialog_id}, but the ledger could not record it: {error.meaning.cause}"
    advice = "note the ID: the next run calls it unknown"
    meaning = Meaning(os.EX_PROTOCOL, "unrecorded", cause, advice)
    return result._replace(outcome=Outcome.UNKNOWN, error=UploadError(meaning))


# Meaning.id of what an earlier run has noted with another one.
REJECTED_BEFORE = "rejected"
# Meaning.id of updates of a dialog's metadata.
UPDATE_REFUSED = "update-refused"
UPDATE_TOO_EARLY = "update-too-early"
UPDATE_FAILED = "update-failed"
UPDATE_ADVICE = "correct its JSON: it is sent again once that changes, or with --retry-rejected"


def result_of_row(row: Row, reason: str = "") -> Result:
    """Return the result of a recording that is left as the ledger has it; reason: why it is."""
    if row["state"] in ("unknown", "finishing"):
        why = row["error"] or "a run is uploading it, or ended before its result was recorded"
        key = row["lookup_key"]
        where = look_for_it(key, row["sha256"], row["recorded_at"])
        cause = f"not sent, as it may have been uploaded: {why}"
        advice = reason or f"{where}; if it is not there, {retry_unknown(key)}"
        meaning = UNKNOWN._replace(cause=cause, advice=advice, is_outage=False)
        if row["is_missing"]:
            cause, advice = f"not in the service, a lookup proved: {why}", "use --retry-unknown"
            meaning = meaning._replace(id="missing", cause=cause, advice=advice)
        return result_of_error(UploadError(meaning))
    if row["state"] == "rejected":
        cause = f"not sent, as it was rejected before: {row['error']}"
        advice = "it is sent again once the file or its metadata changes, or with --retry-rejected"
        return result_of_error(data_error(REJECTED_BEFORE, cause, advice))
    return Result(
        Outcome.ALREADY,
        tuple((row["talk_id"] or "").split()),
        row["badge_id"] or "",
        row["operation_id"] or "",
        found_id=row["found_id"] or "",
    )


class FileState(NamedTuple):
    """A file's version: if equal, it is still the file that was checked.

    No inode: sshfs gives a file another number whenever the kernel has forgotten it.
    """

    size_bytes: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, file: str | int) -> FileState:
        """Stat a path or a descriptor; raise OSError, also if it is not a regular file."""
        return cls.from_stat(os.stat(file))

    @classmethod
    def from_stat(cls, status: os.stat_result) -> FileState:
        """Return the state that a stat has read; raise OSError if it is not a regular file."""
        if not stat.S_ISREG(status.st_mode):
            raise OSError("not a regular file")
        # The nearest times that SQLite can store: a file may be dated 2300.
        times_ns = (status.st_mtime_ns, status.st_ctime_ns)
        return cls(status.st_size, *(max(-(2**63), min(ns, 2**63 - 1)) for ns in times_ns))


NO_STATE = FileState(0, 0, 0)


class Json(NamedTuple):
    """The JSON beside a recording, as it was read."""

    state: FileState
    sha256: str  # Of its fields.
    warnings: list[str]


class Recording:
    """One recording, from its file's name to its result. Each field says which step fills it."""

    def __init__(self, path: str, explicit: bool = True, sidecar: str | None = None) -> None:
        self.path = path  # Source, if it takes one of the siblings.
        self.explicit = explicit  # Named on the command line, not found in a folder.
        self.sidecar = sidecar  # find_files: the JSON beside it.
        self.file_state = NO_STATE  # Source; compared again at the commit point.
        self.started_s = 0.0  # Source, when it looks at the recording for the first time.
        # Source: the same call in other formats, until CallFiles has chosen one.
        self.siblings: Sequence[tuple[str, FileState]] = ()
        self.audio: Audio | None = None  # Examiner: what its header says.
        self.metadata: TalkMetadata | None = None  # collect_metadata
        self.json: Json | None = None  # collect_metadata: the sidecar, as it was read.
        self.has_placeholders = False  # collect_metadata
        self.sha256 = ""  # hash_recording
        self.metadata_sha256 = ""  # hash_recording
        self.rows: Sequence[Row] | None = None  # Source: of this path; None: to be read (again).
        self.row: Row | None = None  # Examiner: what the ledger has, unless it is to be sent.
        self.action = Action.LEAVE  # Examiner: what a worker has to do.
        self.replaces = ""  # ReplacedNames: the dialog ID of other audio that had this path before.
        self.converted: Converted | None = None  # Worker, if it has to be.
        self.attempts = 0  # Uploader
        self.call: Call | None = None  # Uploader: the latest attempt, or its look for a connection.
        self.received: Result | None = None  # Uploader, Worker: the call's, before ledger and wait.
        self.is_recorded = False  # Worker: its result is in the ledger, or there is no ledger.
        self.is_waiting = False  # Worker: the service is being asked whether it is split.
        self.result: Result | None = None  # Tally.add

    @property
    def files(self) -> list[tuple[str, FileState]]:
        """The call's files: this one, and its siblings."""
        return [(self.path, self.file_state), *self.siblings]

    @property
    def sent_bytes(self) -> int:
        """The size of what is sent: of the file, or of what it was converted to."""
        return self.converted.size_bytes if self.converted else self.file_state.size_bytes


# --- 4. Finding files -------------------------------------------------------------------------


class Found(NamedTuple):
    """Files of one call to look at. error: why a folder, or what is in it, cannot be looked at."""

    paths: list[str]  # They differ only in suffix; the preferred one is the first.
    explicit: bool  # Named on the command line, not found in a folder.
    sidecar: str | None = None  # The JSON beside it.
    error: OSError | None = None
    is_link: bool = False  # One that leads nowhere by now: perhaps to a folder on a lost share.


def find_files(args: Namespace) -> Iterator[Found]:
    """Yield the files named, and the audio files in the folders named, in a stable order."""
    calls: dict[tuple[str, bool], list[str]] = {}
    for path in args.audio_path:
        stem, suffix = os.path.splitext(path)
        # Other endings may tell calls apart: rec.103000 and rec.104500.
        is_audio = suffix.lower() in args.suffixes and not os.path.isdir(path)
        calls.setdefault((stem, True) if is_audio else (path, False), []).append(path)
    for paths in calls.values():
        in_order(paths, args.suffixes)
        if os.path.isdir(paths[0]):
            yield from find_in_folder(paths[0], args.suffixes)
        else:
            yield Found(paths, True, find_sidecar(paths[0]))


def in_order(paths: list[str], suffixes: tuple[str, ...]) -> None:
    """Sort files of one call in the order of preference."""
    if paths[1:]:
        # Not by os.path.splitext: of a file named ".wav" that is no suffix.
        paths.sort(key=lambda path: [not path.lower().endswith(suffix) for suffix in suffixes])


def find_in_folder(top: str, suffixes: tuple[str, ...]) -> Iterator[Found]:
    """Yield the audio files in a folder, then those in its subfolders, through symlinks too.

    Also the links that lead nowhere, as there may have been such subfolders.
    """
    visited = set()
    # Without a JSON of their own; they come last, so that a recording is known by its own name.
    links: list[Found] = []
    # A list instead of recursion: people nest folders deeper than Python nests calls.
    folders = [top]
    while folders:
        folder = folders.pop()
        start = os.path.join(folder, "")
        try:
            status = os.stat(folder)
            with os.scandir(folder) as entries:
                if (status.st_dev, status.st_ino) in visited:  # Through a symlink.
                    continue
                visited.add((status.st_dev, status.st_ino))
                subfolders: list[str] = []
                names: list[tuple[str, str]] = []  # Stem and name.
                linked: set[str] = set()
                dangling: list[Found] = []
                sidecars: dict[str, str] = {}  # By stem.
                for entry in entries:
                    name = entry.name
                    if leads_to_folder(entry):
                        subfolders.append(name)
                    elif name.endswith((".json", ".JSON")):
                        sidecars[name[:-5]] = max(name, sidecars.get(name[:-5], ""))
                    elif name.lower().endswith(suffixes):
                        names.append((os.path.splitext(name)[0], name))
                        linked.update([start + name] if entry.is_symlink() else ())
                    elif lost := link_error(entry):
                        dangling.append(Found([start + name], False, error=lost, is_link=True))
        except OSError as error:
            if folder == top or not isinstance(error, FileNotFoundError):  # Removed meanwhile.
                yield Found([folder], False, error=error)
            continue
        yield from dangling
        for stem, same in itertools.groupby(sorted(names), key=lambda pair: pair[0]):
            audio = [start + name for _, name in same]
            in_order(audio, suffixes)
            sidecar = start + sidecars[stem] if stem in sidecars else None
            if audio[0] in linked and not sidecar:
                links.append(Found(audio, False, find_sidecar(audio[0])))
            else:
                yield Found(audio, False, sidecar)
        folders += [start + name for name in sorted(subfolders, reverse=True)]
    yield from links


def leads_to_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether a folder's entry is a folder or leads to one; False if nobody can say."""
    try:
        return entry.is_dir()
    except OSError:  # Of a symlink that leads nowhere, or where we may not look.
        return False


def link_error(entry: os.DirEntry[str]) -> OSError | None:
    """Return why a symlink leads nowhere; None if it does not, or if this is none."""
    try:
        if entry.is_symlink():
            entry.stat()
    except OSError as error:
        return error
    return None


def find_sidecar(path: str) -> str | None:
    """Return the path of the JSON file beside a recording, or beside what a symlink leads to."""
    paths = (path, os.path.realpath(path)) if os.path.islink(path) else (path,)
    stems = [os.path.splitext(each)[0] for each in paths]
    names = (stem + suffix for stem in stems for suffix in (".json", ".JSON"))
    return next(filter(os.path.lexists, names), None)


def formats_of_call(stem: str) -> set[str]:
    """Return the suffixes of the files that there are of a call, in lower case."""
    return {
        suffix
        for suffix in SUFFIXES
        if os.path.exists(stem + suffix) or os.path.exists(stem + suffix.upper())
    }


def read_header(path: str, args: Namespace) -> tuple[Audio, FileState]:
    """Read what a recording's header says, and the state of the file; raise UploadError."""
    try:
        with open(path, "rb") as file:
            state = FileState.of(file.fileno())
            audio = read_audio(file, state.size_bytes, args)
    except OSError as error:
        raise unreadable_error(error) from error
    if audio.needs_conversion and not args.convert:
        cause = f"the service does not take {audio.description}"
        advice = "record it as 16 bit LPCM WAV of 8,000 to 48,000 Hz, MP3 or OggOpus"
        raise data_error("needs-conversion", cause, f"use --convert, or {advice}")
    if not audio.needs_conversion:
        check_limits(audio, state.size_bytes, args.split, args.single_message)
    return audio, state


# --- 5. Audio formats -------------------------------------------------------------------------

# The content tells the format; a suffix counts only for raw GSM, for MP3 behind something else,
# and for raw PCM. To add a format, add a line to FORMATS. What the service takes as it is needs a
# `container`, too, and a read_header that leaves needs_conversion False; then look at AUDIO_TYPES,
# check_limits, and the words in read_header and make_parser.

EXPORT_AGAIN = "record or export it again"
CUT_IT = "cut it into parts of at most 4 hours"
WHEN_CLOSED = f"run again when it is closed, or {EXPORT_AGAIN}"
WAIT_OR_REPAIR = "run again when it is closed; README tells how to repair one by hand"
NO_SAMPLES = "contains no audio samples, or is still being recorded"
# What identifies a format is within so many bytes.
HEAD_BYTES = 64
# Recorders that count the header as audio announce 16 to 44 bytes more than there are.
HEADER_SLACK_BYTES = 44
# Our own limit for tags, chunks and pages; a cover in an Ogg comment takes many pages.
PARTS_LIMIT = 10_000


class Audio(NamedTuple):
    """What the header of a recording says about its audio; 0 stands for what is not known."""

    format: AudioFormat
    encoding: str = ""  # Of WAV.
    rate_hz: int = 0
    channels: int = 0
    duration_s: float = 0.0  # Exact.
    needs_conversion: bool = False

    @property
    def description(self) -> str:
        """The format and what is known of the audio, for people."""
        parts = (
            self.format.name,
            self.encoding,
            self.rate_hz and f"{self.rate_hz:,} Hz",
            self.channels and f"{self.channels} channel{'s' * (self.channels != 1)}",
            self.duration_s and f"{self.duration_s:,.1f} s",
        )
        return ", ".join(str(part) for part in parts if part)


class AudioFormat(NamedTuple):
    """All that the script knows of a format."""

    name: str
    suffixes: tuple[str, ...]
    signature: bytes  # A pattern for the beginning.
    # From the file at its beginning, and its size; raises UploadError for what is broken.
    read_header: Callable[[BinaryIO, int, AudioFormat], Audio]
    demuxer: str = ""  # FFmpeg's name for it.
    container: str = ""  # The service's name for it; empty: raw PCM, or to be converted.
    # Where the header has the file's length: a marker, and the layout of what follows (`struct`).
    length: tuple[bytes, str] | None = None


def read_audio(file: BinaryIO, size_bytes: int, args: Namespace) -> Audio:
    """Find out what a recording is, from its headers; raise UploadError if it is broken."""
    if not size_bytes:
        cause = "the file is empty, or still being recorded"
        raise data_error("empty", cause, "run again when it is closed, or remove it")
    audio_format = find_format(file.name, file.read(HEAD_BYTES), args.audio_type)
    if audio_format is not AUDIO_TYPES.get(args.audio_type, audio_format):
        advice = f"leave out --audio-type {args.audio_type}"
        raise data_error("other-audio-type", f"this is {audio_format.name}", advice)
    if audio_format is PCM:
        return describe_pcm(size_bytes, args.sample_rate, args.channels)
    file.seek(0)
    return audio_format.read_header(file, size_bytes, audio_format)


def find_format(path: str, head: bytes, audio_type: str) -> AudioFormat:
    """Tell the format from the first bytes, else from the suffix; raise UploadError if neither."""
    suffix = os.path.splitext(path)[1].lower()
    # Signatures that begin so are 4 or 12 bits: a sample of raw PCM may look like one.
    is_weak = audio_type == "pcm" and head[:1] >= b"\xd0"
    for audio_format in FORMATS:
        needs_suffix = audio_format is GSM and suffix not in GSM.suffixes
        if re.match(audio_format.signature, head, re.DOTALL) and not (is_weak or needs_suffix):
            return audio_format
    if audio_type == "pcm":
        return PCM
    # Players skip whatever precedes the first MP3 frame.
    if audio_type == "mp3" or suffix in MP3.suffixes:
        return MP3
    if suffix in PCM.suffixes:
        advice = "for raw PCM use --audio-type pcm with --sample-rate and --channels"
        raise data_error("no-header", "no audio header", advice)
    refuse_other_files(head)
    raise data_error("unknown-format", "not a recording in a known format", EXPORT_AGAIN)


# How files begin that are often saved in the place of a recording.
NOT_AUDIO = (
    (rb"(\xef\xbb\xbf)?\s*(?i:<(!doctype|html|\?xml|!--))",
     Meaning(65, "web-page", "this is a web page or XML, not audio",
             "download the recording again; the server may have asked for a login")),
    (rb"\0+\Z", Meaning(65, "zeros", "zeros where the audio header should be",
                        "restore the file from the recorder, or remove it")),
    (rb"(?=.*[ -~]{16})[\t\n\r -~\x80-\xff]+\Z",
     Meaning(65, "text", "this is text, not audio", EXPORT_AGAIN)),
)  # fmt: skip


def refuse_other_files(head: bytes) -> None:
    """Raise UploadError if a file that is no recording begins as what we have a better word for."""
    for pattern, meaning in NOT_AUDIO:
        if re.match(pattern, head, re.DOTALL):
            raise UploadError(meaning)


def check_limits(audio: Audio, size_bytes: int, split: bool, single_message: bool) -> None:
    """Raise UploadError if what is to be sent is over a limit of the service, or of an option."""
    if split and not (audio.format in (WAV, MP3) and audio.channels == 1):
        cause = f"{audio.description}: only WAV and MP3 of one channel can be split"
        raise data_error("cannot-split", cause, "leave out --split")
    if audio.duration_s > DURATION_LIMIT_S and not split:  # For splitting no limit is known.
        cause = f"{audio.duration_s / 3600:.2f} hours long; the limit is 4"
        raise data_error("too-long", cause, CUT_IT)
    if single_message and size_bytes >= SINGLE_MESSAGE_LIMIT_BYTES:
        limit = f"a single message must be under {SINGLE_MESSAGE_LIMIT_BYTES:,}"
        raise data_error("too-large", f"{size_bytes:,} bytes; {limit}", STREAM_IT)


def truncated_error(announced_bytes: int, there_bytes: int) -> UploadError:
    """Return the error for a file whose header announces more than there is."""
    cause = f"truncated or still being recorded: the header announces {announced_bytes:,} bytes, "
    return data_error("truncated", f"{cause}{there_bytes:,} are there", WAIT_OR_REPAIR)


# WAV

WAV_ENCODINGS = {1: "PCM", 3: "floating point", 6: "A-law", 7: "mu-law", 0x31: "GSM 6.10"}


def read_wav(file: BinaryIO, size_bytes: int, audio_format: AudioFormat) -> Audio:
    """Read the header of a WAV file, and check that its length is that of the file."""
    wav_format, start, data_bytes = find_wav_chunks(file)
    fields = struct.unpack_from("<HHIIHH", wav_format.ljust(16, b"\0"))
    code, channels, rate_hz, byte_rate, block_bytes, bits = fields
    if code == 0xFFFE:  # WAVE_FORMAT_EXTENSIBLE: the subformat's GUID begins with the code.
        code = int.from_bytes(wav_format[24:26], "little")
    encoding = WAV_ENCODINGS.get(code, f"format 0x{code:04x}") + (f" {bits} bit" if bits else "")
    if not channels or not rate_hz:
        cause = f"damaged WAV header: {encoding}, {rate_hz:,} Hz, {channels} channels"
        raise data_error("damaged-header", cause, EXPORT_AGAIN)
    is_lpcm = (code, bits) == (1, SAMPLE_SIZE_BITS)
    if is_lpcm:  # Some writers leave nonsense in the fields that follow from the others.
        block_bytes = channels * SAMPLE_SIZE_BITS // 8
    # Uncompressed, so that each frame is a block. 24 bits in blocks of 32 are usual.
    is_exact = code in (1, 3, 6, 7) and block_bytes * 8 >= channels * bits > 0
    # 1,000 bytes a second are few for any speech codec; some headers do not say.
    second_bytes = block_bytes * rate_hz if is_exact else max(byte_rate, 1_000)
    check_wav_length(file, size_bytes, start, data_bytes, second_bytes)
    frames = min(data_bytes, size_bytes - start) // max(block_bytes, 1)
    if not frames:
        raise data_error("no-samples", NO_SAMPLES, WHEN_CLOSED)
    needs_conversion = not is_lpcm or rate_hz not in SAMPLE_RATES_HZ
    duration_s = frames / rate_hz if is_exact else 0.0
    return Audio(audio_format, encoding, rate_hz, channels, duration_s, needs_conversion)


def riff_chunks(file: BinaryIO, position: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, start and length of the RIFF chunks from a position on; the file is at start."""
    for _ in range(PARTS_LIMIT):
        file.seek(position)
        if len(head := file.read(8)) < 8:
            break
        name, length = struct.unpack("<4sI", head)
        yield name, position + 8, length
        position += 8 + length + length % 2


def find_wav_chunks(file: BinaryIO) -> tuple[bytes, int, int]:
    """Return the format chunk, and start and announced length of the data chunk, in any order."""
    wav_format, data = b"", None
    for name, start, length in riff_chunks(file, 12):
        if name == b"fmt ":
            wav_format = file.read(min(length, 40))
        elif name == b"data":
            data = start, length
        if wav_format and data:
            return wav_format, *data
    cause = f"damaged or truncated WAV file: no {'data' if wav_format else 'format'} chunk"
    raise data_error("damaged-header", cause, WHEN_CLOSED)


def check_wav_length(
    file: BinaryIO, size_bytes: int, start: int, data_bytes: int, second_bytes: int
) -> None:
    """Raise UploadError if a WAV file has less audio than announced, or over a second more."""
    there_bytes = size_bytes - start
    # Writers that cannot seek back leave 0, 0xFFFFFFFF or something like 0x80000000 there.
    if data_bytes > there_bytes + HEADER_SLACK_BYTES:
        raise truncated_error(data_bytes, there_bytes)
    if there_bytes - data_bytes <= second_bytes:
        return
    # Other chunks may follow, up to the end.
    for name, chunk_start, length in riff_chunks(file, start + data_bytes + data_bytes % 2):
        # More audio: a second data chunk, or WAV files that were joined by cat.
        if name in (b"data", b"RIFF") or not re.fullmatch(rb"[ -~]{4}", name):
            break
        if -HEADER_SLACK_BYTES <= size_bytes - chunk_start - length <= second_bytes:
            return
    cause = f"the header announces {data_bytes:,} bytes of audio, {there_bytes:,} are there"
    raise data_error("header-too-short", f"{cause}: the rest would be lost", WAIT_OR_REPAIR)


# MP3

# MPEG audio, layer III (ISO 11172-3, 13818-3): sync and version, then a bit rate that exists.
MP3_HEADER = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb][\x10-\xef]")
MP3_RATES_HZ = (44_100, 48_000, 32_000)
MPEG1_KBIT_S = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
MPEG2_KBIT_S = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
# By the version's bits (MPEG-2.5, 2, 1): what divides the rate, bytes a frame by bit rate, rates.
MP3_VERSIONS = {0: (4, 72, MPEG2_KBIT_S), 2: (2, 72, MPEG2_KBIT_S), 3: (1, 144, MPEG1_KBIT_S)}
# The first frame begins within so many bytes behind the tags: there may be zeros in front.
MP3_SEARCH_BYTES = 512 * 1024


def read_mp3(file: BinaryIO, size_bytes: int, audio_format: AudioFormat) -> Audio:
    """Find the first frames of an MP3 file, behind its tags, and read the header of the first."""
    skip_id3_tags(file)
    block = file.read(MP3_SEARCH_BYTES)
    for other in FORMATS if file.tell() > len(block) else ():
        if other not in (MP3, GSM) and re.match(other.signature, block, re.DOTALL):
            cause = f"{other.name} behind an ID3 tag, which only MP3 may have"
            raise data_error("tagged", cause, f"remove the tag, or {EXPORT_AGAIN}")
    for match in MP3_HEADER.finditer(block):
        start = position = match.start()
        rates_hz: list[int] = []
        while frame := mp3_frame(block[position : position + 3]):
            rates_hz.append(frame[0])
            position += frame[1]
            if len(rates_hz) == 3:  # Three frames, one after the other; fewer may be chance.
                return Audio(audio_format, "", rates_hz[0], 1 if block[start + 3] >> 6 == 3 else 2)
    refuse_other_files(block[:HEAD_BYTES])
    raise data_error("no-mp3-audio", "no MP3 audio where it should begin", EXPORT_AGAIN)


def skip_id3_tags(file: BinaryIO) -> None:
    """Go to where the ID3v2 tags in front of an MP3 file end."""
    for _ in range(PARTS_LIMIT):
        head = file.read(10)
        if not head.startswith(b"ID3"):
            file.seek(-len(head), os.SEEK_CUR)
            break
        # The length is four times 7 bits; a footer repeats the header's 10 bytes.
        length = functools.reduce(lambda number, byte: number << 7 | byte & 0x7F, head[6:], 0)
        has_footer = len(head) > 5 and head[5] & 0x10
        file.seek(length + (10 if has_footer else 0), os.SEEK_CUR)


def mp3_frame(header: bytes) -> tuple[int, int] | None:
    """Return the sample rate and the length in bytes of an MP3 frame; None if this is none."""
    if not MP3_HEADER.match(header) or header[2] & 0x0C == 0x0C:
        return None
    divisor, factor, kbit_s = MP3_VERSIONS[header[1] >> 3 & 3]
    rate_hz = MP3_RATES_HZ[header[2] >> 2 & 3] // divisor
    padding_bytes = header[2] >> 1 & 1
    return rate_hz, factor * 1_000 * kbit_s[header[2] >> 4] // rate_hz + padding_bytes


# Others

# Microsoft, ASF specification: File Properties Object.
ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


def read_ogg_opus(file: BinaryIO, size_bytes: int, audio_format: AudioFormat) -> Audio:
    """Read the first page of an OggOpus file (RFC 7845), and look for a whole page of audio."""
    channels = int.from_bytes(file.read(HEAD_BYTES)[37:38], "little")
    if not channels:
        cause = "damaged OggOpus header: no channels"
        raise data_error("damaged-header", cause, EXPORT_AGAIN)
    position = 0
    for _ in range(PARTS_LIMIT):
        file.seek(position)
        page = file.read(27)
        if len(page) < 27 or not page.startswith(b"OggS"):
            break
        segments = file.read(page[26])
        position += len(page) + len(segments) + sum(segments)
        # The page's position in the audio: 0 for header pages, -1 if no packet ends on it.
        if page[6:14] not in (bytes(8), b"\xff" * 8) and position <= size_bytes:
            return Audio(audio_format, channels=channels)
    raise data_error("no-samples", NO_SAMPLES, WHEN_CLOSED)


def read_flac(file: BinaryIO, size_bytes: int, audio_format: AudioFormat) -> Audio:
    """Read STREAMINFO (RFC 9639, section 8.2), which has the number of samples."""
    # 20 bits of sample rate, 3 of channels - 1, 5 of bits - 1, 36 of samples.
    fields = int.from_bytes(file.read(26)[18:].ljust(8, b"\0"), "big")
    rate_hz, channels, samples = fields >> 44, (fields >> 41 & 7) + 1, fields & (1 << 36) - 1
    return Audio(audio_format, "", rate_hz, channels, samples / max(rate_hz, 1), True)


def read_other(file: BinaryIO, size_bytes: int, audio_format: AudioFormat) -> Audio:
    """Compare a file's length with that in its header: of some that are cut FFmpeg says nothing."""
    if audio_format.length:
        marker, layout = audio_format.length
        field = file.read(4096).partition(marker)[2]
        [announced_bytes] = struct.unpack_from(layout, field.ljust(HEAD_BYTES, b"\0"))
        # Writers that cannot seek back leave 0 or 0xFFFFFFFF there.
        if announced_bytes != 0xFFFFFFFF and announced_bytes > size_bytes + HEADER_SLACK_BYTES:
            raise truncated_error(announced_bytes, size_bytes)
    return Audio(audio_format, needs_conversion=True)


def describe_pcm(size_bytes: int, rate_hz: int, channels: int) -> Audio:
    """Describe raw PCM, as the command line does."""
    frame_bytes = channels * SAMPLE_SIZE_BITS // 8
    if size_bytes % frame_bytes:
        cause = f"{size_bytes:,} bytes is not a multiple of the {frame_bytes}-byte frame size"
        raise data_error("odd-size", cause, "check --channels, and that it is 16 bit PCM")
    return Audio(PCM, "", rate_hz, channels, size_bytes / frame_bytes / rate_hz)


# fmt: off
WAV = AudioFormat("WAV", (".wav", ".wave"), b"RIFF.{4}WAVE", read_wav, "wav", "WAV")
MP3 = AudioFormat("MP3", (".mp3",), b"ID3|" + MP3_HEADER.pattern, read_mp3, "mp3", "MP3")
OGG_OPUS = AudioFormat("OggOpus", (".ogg", ".oga", ".opus"), b"OggS.{24}OpusHead", read_ogg_opus,
                       "ogg", "OGG_OPUS")
# Each frame of 33 bytes begins with four bits: libgsm, and RFC 3551, section 4.5.8.1.
GSM = AudioFormat("GSM", (".gsm",), rb"[\xd0-\xdf]", read_other, "gsm")
PCM = AudioFormat("raw PCM", (".pcm", ".raw"), b"", read_other)

# In the order of preference for files of one call; the first that matches counts.
FORMATS = (
    WAV,
    MP3,
    OGG_OPUS,
    AudioFormat("Ogg with Vorbis", (), b"OggS.{24}\x01vorbis", read_other, "ogg"),
    AudioFormat("Ogg with FLAC", (), b"OggS.{24}\x7fFLAC", read_other, "ogg"),
    AudioFormat("Ogg with Speex or another codec", (), b"OggS", read_other, "ogg"),
    AudioFormat("FLAC", (".flac",), b"fLaC", read_flac, "flac"),
    AudioFormat("M4A or MP4", (".m4a", ".mp4", ".3gp"), b".{4}(ftyp|moov|mdat|wide|free|skip)",
                read_other, "mov"),
    AudioFormat("AAC", (".aac",), rb"\xff[\xf0\xf1\xf8\xf9]|ADIF", read_other, "aac"),
    AudioFormat("AMR", (".amr",), b"#!AMR", read_other, "amr"),
    GSM,
    AudioFormat("WMA", (".wma",), rb"0&\xb2u\x8ef\xcf\x11", read_other, "asf",
                length=(ASF_FILE_PROPERTIES, "<24xQ")),
    AudioFormat("WebM", (".webm",), rb"\x1aE\xdf\xa3", read_other, "matroska"),
    AudioFormat("AIFF", (".aif", ".aiff"), b"FORM.{4}AIF", read_other, "aiff",
                length=(b"FORM", ">I")),
    AudioFormat("AU", (".au",), rb"\.snd", read_other, "au", length=(b".snd", ">4xI")),
    AudioFormat("RF64", (), b"(RF64|BW64).{4}WAVE", read_other, "wav", length=(b"ds64", "<4xQ")),
    AudioFormat("Wave64", (), rb"riff\x2e\x91", read_other, "w64", length=(b"riff", "<12xQ")),
    AudioFormat("CAF", (), rb"caff\x00\x01", read_other, "caf"),
    AudioFormat("MPEG layer II", (), rb"\xff[\xf4\xf5\xfc\xfd][\x10-\xef]", read_other, "mp3"),
)
# fmt: on
# Values of --audio-type.
AUDIO_TYPES = {"wav": WAV, "mp3": MP3, "ogg-opus": OGG_OPUS, "pcm": PCM}
# What folders are searched for, in the order of preference.
SUFFIXES = tuple(itertools.chain.from_iterable(each.suffixes for each in FORMATS))


def audio_message(audio: Audio, args: Namespace) -> audio_pb2.AudioMetadata:
    """Build the message that announces a format."""
    if audio.format is not PCM:
        name = f"CONTAINER_AUDIO_TYPE_{audio.format.container}"
        container = audio_pb2.ContainerAudio(container_audio_type=name)
        return audio_pb2.AudioMetadata(container_audio=container)
    raw = audio_pb2.RawAudio(sample_rate_hertz=args.sample_rate, audio_channel_count=args.channels)
    raw.audio_encoding = audio_pb2.RawAudio.AUDIO_ENCODING_LINEAR16_PCM
    return audio_pb2.AudioMetadata(raw_audio=raw)


# --- 6. Conversion ----------------------------------------------------------------------------

# WAV cannot be longer; without a limit a small file could fill the disk with silence.
CONVERTED_LIMIT_BYTES = 0xFFFFFFFF
STDERR_LIMIT_BYTES = 64 * 1024
KILL_GRACE_S = 1.0
# What is decoded keeps the rate that its header has, else gets the nearest of these.
USUAL_RATES_HZ = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)

NO_FFMPEG = Meaning(
    78, "no-ffmpeg", "--convert needs FFmpeg, which is not installed or cannot be run",
    "install it so that `ffmpeg` is in PATH, or leave out --convert", stops_run=True)  # fmt: skip
NO_TEMP_FOLDER = Meaning(
    78, "no-temp-folder", "no temporary file can be created for --convert",
    "set TMPDIR to a folder that can be written to", stops_run=True)  # fmt: skip
NO_SPACE = Meaning(
    75, "no-space", "no space left for the converted recording",
    "free some space, or set TMPDIR to another disk; then run again")  # fmt: skip
NOT_STARTED = Meaning(75, "conversion-not-started", "FFmpeg could not be started", AGAIN)
KILLED = Meaning(75, "conversion-killed", "FFmpeg was ended by a signal", AGAIN)
NOT_DECODED = Meaning(75, "conversion-broke", "FFmpeg could not go on", AGAIN)
# Limits of the machine. Not EIO or ENOMEM: FFmpeg says them of damaged recordings, too.
LIMIT_ERRNOS = (errno.EAGAIN, errno.EMFILE, errno.ENFILE)
CONVERSION_FAILED = Meaning(
    65, "conversion-failed", "FFmpeg cannot decode the whole recording",
    f"check that it plays to its end; {EXPORT_AGAIN}")  # fmt: skip


class Converted(NamedTuple):
    """A recording as WAV, in a file without a name, which is gone when it is closed."""

    file: BinaryIO
    size_bytes: int
    audio: Audio


def find_ffmpeg() -> str:
    """Return the path of FFmpeg; raise UploadError, which stops the run, if there is none."""
    import shutil

    if path := shutil.which("ffmpeg"):
        return os.path.abspath(path)
    raise UploadError(NO_FFMPEG)


def convert(
    ffmpeg: str, path: str, audio: Audio, timeout_s: float, stopping: threading.Event
) -> Converted:
    """Have FFmpeg decode a recording to 16 bit WAV, and check what it wrote, as of any WAV."""
    file = create_temp_file()
    try:
        words = ffmpeg_arguments(path, audio, f"/dev/fd/{file.fileno()}")
        status, message = run_ffmpeg([ffmpeg, *words], file.fileno(), timeout_s, stopping)
        if stopping.is_set():  # A signal may have reached FFmpeg, too.
            raise stopped_error()
        text = message.decode(errors="replace").strip()
        check_end(status, text.replace(f"file:{path}", "the file"))
        file.seek(0)
        size_bytes = os.fstat(file.fileno()).st_size
        result = read_wav(file, size_bytes, WAV)
        # FFmpeg says nothing where some formats were cut; decoders differ by some samples.
        if result.needs_conversion or result.duration_s < audio.duration_s - 0.1:
            details = f"decoded to {result.description}; it is {audio.description}"
            raise UploadError(CONVERSION_FAILED, details)
        return Converted(file, size_bytes, result)
    except BaseException:
        file.close()
        raise


def create_temp_file() -> BinaryIO:
    """Create a file without a name, so that nothing is left of it whatever happens."""
    import tempfile

    # Not /tmp, which may be memory: an hour in stereo at 8 kHz is 115 MB.
    folder = os.environ.get("TMPDIR") or "/var/tmp"
    try:
        return tempfile.TemporaryFile(dir=folder)
    except OSError as error:
        meaning = NO_SPACE if error.errno in (errno.ENOSPC, errno.EDQUOT) else NO_TEMP_FOLDER
        raise limit_error(error) or UploadError(meaning, f"{folder}: {error.strerror}") from error


def ffmpeg_arguments(path: str, audio: Audio, target: str) -> list[str]:
    """Return FFmpeg's arguments."""
    # What it reads is hostile: only the demuxer for the content that we saw may read it, and only
    # from files. A playlist that is called call.m4a would otherwise bring the neighbour's call.
    demuxer = audio.format.demuxer
    words = ["-nostdin", "-v", "error", "-protocol_whitelist", "file"]
    words += ["-format_whitelist", demuxer, "-f", demuxer]
    # Of a WAV we checked the length ourselves; if its header counts itself, -xerror would call the
    # last packet corrupt. Other errors are on stderr without it, too.
    if audio.format is not WAV:
        words.append("-xerror")
    words += ["-i", f"file:{path}", "-map", "0:a", "-map_metadata", "-1", "-c:a", "pcm_s16le"]
    rates_hz = {rate for rate in (audio.rate_hz, *USUAL_RATES_HZ) if rate in SAMPLE_RATES_HZ}
    words += ["-af", f"aformat=sample_rates={'|'.join(map(str, rates_hz))}"]
    return [*words, "-fflags", "+bitexact", "-f", "wav", "-y", target]


FFMPEG_LOCK = threading.Lock()
RUNNING_FFMPEG: set[Any] = set()  # Each a Popen.


def run_ffmpeg(
    command: list[str], target: int, timeout_s: float, stopping: threading.Event
) -> tuple[int, bytes]:
    """Run FFmpeg to its end; return its status and stderr. target: the descriptor it writes to."""
    from subprocess import DEVNULL, PIPE, Popen, TimeoutExpired

    # Neither the credential nor FFREPORT, which makes it write files.
    names = {"HOME", "LD_LIBRARY_PATH", "PATH"} & os.environ.keys()
    options: dict[str, Any] = {"env": {name: os.environ[name] for name in names}}
    options |= {"stdin": DEVNULL, "stdout": DEVNULL, "stderr": PIPE}
    try:
        with FFMPEG_LOCK:
            # Its own session, as Ctrl-C and `timeout` signal the group: good recordings would fail.
            process: Any = Popen(command, pass_fds=[target], start_new_session=True, **options)
            RUNNING_FFMPEG.add(process)
    except OSError as error:
        is_missing = error.errno in (errno.ENOENT, errno.EACCES, errno.ENOEXEC, errno.ENOTDIR)
        meaning = NO_FFMPEG if is_missing else NOT_STARTED
        raise UploadError(meaning, f"{command[0]}: {error.strerror}") from error
    size_bytes, idle_s = 0, 0.0
    try:
        while True:
            try:
                _, message = process.communicate(timeout=TICK_S)
                return process.returncode, message
            except TimeoutExpired as running:
                message = running.stderr or b""
            if len(message) > STDERR_LIMIT_BYTES:
                return 1, message
            if stopping.is_set():
                raise stopped_error()
            previous_bytes, size_bytes = size_bytes, os.fstat(target).st_size
            # Ticks, not a clock: the time in which we did not run ourselves (SIGSTOP) is not idle.
            idle_s = idle_s + TICK_S if size_bytes == previous_bytes else 0.0
            if idle_s > timeout_s:
                # More likely a disk or share that hangs than a recording that FFmpeg hangs in.
                cause = f"FFmpeg decoded nothing for {timeout_s:g} s and was ended"
                advice = "run again; if it lasts, record or export it again"
                raise UploadError(Meaning(os.EX_TEMPFAIL, "conversion-stuck", cause, advice))
            if size_bytes > CONVERTED_LIMIT_BYTES:
                raise data_error("too-long", "longer than a WAV file can be", CUT_IT)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            # On a share that is gone even this may not end it.
            with contextlib.suppress(TimeoutExpired):
                process.wait(KILL_GRACE_S)
        RUNNING_FFMPEG.discard(process)
        process.stderr.close()


def kill_ffmpeg() -> None:
    """Kill each FFmpeg whose worker does not get to it before the process ends."""
    FFMPEG_LOCK.acquire(timeout=TICK_S)  # Never released: no other one begins.
    for process in list(RUNNING_FFMPEG):
        with contextlib.suppress(OSError):  # It has ended.
            os.killpg(process.pid, signal.SIGKILL)


def check_end(status: int, text: str) -> None:
    """Raise UploadError unless FFmpeg ended well and said nothing."""
    # FFmpeg catches SIGTERM and ends without a word with 255; a shell around it says 128 + signal.
    if status < 0 or (status > 128 and not text):
        raise UploadError(KILLED, f"status {status}")
    if status or text:
        # The first line has the cause; those that follow say that therefore something else failed.
        line = re.sub(r"^(\[[^]]*\] )+", "", text.partition("\n")[0] or f"status {status}")
        meaning = CONVERSION_FAILED
        if status in (126, 127):  # Of a shell, or of the loader that misses a library.
            meaning = NO_FFMPEG
        elif any(os.strerror(number) in text for number in (errno.ENOSPC, errno.EDQUOT)):
            meaning = NO_SPACE
        elif any(os.strerror(number) in text for number in LIMIT_ERRNOS):
            meaning = NOT_DECODED
        raise UploadError(meaning, line[:200])


# --- 7. Metadata ------------------------------------------------------------------------------

# The placeholder fields of the service's guide, sent where no metadata was given.
PLACEHOLDER_FIELDS = {
    "operator_name": "Operator",
    "operator_id": "1111",
    "client_name": "Client",
    "client_id": "2222",
    "date_from": "2023-09-13T17:30:00.000Z",
    "date_to": "2023-09-13T17:31:00.000Z",
    "direction_outgoing": "true",
    "language": "ru-RU",  # Mandatory since March 2025.
}


def collect_metadata(recording: Recording, args: Namespace, common: TalkMetadata | None) -> None:
    """Set a recording's metadata. Later layers win, field by field; `users` come from one layer.

    1. PLACEHOLDER_FIELDS and the present time, only where neither of the next two is given
    2. common: the fields of --meta-path
    3. the recording's own JSON
    4. its SHA-256 under --lookup-key: filled in by hash_recording, once it is known

    A new source of fields is a new layer here (whether it counts as given, has_placeholders says).
    Its option is in make_parser, and in parse_arguments' list with_audio, as update_talk, for
    --talk-id, has only layer 2. Let parse_arguments check its values (checked_fields), and say with
    parser.error what is wrong: an error here would be said of each recording.
    What is sent differs then, so rejected recordings are sent again; of uploaded ones only a change
    of layer 3 is noticed (MetadataExaminer.has_changed). A layer that a later run may lack needs a
    guard like had_meta_path, as an update erases the keys that it leaves out: a column of
    LEDGER_TABLES, filled in by metadata_columns, looked at in MetadataExaminer.complete_update; and
    a new LEDGER_VERSION. There is no migration: ledgers of other versions are refused, and a new
    ledger uploads everything again.
    """
    recording.metadata = metadata = TalkMetadata()
    recording.has_placeholders = recording.sidecar is None and common is None
    if recording.has_placeholders:
        metadata.fields.update(PLACEHOLDER_FIELDS, date=utc())
    if common is not None:
        metadata.CopyFrom(common)
    if recording.sidecar:
        own, recording.json = read_sidecar(recording.sidecar, args.min_age)
        if own.users:
            metadata.ClearField("users")
        metadata.MergeFrom(own)
    metadata.connection_id = args.connection_id
    if args.lookup_key and args.lookup_key in metadata.fields:
        cause = f"its metadata has the key {quoted(args.lookup_key)}, which --lookup-key fills"
        raise data_error("lookup-key", cause, "remove it there, or name another --lookup-key")


def read_sidecar(path: str, min_age_s: float) -> tuple[TalkMetadata, Json]:
    """Read the JSON beside a recording; raise UploadError, also if it is just being written.

    An empty one may be: while a program truncates it to write it anew, file systems show the new
    size before the new times (measured on ext4 and tmpfs).
    """
    error = None
    try:
        state = FileState.of(path)
        try:
            metadata = read_metadata(path)
        except UploadError as failure:
            error = failure
        # Asked before the file's state, as this process may stand still in between.
        was_young = is_young(state, min_age_s)
        was_changed = FileState.of(path) != state
    except OSError as failure:
        if not os.path.lexists(path):  # It was listed: a program may be replacing it.
            raise json_unfinished_error("its JSON was changed while it was read") from failure
        raise unreadable_error(failure, f"metadata file {path}: ") from failure
    if was_changed or was_young:
        raise json_unfinished_error("its JSON was changed while it was read") from error
    if not state.size_bytes:
        raise json_unfinished_error("its JSON is empty, or is just being written") from error
    if error:
        raise error
    return metadata, Json(state, sha256_of(metadata), list(date_warnings(path, metadata)))


def json_unfinished_error(cause: str) -> UploadError:
    """Return the error for a JSON that another program has not finished, as it seems."""
    return UploadError(Meaning(os.EX_TEMPFAIL, "json-changed", cause, AGAIN))


def sha256_of(metadata: TalkMetadata) -> str:
    """Return the SHA-256 of metadata in hexadecimal."""
    import hashlib

    return hashlib.sha256(metadata.SerializeToString(deterministic=True)).hexdigest()


def read_metadata(path: str) -> TalkMetadata:
    """Read a JSON object of metadata fields, and perhaps `users`; raise UploadError naming it."""
    try:
        if not path.startswith("/dev/fd/"):  # --meta-path <(jq ...)
            FileState.of(path)  # Raises OSError for a FIFO: opening it would wait for a writer.
        with open(path, "rb") as file:
            return parse_metadata(file.read(SMALL_FILE_LIMIT_BYTES + 1))
    except OSError as error:
        raise unreadable_error(error, f"metadata file {path}: ") from error
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else error
        raise data_error("metadata", f"metadata file {path}: {why}", "fix the file") from error


def parse_metadata(content: bytes) -> TalkMetadata:
    """Parse metadata from JSON; raise ValueError with a readable reason."""
    if len(content) > SMALL_FILE_LIMIT_BYTES:
        raise ValueError(f"larger than {SMALL_FILE_LIMIT_BYTES:,} bytes")
    try:
        # Numbers are sent as written: 1.50 stays 1.50.
        text = content.decode("utf-8-sig")
        fields = json.loads(text, parse_int=str, parse_float=str, object_pairs_hook=unique_keys)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError('not a JSON object, {"key": "value", ...}')
    metadata = TalkMetadata()
    if isinstance(fields.get("users"), list):
        for number, user in enumerate(fields.pop("users"), 1):
            try:
                add_user(user, metadata)
            except ValueError as error:
                raise ValueError(f"user {number}: {error}") from None
    metadata.fields.update(checked_fields(fields))
    return metadata


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object; raise ValueError if a key appears twice, as one would be lost."""
    fields: dict[str, Any] = {}
    for key, value in pairs:
        if key in fields:
            raise ValueError(f"key {quoted(key)}: it appears twice")
        fields[key] = value
    return fields


def add_user(user: Any, metadata: TalkMetadata) -> None:
    """Add a participant of the call; raise ValueError with the reason if it is malformed."""
    keys = user.keys() if isinstance(user, dict) else set()
    if not {"id", "role"} <= keys <= {"id", "role", "fields"}:
        raise ValueError("must be an object with id, role and perhaps fields")
    role = str(user["role"]).upper().removeprefix("USER_ROLE_")
    if role not in ("OPERATOR", "CLIENT", "BOT"):
        raise ValueError(f"role {quoted(user['role'])} is not operator, client or bot")
    fields = user.get("fields", {})
    if not isinstance(fields, dict):
        raise ValueError("fields must be an object")
    user_id = checked_fields({"id": user["id"]})["id"]
    metadata.users.add(id=user_id, role=f"USER_ROLE_{role}", fields=checked_fields(fields))


def checked_fields(fields: dict[str, Any]) -> dict[str, str]:
    """Return fields as strings; raise ValueError with key and reason if one is not accepted."""
    checked = {}
    for key, value in fields.items():
        text = str(value).lower() if isinstance(value, bool) else value
        try:
            if not key:
                raise ValueError("the key is empty")
            if not isinstance(text, str):
                raise ValueError(f"{quoted(value)} is not a string, number or boolean")
            # encode() raises a ValueError for half a surrogate pair, too.
            length_bytes = max(len(key.encode()), len(text.encode()))
            if length_bytes > METADATA_VALUE_LIMIT_BYTES:
                limit = f"{METADATA_VALUE_LIMIT_BYTES:,}"
                raise ValueError(f"{length_bytes:,} bytes long; the limit is {limit}")
        except ValueError as error:
            raise ValueError(f"key {quoted(key)}: {error}") from None
        checked[key] = text
    return checked


def quoted(value: object) -> str:
    """Return a value as JSON for a message, shortened, without escapes."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:200]}..."


ISO_DATE = re.compile(
    r"(\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d)?)([.,]\d+)?(Z|[+-]([01]\d|2[0-3])(:?[0-5]\d)?)", re.ASCII
)
DATE_ADVICE = "write it like 2026-01-31T09:30:00+03:00"


def date_warnings(path: str, metadata: TalkMetadata) -> Iterator[str]:
    """Yield a text for each date that the service would misread."""
    for fields in (metadata.fields, *(user.fields for user in metadata.users)):
        for key in filter(lambda key: key.startswith("date"), fields):
            match = ISO_DATE.fullmatch(fields[key])
            with contextlib.suppress(ValueError):  # The 30th of February.
                if match and datetime.datetime.fromisoformat(match[1]).year:
                    continue
            what = f"{quoted(fields[key])} is not an ISO 8601 date with an offset"
            yield f"metadata file {path}: key {quoted(key)}: {what}"


# --- 8. Access: credential, certificates, proxy, channel --------------------------------------

NO_CREDENTIAL_ADVICE = "use --key-file FILE, or export API_KEY or IAM_TOKEN"
# Yandex Cloud documentation, "Getting an IAM token in a VM".
VM_METADATA_ADDRESS = "169.254.169.254"
VM_TOKEN_PATH = "/computeMetadata/v1/instance/service-accounts/default/token"
VM_METADATA_TIMEOUT_S = 3.0
# The documentation asks for a new token at least once an hour; it lives up to 12 hours.
VM_TOKEN_AGE_LIMIT_S = 60 * 60.0
VM_TOKEN_PAUSE_S = 60.0
# Every credential used in this run; none is ever printed or stored.
SECRETS: list[str] = []
# Of the proxy: often ordinary words, so that only what grpc says is searched for them.
PROXY_SECRETS: list[str] = []


def masked(text: str, secrets: Sequence[str] = SECRETS) -> str:
    """Replace secrets in a text."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return text


def read_option_file(option: str, path: str) -> bytes:
    """Read the file that an option names; raise UploadError (EX_CONFIG) if that fails."""
    try:
        with open(path, "rb") as file:
            return file.read(16 * SMALL_FILE_LIMIT_BYTES)
    except (OSError, ValueError) as error:
        # What is no path may be the key itself.
        name = f" {path}" if "/" in path or os.path.lexists(path) else ""
        cause = f"{option}{name} cannot be read: {error_text(error)}"
        raise config_error("option-file", cause, CHECK_PATH) from error


def read_certificates(path: str) -> bytes:
    """Read the certificates to trust; raise UploadError (EX_CONFIG) if they are not PEM."""
    content = read_option_file("--ca-file", path)
    # A mark may also be within, where several files were put into one.
    has_mark = re.search(rb"^\xef\xbb\xbf|\A(\xff\xfe|\xfe\xff)", content, re.M)
    if has_mark or not re.search(rb"^-----BEGIN [A-Z0-9 ]*CERTIFICATE-----", content, re.M):
        advice = "convert it: openssl x509 -inform der; or save it without a byte order mark"
        raise config_error("ca-file", f"--ca-file {path} is not PEM", advice)
    return content


def fetch_vm_token() -> str:
    """Fetch the IAM token of a cloud VM's service account from the VM's metadata service."""
    from http.client import HTTPConnection, HTTPException

    address = os.environ.get("YC_METADATA_ADDR") or VM_METADATA_ADDRESS
    try:
        # By no proxy: the service is on this machine, and a proxy could only leak the token.
        connection = HTTPConnection(address, timeout=VM_METADATA_TIMEOUT_S)
        with contextlib.closing(connection):
            connection.request("GET", VM_TOKEN_PATH, headers={"Metadata-Flavor": "Google"})
            response = connection.getresponse()
            if response.status != 200:
                raise HTTPException(f"HTTP status {response.status} {response.reason}".strip())
            return "".join(json.loads(response.read(SMALL_FILE_LIMIT_BYTES))["access_token"])
    except (OSError, HTTPException, ValueError, LookupError, TypeError, RecursionError) as error:
        cause = f"no token from the VM's metadata service at {address}: {error_text(error)}"
        advice = "--key-type vm is for a cloud VM with a service account"
        raise config_error("vm-token", cause, advice) from error


def authorization(args: Namespace) -> str:
    """Return the authorization header for the first credential given; raise UploadError."""
    key_type = args.key_type
    if key_type == "vm":
        source, text = "the VM's metadata service", fetch_vm_token()
    elif args.key is not None:
        source, text = "--key", args.key
    elif args.key_file is not None:
        source = f"--key-file {args.key_file}"
        text = read_option_file("--key-file", args.key_file).decode(errors="replace")
    elif text := os.environ.get("API_KEY", "").strip():
        source = "API_KEY"
    else:
        source, text, key_type = "IAM_TOKEN", os.environ.get("IAM_TOKEN", ""), "iam-token"
    key = text.strip().lstrip("\ufeff").strip()
    if not key:
        cause = "no API key and no IAM token" if source == "IAM_TOKEN" else f"{source} is empty"
        raise config_error("no-credential", cause, NO_CREDENTIAL_ADVICE)
    # RFC 6750, section 2.1: what a token may consist of. grpc would only say "Invalid metadata".
    if not re.fullmatch(r"[A-Za-z0-9._~+/-]+=*", key):
        cause = f"the credential in {source} has a quote, a space or another character of no key"
        advice = "copy the key again, without anything around it"
        raise config_error("bad-credential", cause, advice)
    SECRETS.append(key)
    is_token = key.startswith("t1.") if key_type == "auto" else key_type != "api-key"
    return f"{'Bearer' if is_token else 'Api-Key'} {key}"


def find_proxy(host: str, port: str) -> str:
    """Return the URL of the proxy to a host by curl's rules, "" for none; raise UploadError.

    https_proxy counts, then all_proxy, unless no_proxy has the host; also in capitals. gRPC has
    rules of its own, so it is told the result, and its variables are taken away.
    """
    names = [name for name in os.environ if name.lower().endswith("_proxy")]
    if not names:
        return ""
    import urllib.request

    proxies = urllib.request.getproxies_environment()
    # Documented with it, but unknown to the type stubs.
    bypasses = vars(urllib.request)["proxy_bypass_environment"]
    proxies["no"] = ",".join(proxies.get("no", "").replace(",", " ").split())
    is_bypassed = bypasses(host, proxies) or bypasses(f"{host}:{port}", proxies)
    for name in names:
        del os.environ[name]
    url = proxies.get("https") or proxies.get("all") or ""
    if is_bypassed or not url:
        return ""
    url = url if "://" in url else f"http://{url}"
    # The URL is not shown, as it may contain a password.
    match = re.fullmatch(r"http://(?:([^/@:?#\s]*)(?::([^/@?#\s]*))?@)?([^/@?#\s]+:\d+)/?", url)
    if not match:
        cause = "gRPC cannot use the proxy in https_proxy or all_proxy"
        form = "http://HOST:PORT or http://USER:PASSWORD@HOST:PORT"
        raise config_error("proxy-url", cause, f"write {form}, with %23 for # and the like")
    if match[2]:
        from urllib.parse import unquote

        words = {match[2], unquote(match[2])}
        # Longest first, as one may be part of another.
        pairs = {f"{match[1]}:{word}" for word in words}
        PROXY_SECRETS[:] = sorted(pairs | words, key=len, reverse=True)
    return url


class Access:
    """Settings that every connection needs; raises UploadError (EX_CONFIG) for bad ones."""

    def __init__(self, args: Namespace) -> None:
        match = re.fullmatch(r"([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(?::(\d{1,5}))?", args.endpoint)
        if not match or not 0 < int(match[2] or 443) < 65_536:
            cause = f"bad endpoint {args.endpoint!r}"
            raise config_error("endpoint", cause, f"write HOST:PORT, such as {ENDPOINT}")
        self.endpoint = f"{match[1]}:{match[2] or 443}"
        # None: the certificates bundled with grpc.
        self._roots = read_certificates(args.ca_file) if args.ca_file else None
        proxy = find_proxy(match[1].strip("[]"), match[2] or "443")
        self._proxy_option = ("grpc.http_proxy", proxy) if proxy else ("grpc.enable_http_proxy", 0)
        self._args = args
        self._authorization = authorization(args)
        self._fetched_s = time.monotonic()
        self._numbers = itertools.count(round(args.timeout * 1000))

    def header(self) -> tuple[str, str]:
        """Return the authorization header, with a VM's token fetched anew each hour.

        Any other credential is read once: if it expires, BAD_KEY ends the run with 77, what is
        under way may end, and a later run sends the rest.
        """
        age_s = time.monotonic() - self._fetched_s
        if self._args.key_type == "vm" and age_s > VM_TOKEN_AGE_LIMIT_S:
            try:
                self._authorization = authorization(self._args)
                self._fetched_s = time.monotonic()
            except UploadError as error:
                log.info(f"the old token is used on: {error}")
                self._fetched_s = time.monotonic() - VM_TOKEN_AGE_LIMIT_S + VM_TOKEN_PAUSE_S
        return "authorization", self._authorization

    def open_channel(self, endpoint: str) -> tuple[grpc.Channel, int]:
        """Create a TLS channel, which connects at its first call; return it and its user timeout.

        The timeouts differ by a millisecond, which identifies each channel's socket; see
        unacknowledged_bytes.
        """
        user_timeout_ms = next(self._numbers)
        options = (
            ("grpc.primary_user_agent", f"upload_grpc/{__version__}"),
            # grpc's own retries could send a recording twice without our knowledge.
            ("grpc.enable_retries", 0),
            # TCP_USER_TIMEOUT: the kernel ends a connection whose peer stops acknowledging. grpc
            # sets it only with keepalive (gRFC A18); servers may take its pings for abuse, so the
            # first one is due in 24 days.
            ("grpc.keepalive_time_ms", 2**31 - 2),
            ("grpc.keepalive_timeout_ms", user_timeout_ms),
            self._proxy_option,
            # A response of Get holds all analyses of up to 100 dialogs.
            ("grpc.max_receive_message_length", 64 * 1024 * 1024),
        )
        credentials = grpc.ssl_channel_credentials(root_certificates=self._roots)
        return grpc.secure_channel(endpoint, credentials, options), user_timeout_ms


def unacknowledged_bytes(user_timeout_ms: int) -> int:
    """Return how many bytes the kernel has not yet delivered on one channel's connection.

    grpc counts a chunk as sent once the kernel has it, and the kernel buffers several MB: only this
    tells a slow line from a silent service. Linux only (TIOCOUTQ, tcp(7)); 0 elsewhere.
    """
    import termios

    held_bytes = 0
    with contextlib.suppress(OSError):  # No /proc.
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):  # No socket, or closed meanwhile.
                connection = socket.socket(fileno=int(name))
                try:
                    option = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
                    if option == user_timeout_ms:
                        held = fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4))
                        held_bytes += struct.unpack("=i", held)[0]
                finally:
                    connection.detach()  # It is grpc's, and stays open.
    return held_bytes


# --- 9. One call: the requests, and the commit point ------------------------------------------


def read_chunks(path: str, size_bytes: int, converted: BinaryIO | None = None) -> Iterator[bytes]:
    """Yield a file, or what it was converted to, in chunks; raise UploadError if it cannot."""
    try:
        if converted:
            position = 0
            while data := os.pread(converted.fileno(), size_bytes, position):
                position += len(data)
                yield data
            return
        with open(path, "rb") as audio:
            while data := audio.read(size_bytes):
                yield data
    except OSError as error:
        what = f"became unreadable ({error_text(error)})"
        raise limit_error(error) or file_changed_error(what) from error


def hash_file(path: str, at_chunk: Callable[[], None]) -> str:
    """Return the SHA-256 of a file in hexadecimal; raise UploadError, or what at_chunk raises."""
    import hashlib

    digest = hashlib.sha256()
    for data in read_chunks(path, SMALL_FILE_LIMIT_BYTES):
        at_chunk()
        digest.update(data)
    return digest.hexdigest()


class Phase(enum.Enum):
    """Where a call stands; changed only by Transfer.commit and Call.cancel, under one lock.

    OPEN -> COMMITTED: the service may have the whole recording from now on
    OPEN -> CANCELLED: it never can, because the half-close that ends a stream will not be sent
    """

    OPEN = "open"
    COMMITTED = "committed"
    CANCELLED = "cancelled"


class StallWatch:
    """What counts as progress of a call: a chunk that gRPC took, or bytes in the kernel's buffer.

    gRPC's deadline covers a whole call, and would cut off a slow but steady upload; servers may
    take keepalive pings for abuse. While the kernel has bytes to deliver, TCP_USER_TIMEOUT watches
    the connection instead. Time in which this process waited for its own ledger, or did not run
    (SIGSTOP, a suspended machine), is not counted.
    """

    def __init__(self, limit_s: float, user_timeout_ms: int) -> None:
        self.limit_s = limit_s
        self.interval_s = limit_s / 4  # How often has_stalled is called.
        self.is_writing_ledger = False
        self._user_timeout_ms = user_timeout_ms
        self._moved_s = self._looked_s = time.monotonic()

    def moved(self) -> None:
        """Note progress."""
        self._moved_s = time.monotonic()

    def idle_s(self) -> float:
        """Return how long nothing has moved."""
        return time.monotonic() - self._moved_s

    def has_stalled(self) -> bool:
        """Return whether nothing has moved for limit_s."""
        now_s = time.monotonic()
        late_s = now_s - self._looked_s - self.interval_s
        self._looked_s = now_s
        if late_s > 1:
            self._moved_s += late_s
        if self.is_writing_ledger or unacknowledged_bytes(self._user_timeout_ms):
            self.moved()
        return self.idle_s() >= self.limit_s


def random_uuid() -> str:
    """Return a random UUID (RFC 9562, version 4); importing the module uuid takes 2 ms."""
    digits = os.urandom(16).hex()
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"


class Call:
    """One call, shared by the thread that may read a file for it and the one that waits."""

    def __init__(self, watch: StallWatch) -> None:
        self.request_id = random_uuid()
        self.watch = watch
        self.grpc_call: Any = None
        self.phase = Phase.OPEN
        self.has_connected = False  # grpc has sent something of a stream.
        self.error: Exception | None = None  # Why the requests ended before the commit point.
        self.advice: dict[str, str] = {}  # By Meaning.id, where something else helps here.
        self._lock = threading.Lock()

    def cancel(self, unless_committed: bool = False) -> None:
        """Cancel the call and bar the commit point; unless_committed: not if it was passed."""
        with self._lock:
            if self.phase is Phase.OPEN:
                self.phase = Phase.CANCELLED
            elif self.phase is Phase.COMMITTED and unless_committed:
                return
        if self.grpc_call:
            self.grpc_call.cancel()

    def is_due(self) -> bool:
        """Return whether the response to a whole recording is still expected."""
        return self.phase is Phase.COMMITTED and not (self.grpc_call and self.grpc_call.done())

    def ids(self) -> str:
        """Return the IDs that the service's support asks for: ours, and in the end its own."""
        ids = f"request {self.request_id}"
        if not (self.grpc_call and self.grpc_call.done()):
            return ids
        metadata = (self.grpc_call.initial_metadata(), self.grpc_call.trailing_metadata())
        pairs = itertools.chain.from_iterable(filter(None, metadata))
        names = ("x-request-id", "x-server-trace-id")
        return ids + masked("".join(f", {key} {value!s}" for key, value in pairs if key in names))


def check_unchanged(recording: Recording, moved: Callable[[], None]) -> None:
    """Raise UploadError unless a recording's file is still the one that was checked.

    One that is still being written waits (--min-age), or its header shows it (65), or it changes
    after it was hashed (Examiner._check_audio), during its conversion (Worker._convert), or before
    the commit point: 75. What is written after the upload makes it another call.

    moved: called now and then, where that takes long.
    """
    before = recording.file_state
    try:
        # Of the path: another file may have replaced ours while we had it open.
        present = FileState.of(recording.path)
        # Perhaps only the ctime is new (chmod, a backup's hard link), not the content.
        if present != before and present[:2] == before[:2] and recording.sha256:
            is_same = hash_file(recording.path, moved) == recording.sha256
            if is_same and FileState.of(recording.path) == present:
                recording.file_state = present
    except OSError as error:
        raise file_changed_error(f"became unreadable ({error_text(error)})") from error
    if present != recording.file_state:
        raise file_changed_error("changed or was replaced while it was being uploaded")


class Transfer(Call):
    """The call that sends a recording."""

    def __init__(
        self,
        recording: Recording,
        audio: audio_pb2.AudioMetadata,
        watch: StallWatch,
        ledger: Ledger | None = None,
        refusal_wait_s: float = 0.0,
    ) -> None:
        super().__init__(watch)
        self.handed_over_bytes = 0  # Audio that grpc has taken.
        self._recording = recording
        self._audio = audio
        self._ledger = ledger
        self._refusal_wait_s = refusal_wait_s

    def upload_audio_requests_iterator(self) -> Iterator[talk_service_pb2.StreamTalkRequest]:
        """Yield the requests of one stream: metadata, audio format, audio chunks.

        If the file changed meanwhile this must raise UploadError, so that grpc cancels the call: a
        normal end would create a truncated dialog.
        """
        try:
            yield talk_service_pb2.StreamTalkRequest(metadata=self._recording.metadata)
            self.has_connected = True
            audio = audio_pb2.AudioStreamingRequest(audio_metadata=self._audio)
            yield talk_service_pb2.StreamTalkRequest(audio=audio)
            for data in self._chunks(CHUNK_SIZE_BYTES):
                audio = audio_pb2.AudioStreamingRequest(chunk=audio_pb2.AudioChunk(data=data))
                yield talk_service_pb2.StreamTalkRequest(audio=audio)
        except grpc.FutureCancelledError:
            raise
        except Exception as error:
            self.error = error  # grpc only says "Exception iterating requests!".
            raise

    def message(self) -> talk_service_pb2.UploadTalkRequest:
        """Build the single message, and pass the commit point before it is sent.

        Once its call has begun, nobody can tell how much of it has arrived.
        """
        data = b"".join(self._chunks(SINGLE_MESSAGE_LIMIT_BYTES))
        chunk = audio_pb2.AudioChunk(data=data)
        audio = audio_pb2.AudioRequest(audio_metadata=self._audio, audio_data=chunk)
        return talk_service_pb2.UploadTalkRequest(metadata=self._recording.metadata, audio=audio)

    @property
    def done_bytes(self) -> int:
        """How much of the recording's own file is done: what is sent may be converted."""
        own_bytes = self._recording.file_state.size_bytes
        return self.handed_over_bytes * own_bytes // (self._recording.sent_bytes or 1)

    def _chunks(self, size_bytes: int) -> Iterator[bytes]:
        converted = self._recording.converted
        for data in read_chunks(self._recording.path, size_bytes, converted and converted.file):
            yield data
            # grpc asks for the next chunk when it has sent this one.
            self.handed_over_bytes += len(data)
            self.watch.moved()
        self.commit()

    def commit(self) -> None:
        """Pass the commit point; raise UploadError unless every byte of an unchanged file was sent.

        Without this check, a file that shrank would become a truncated, and successful, dialog.
        """
        check_unchanged(self._recording, self.watch.moved)
        if self.handed_over_bytes != self._recording.sent_bytes:
            raise file_changed_error("changed while it was being uploaded")
        # A service that refuses every call does so just after the last byte of a short recording.
        until_s = time.monotonic() + self._refusal_wait_s
        self._check_call()
        while time.monotonic() < until_s:
            time.sleep(0.005)
            self._check_call()
        # On disk first: a crash between the two leaves "finishing" for a recording that was not
        # sent, which a person can resolve. In the other order it would leave "sending" for one that
        # was, and the next run would create a second dialog.
        if self._ledger:
            self.watch.is_writing_ledger = True
            self._ledger.record_commit_point(self._recording, self.request_id)
            self.watch.is_writing_ledger = False
        with self._lock:
            # The call may have been cancelled while the disk was writing.
            self._check_call()
            self.watch.moved()
            self.phase = Phase.COMMITTED

    def _check_call(self) -> None:
        if self.phase is Phase.CANCELLED or (self.grpc_call and self.grpc_call.done()):
            raise grpc.FutureCancelledError


# --- 10. The circuit breaker and the uploader -------------------------------------------------

SAME_FOR_ALL = "stopped, because every other recording would meet the same error"


class CircuitBreaker:
    """Decides whether workers may begin another recording; one for the whole run.

    Tally records each result after its last attempt; an upload whose split is waited for counts
    before the wait. A failure is one whose error is_outage (NO_CONNECTION, QUOTA, FAILED, UNKNOWN;
    not what was cancelled or is unknown from an earlier run); uploads reset the count, everything
    else leaves it. What stops_run ends the run at once, as do the ledger's errors and a stdout that
    cannot be written. What was uploaded before has a breaker of its own (Tally.updates_breaker),
    which ends only updates.

    closed     recordings are sent by all workers; FAILURES_LIMIT failures of the service or the
               network in a row end the run
    half open  after such a failure, and from the start if the last run ended so: one recording at
               a time, until one is uploaded. FAILURES_LIMIT_HALF_OPEN failures end a run that began
               so, and what failed before goes last in it
    """

    def __init__(self, half_open: bool = False) -> None:
        self.stopping = threading.Event()
        self.cause = ""  # Why the run was stopped.
        self.half_open = self._began_half_open = half_open
        self._failures = 0
        self._resume_s = 0.0

    def stop(self, cause: str) -> None:
        """Begin nothing more; calls under way may end, but are not retried."""
        self.cause = self.cause or cause
        self.stopping.set()

    def pause(self, delay_s: float) -> None:
        """Begin no recording for a while: nothing connects, or the quota is used up."""
        self._resume_s = max(self._resume_s, time.monotonic() + delay_s)

    def may_begin(self, is_first: bool) -> bool:
        """Return whether a recording may begin now; is_first: no other is being sent."""
        return (is_first or not self.half_open) and time.monotonic() >= self._resume_s

    def record(self, result: Result) -> None:
        """Stop the run if a result shows an outage, or an error that all would meet."""
        error = result.error
        has_worked = result.outcome in (Outcome.UPLOADED, Outcome.UPDATED)
        if has_worked and not result.found_id:
            self._failures = 0
            self.half_open = self._began_half_open = False
        elif error and error.meaning.is_outage:
            self._failures += 1
            self.half_open = True
            limit = FAILURES_LIMIT_HALF_OPEN if self._began_half_open else FAILURES_LIMIT
            if self._failures >= limit:
                self.stop(f"{self._failures} recordings in a row were not delivered; {AGAIN} later")
        if error and error.meaning.stops_run:
            self.stop(SAME_FOR_ALL)


class Uploader:
    """One worker's connection to the service: its own channel, replaced after a failed call."""

    def __init__(self, args: Namespace, access: Access, breaker: CircuitBreaker) -> None:
        self._args = args
        self._access = access
        self._breaker = breaker
        self._stopping = self._breaker.stopping
        self._endpoint = access.endpoint
        self._channel: grpc.Channel | None = None
        self._user_timeout_ms = 0
        self._wait_error: UploadError | None = None
        self._failed_waits = 0  # In a row.

    def upload_talk(self, recording: Recording, ledger: Ledger | None = None) -> Result:
        """Send a recording; retry only if that cannot create a second dialog; raise UploadError."""
        single, split = self._args.single_message, self._args.split
        method = "Upload" if single else "UploadBadge" if split else "UploadAsStream"
        read = recording.converted.audio if recording.converted else recording.audio
        assert read is not None
        audio = audio_message(read, self._args)

        def attempt() -> Result:
            recording.attempts += 1
            if single:
                self._connect(recording)
            may_wait = self._breaker.half_open and not single
            wait_s = min(REFUSAL_WAIT_S, self._args.timeout / 2) if may_wait else 0.0
            transfer = Transfer(recording, audio, self._watch(), ledger, wait_s)
            transfer.advice = upload_advice(recording, self._args)
            if ledger:
                ledger.update(recording, state="sending", request_id=transfer.request_id)
            recording.call = transfer
            build = transfer.message if single else transfer.upload_audio_requests_iterator
            return result_of_response(self._call(transfer, method, build, recording.path), transfer)

        result: Result = self._retrying(recording.path, attempt)
        recording.received = result
        return result

    def ask(self, what: str, method: str, request: Any, timeout_s: float = math.inf) -> Any:
        """Make one call that sends no audio; return its response, or raise UploadError."""
        return self._call(Call(self._watch(timeout_s)), method, lambda: request, what)

    def update_talk(self, recording: Recording, request: Any) -> Result:
        """Send new metadata for a dialog; raise UploadError.

        Repeating it is safe: the same update twice creates no second dialog.
        """

        def attempt() -> None:
            recording.attempts += 1
            recording.call = call = Call(self._watch())
            self._call(call, "Upload", lambda: request, recording.path)

        self._retrying(recording.path, attempt)
        return Result(Outcome.UPDATED, (request.talk_id,))

    def follow(self, recording: Recording, result: Result, has_ledger: bool) -> Result:
        """Wait until a recording has been split; return the result with its dialogs' IDs.

        Not if operations cannot be reached, as two waits in a row have found.
        """
        if self._wait_error and self._failed_waits >= FAILURES_LIMIT_HALF_OPEN:
            return result._replace(error=self._wait_error)
        if self._endpoint == ENDPOINT:
            self._move_to(OPERATIONS_ENDPOINT)
        try:
            operation = self._finished_operation(recording.path, result.operation_id)
            self._failed_waits = 0
            return result_of_operation(result, operation)
        except UploadError as error:
            # Uploads may work all the same, unless the credential is refused.
            cause = f"uploaded, but not yet split: {error.meaning.cause}"
            meaning, stops_run = error.meaning, error.meaning.exit_code == os.EX_NOPERM
            meaning = meaning._replace(cause=cause, is_outage=False, stops_run=stops_run)
            if meaning.id in ("not-known", "no-method"):
                meaning = meaning._replace(exit_code=os.EX_DATAERR, advice=LOOK_FOR_IT)
            elif meaning.exit_code == os.EX_TEMPFAIL and not has_ledger:
                # Running this again would upload it twice.
                meaning = meaning._replace(exit_code=os.EX_PROTOCOL, advice=LOOK_FOR_IT)
            self._failed_waits = self._failed_waits + 1 if error.meaning.is_outage else 0
            self._wait_error = UploadError(meaning)
            return result._replace(error=UploadError(meaning, error.details))
        finally:
            self._move_to(self._access.endpoint)

    def close(self) -> None:
        """Close the channel."""
        if self._channel:
            # In a thread: if the connection froze, close() may wait forever for a pending write.
            # Left to the garbage collector, hundreds of connections could stay open.
            threading.Thread(target=self._channel.close, daemon=True).start()
            self._channel = None

    def _move_to(self, endpoint: str) -> None:
        if endpoint != self._endpoint:
            self.close()
            self._endpoint = endpoint

    def _finished_operation(self, path: str, operation_id: str) -> Any:
        """Poll an operation until it is done, for WAIT_LIMIT_S; raise UploadError."""
        from yandex.cloud.operation import operation_service_pb2

        request = operation_service_pb2.GetOperationRequest(operation_id=operation_id)
        until_s, pause_s = time.monotonic() + WAIT_LIMIT_S, POLL_S
        while True:
            operation = self._retrying(path, lambda: self.ask(path, "GetOperation", request))
            if operation.done:
                return operation
            if time.monotonic() + pause_s > until_s:
                hours = f"{WAIT_LIMIT_S / 3600:g}"
                cause = f"operation {operation_id} is not done after {hours} hours"
                raise UploadError(Meaning(os.EX_TEMPFAIL, "not-done", cause, AGAIN))
            if self._stopping.wait(pause_s):
                raise stopped_error()
            pause_s = min(pause_s * 1.5, POLL_LIMIT_S)

    def _retrying(self, what: str, attempt: Callable[[], Any]) -> Any:
        """Call attempt until it succeeds, or fails for good; return what it returns.

        Only this sends a file a second time within a run, and only if the error's meaning has
        may_retry, which the table of section 3 gives only where no dialog can have been created.
        (A copy of what failed so is sent, too, when all else is done: Examiner._claim_or_leave.)
        """
        waited_s = 0.0
        number = 0
        while True:
            number += 1
            try:
                return attempt()
            except CallError as error:
                import random

                # Full jitter, so that clients that failed together do not retry together.
                delay_s = random.uniform(0, min(BACKOFF_LIMIT_S, BACKOFF_S * 2.0**number))
                waited_s += error.idle_s + delay_s
                is_last = number > self._args.retries or waited_s > ATTEMPTS_LIMIT_S
                if not error.meaning.may_retry or is_last or self._stopping.is_set():
                    raise
                if error.meaning.pauses_run:
                    self._breaker.pause(delay_s)
                log.info(f"{what}: {error.error_text}; next attempt in {delay_s:.1f} s")
                if self._stopping.wait(delay_s):
                    raise

    def _connect(self, recording: Recording) -> None:
        """Make sure that there is a connection before a single message is sent.

        Otherwise a message that was never sent would count as unknown. A response to a health
        check (grpc.health.v1), even UNIMPLEMENTED, shows a connection; UNAVAILABLE, and other
        errors that may pass, do not.
        """
        recording.call = call = Call(self._watch())  # A signal cancels it, too.
        try:
            self._call(call, "Check", lambda: b"", "health check")
        except CallError as error:
            if error.meaning.may_retry or error.status == "UNAVAILABLE":
                raise

    def _watch(self, limit_s: float = math.inf) -> StallWatch:
        """Return a watch for a call on the present channel, or on a new one.

        limit_s: of a small call, of which bytes that the kernel holds are no progress.
        """
        if self._channel is None:
            self._channel, self._user_timeout_ms = self._access.open_channel(self._endpoint)
        if limit_s < self._args.timeout:
            return StallWatch(limit_s, -1)  # No socket has this user timeout.
        return StallWatch(self._args.timeout, self._user_timeout_ms)

    def _call(self, call: Call, method: str, requests: Callable[[], Any], what: str) -> Any:
        """Make one call; return its response, or raise the UploadError that its end means."""
        if self._stopping.is_set():
            raise stopped_error()
        headers = (self._access.header(), ("x-client-request-id", call.request_id))
        log.debug(f"{what}: calling {method} (request {call.request_id})")
        try:
            call.grpc_call = self._method(method).future(requests(), metadata=headers)
            # A signal may have come when there was no call to cancel yet.
            if self._stopping.is_set():
                call.cancel(unless_committed=True)
            return self._response(call)
        except (grpc.RpcError, grpc.FutureCancelledError, grpc.FutureTimeoutError) as error:
            # First: now the reading thread can no longer pass the commit point, so that the phase,
            # by which call_error tells unsent from unknown, is final.
            call.cancel()
            if call.error is not None:
                raise call.error from None
            failure = call_error(error, call)
            if failure.meaning.is_outage:
                self.close()
            raise failure from error
        finally:
            call.cancel()

    def _method(self, name: str) -> Any:
        """Return the callable for a method on the present channel."""
        assert self._channel is not None
        if name == "Check":
            return self._channel.unary_unary("/grpc.health.v1.Health/Check")
        if name == "GetOperation":
            from yandex.cloud.operation import operation_service_pb2_grpc

            return operation_service_pb2_grpc.OperationServiceStub(self._channel).Get
        return getattr(talk_service_pb2_grpc.TalkServiceStub(self._channel), name)

    def _response(self, call: Call) -> Any:
        """Wait for the response; cancel the call and raise FutureTimeoutError if nothing moves."""
        while True:
            with contextlib.suppress(grpc.FutureTimeoutError):
                return call.grpc_call.result(timeout=call.watch.interval_s)
            # cancel() is False if the response has come meanwhile: then the loop takes it.
            if call.watch.has_stalled() and call.grpc_call.cancel():
                raise grpc.FutureTimeoutError(f"no progress for {call.watch.limit_s:g} s")


def upload_advice(recording: Recording, args: Namespace) -> dict[str, str]:
    """Return what helps after an upload has failed, by Meaning.id: only what would help here."""
    assert recording.metadata is not None
    fields = recording.metadata.fields
    operator = f" and operator, {fields['operator_name']}" if "operator_name" in fields else ""
    where = look_for_it(args.lookup_key, recording.sha256, recorded_at(recording), operator)
    again = retry_unknown(args.lookup_key) if args.ledger else "upload it again"
    advice = {
        UNKNOWN.id: f"{where}; if it is not there, {again}",
        EXISTS.id: where,
        NOT_KNOWN.id: "check --connection-id",
    }
    if not args.single_message:
        advice[TOO_LARGE.id] = "raise the limit of the proxy or gateway in between"
    return advice


def look_for_it(lookup_key: str | None, sha256: str, time_text: str, operator: str = "") -> str:
    """Say by what to look for a dialog; time_text: when the call was recorded."""
    if lookup_key:
        return f"{LOOK_FOR_IT} by {lookup_key} = {sha256}"
    return f"{LOOK_FOR_IT} by its time{operator}: {local_time(time_text)}"


def retry_unknown(lookup_key: str | None) -> str:
    """Say how an unknown recording is uploaded again; with a key only what is proved missing is."""
    return f"--retry-unknown{' without --lookup-key' if lookup_key else ''} uploads it again"


# --- 11. The ledger ---------------------------------------------------------------------------

Row = Any  # sqlite3.Row, of the table recordings.

LEDGER_APPLICATION_ID = 0x53534C47
LEDGER_VERSION = 3
# How long to wait for another program that has locked the file.
LEDGER_LOCK_LIMIT_S = 60.0
SPOOL_LIMIT_BYTES = 64_000_000  # Of a report's lines in memory; more go to a temporary file.
# More gain nothing.
ROWS_AT_A_TIME = 100
LEDGER_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
# Times are ISO 8601 in UTC, those of files nanoseconds since 1970.
LEDGER_TABLES = (
    # First what each run looks at of each recording, as sqlite3.Row goes through the names.
    """CREATE TABLE recordings (
    connection_id   TEXT    NOT NULL,
    sha256          TEXT    NOT NULL,
    state           TEXT    NOT NULL CHECK (state IN
        ('sending', 'finishing', 'uploaded', 'unknown', 'failed', 'rejected')),
    stem            TEXT    NOT NULL,  -- The absolute path without its suffix,
    suffix          TEXT    NOT NULL,  -- and the suffix, such as .wav.
    path            TEXT    GENERATED ALWAYS AS (stem || suffix) VIRTUAL,
    size_bytes      INTEGER NOT NULL,
    mtime_ns        INTEGER NOT NULL,
    ctime_ns        INTEGER NOT NULL,
    talk_id         TEXT,              -- As Upload returned it.
    found_id        TEXT,              -- As a lookup in the service found it.
    badge_id        TEXT,
    operation_id    TEXT,
    json_size_bytes INTEGER,           -- Of the JSON beside it; NULL if there was none.
    json_mtime_ns   INTEGER,
    json_ctime_ns   INTEGER,
    json_sha256     TEXT,              -- Of its fields.
    json_refused    TEXT,              -- Of the fields that the service refused as an update.
    had_meta_path   INTEGER NOT NULL DEFAULT 0,
    metadata_sha256 TEXT    NOT NULL,  -- Of the metadata sent.
    recorded_at     TEXT    NOT NULL,  -- The metadata's date, else the file's mtime.
    request_id      TEXT,
    attempts        INTEGER NOT NULL DEFAULT 0,
    error           TEXT,
    sequence        INTEGER,           -- Counts commit points: later is larger, whatever the clock.
    lookup_key      TEXT,              -- The metadata key under which the service has the SHA-256.
    looked_up_at    TEXT,
    is_missing      INTEGER NOT NULL DEFAULT 0,  -- A lookup has proved that there is no dialog.
    split           INTEGER NOT NULL DEFAULT 0,
    duration_s      REAL,              -- Of what was left out once it was converted: too short.
    sent_at         TEXT,              -- The commit point.
    uploaded_at     TEXT,
    updated_at      TEXT    NOT NULL,
    PRIMARY KEY (connection_id, sha256)
) WITHOUT ROWID""",
    "CREATE INDEX recordings_by_stem ON recordings (connection_id, stem, suffix)",
    "CREATE INDEX recordings_by_sequence ON recordings (connection_id, sequence)",
    "CREATE INDEX recordings_not_uploaded ON recordings (state) WHERE state <> 'uploaded'",
    """CREATE TABLE problems (
    connection_id TEXT    NOT NULL,
    path          TEXT    NOT NULL,    -- Empty: of the run.
    exit_code     INTEGER NOT NULL,    -- 0: a warning, or what waits.
    cause         TEXT    NOT NULL,    -- Identifies it; the text may differ each time.
    text          TEXT    NOT NULL,
    size_bytes    INTEGER,             -- The file's state.
    mtime_ns      INTEGER,
    ctime_ns      INTEGER,
    since         TEXT    NOT NULL,
    seen_at       TEXT    NOT NULL,    -- By the latest run that met it.
    said_at       TEXT,                -- By a run with --quiet; NULL: not yet.
    PRIMARY KEY (connection_id, path, exit_code, cause)
) WITHOUT ROWID""",
    """CREATE TABLE runs (
    id            INTEGER PRIMARY KEY,
    connection_id TEXT    NOT NULL,
    endpoint      TEXT    NOT NULL,
    quiet         INTEGER NOT NULL,
    began_at      TEXT    NOT NULL,
    ended_at      TEXT,                -- NULL: under way, or killed.
    folders       TEXT    NOT NULL,    -- A JSON list of the absolute paths given.
    looked_at_all INTEGER NOT NULL DEFAULT 0,
    found         INTEGER NOT NULL DEFAULT 0,
    uploaded      INTEGER NOT NULL DEFAULT 0,
    left_out      TEXT,                -- A JSON object: number by reason.
    not_tried     INTEGER NOT NULL DEFAULT 0,
    exit_code     INTEGER,
    half_open     INTEGER NOT NULL DEFAULT 0
)""",
)
# Of a row of recordings: left out by --min-duration, once it was converted.
TOO_SHORT = "(state = 'failed' AND duration_s IS NOT NULL)"

# The outcomes in the order of the report's columns, each with its words.
OUTCOMES = {
    "uploaded": "uploaded",
    "failed": "failed",
    "rejected": "rejected",
    "unknown": "unknown",
    "no-metadata": "without metadata",
    "lost": "lost",
    "sending": "being uploaded",
}
DAY_COLUMNS = tuple(words.replace(" ", "_") for words in OUTCOMES.values())

# Of the view calls: the day of a call, and how many have each outcome.
LOCAL_DAY = "date(recorded_at, 'localtime')"
COUNTS = ", ".join(
    f"sum(outcome = '{outcome}') AS {column}"
    for outcome, column in zip(OUTCOMES, DAY_COLUMNS, strict=True)
)

# The rows r of recordings with the path of the row p of problem_parts. By its two possible stems,
# as the index is one of stems; a path itself is in no index.
SAME_PATH = """recordings r INDEXED BY recordings_by_stem
    WHERE r.connection_id = p.connection_id AND r.stem IN (p.path, p.before_dot)
    AND r.path = p.path"""

# For people, `sqlite3 -csv`, pandas and dashboards: calls, days and attention; the first two here
# are their first steps. Times are the ledger's (UTC), days those of the zone of whoever asks.
LEDGER_VIEWS = {
    # A row: a recording with a row in recordings, and what has become of it.
    "recording_outcomes": f"""
SELECT *, CASE
    -- It may be under way: the latest run has no end, and the row was written within a day.
    WHEN state IN ('sending', 'finishing')
        AND updated_at > strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-1 day')
        AND (SELECT ended_at IS NULL FROM runs ORDER BY id DESC LIMIT 1)
        THEN 'sending'
    -- What a killed run leaves, as in recover_killed_run.
    WHEN state = 'finishing' THEN 'unknown'
    WHEN state IN ('uploaded', 'unknown') THEN state
    -- Not uploaded. If it is gone, or waits for its JSON, no run will upload it; else as it was.
    ELSE coalesce(
        (SELECT cause FROM problems p
         WHERE p.connection_id = r.connection_id AND p.path = r.path
         AND p.cause IN ('lost', 'no-metadata')),
        CASE state WHEN 'rejected' THEN state ELSE 'failed' END)
    END AS outcome
FROM recordings r WHERE NOT {TOO_SHORT}
-- Nor what a call's file held before it was repaired, converted or complete, and then sent.
AND (state NOT IN ('failed', 'rejected', 'unknown') OR NOT EXISTS (
    SELECT 1 FROM recordings u INDEXED BY recordings_by_stem
    WHERE u.connection_id = r.connection_id AND u.stem = r.stem
    AND u.state IN ('uploaded', 'unknown') AND coalesce(u.uploaded_at, u.updated_at) > r.updated_at
    -- An unknown one of the same name is another call, or was sent again by --retry-unknown.
    AND ('unknown' NOT IN (r.state, u.state) OR u.suffix <> r.suffix)
    -- Other endings tell calls apart, as in find_files: rec.103000 and rec.104500.
    AND (u.suffix = r.suffix
         OR lower(u.suffix) IN {SUFFIXES} AND lower(r.suffix) IN {SUFFIXES})))""",
    # A row: a problem, with its parts: the text is "error; what to do (details)".
    "problem_parts": """
SELECT *,
    substr(text, 1, instr(text || '; ', '; ') - 1) AS error,
    substr(text, instr(text || '; ', '; ') + 2) AS what_to_do,
    -- NULL if there was no file to look at.
    strftime('%Y-%m-%dT%H:%M:%fZ', mtime_ns / 1e9, 'unixepoch') AS file_time,
    -- rtrim leaves what ends in the last dot.
    substr(path, 1, length(rtrim(path, replace(path, '.', ''))) - 1) AS before_dot
FROM problems""",
    # A row: a call, uploaded or not.
    "calls": f"""
WITH refused AS (
    -- A row: an error of a file (of which there is one at most; warnings have exit code 0), whose
    -- call has no row in recordings. A folder has no time.
    SELECT * FROM problem_parts p
    WHERE path <> '' AND exit_code <> 0
    AND (file_time IS NOT NULL OR cause IN ('lost', 'no-metadata')
         -- A link that leads nowhere.
         OR cause = 'unreadable' AND lower(substr(path, length(before_dot) + 1)) IN {SUFFIXES})
    AND NOT EXISTS (
        SELECT 1 FROM {SAME_PATH}
        -- Other content under the path of an uploaded recording is another call.
        AND (r.state <> 'uploaded' OR coalesce(p.size_bytes, r.size_bytes) = r.size_bytes)
    )
)
SELECT connection_id, path, recorded_at, uploaded_at, outcome, talk_id AS dialog_id, found_id, error
FROM recording_outcomes
UNION ALL
SELECT connection_id, path, coalesce(file_time, since), NULL,
    CASE WHEN cause IN ('lost', 'no-metadata') THEN cause
         WHEN exit_code = 76 THEN 'unknown'  -- A copy of an unknown one.
         ELSE 'failed' END, NULL, NULL, text
FROM refused""",
    # A row: a day of a connection, with the number of calls by outcome.
    "days": f"""
WITH RECURSIVE counted AS (
    -- A row: a day with calls.
    SELECT connection_id, {LOCAL_DAY} AS day, {COUNTS} FROM calls GROUP BY 1, 2
),
recent (connection_id, day) AS (
    -- A row: a day from the first call on, with calls or not; of one year, as a recorder without a
    -- clock writes 1970.
    SELECT connection_id, max(min(day), date('now', 'localtime', '-365 days'))
    FROM counted GROUP BY 1
    UNION ALL
    SELECT connection_id, date(day, '+1 day') FROM recent WHERE day < date('now', 'localtime')
),
every_day AS (SELECT connection_id, day FROM counted UNION SELECT connection_id, day FROM recent)
SELECT connection_id, day, {", ".join(f"coalesce({c}, 0) AS {c}" for c in DAY_COLUMNS)}
FROM every_day LEFT JOIN counted USING (connection_id, day)
ORDER BY connection_id, day""",
    # A row: what is open. Each problem, with warnings, but without what only waits; then the
    # recordings without one.
    "attention": f"""
WITH unnamed AS (
    -- A row: a recording that is not uploaded, and of which no problem says that.
    SELECT * FROM recording_outcomes r
    WHERE state <> 'uploaded' AND outcome IN ('unknown', 'rejected', 'failed')
    AND NOT EXISTS (
        SELECT 1 FROM problems p WHERE p.connection_id = r.connection_id AND p.path = r.path
        AND p.exit_code <> 0 AND (outcome <> 'unknown' OR p.exit_code = 76)
    )
)
SELECT connection_id, since, path, cause, exit_code, what_to_do, error,
    -- Of what cannot be looked at nobody knows which call it is.
    CASE WHEN file_time IS NULL AND cause = 'unreadable' THEN NULL
    ELSE coalesce((SELECT max(recorded_at) FROM {SAME_PATH}
        AND (r.state <> 'uploaded' OR coalesce(p.size_bytes, r.size_bytes) = r.size_bytes)),
        file_time) END AS recorded_at, seen_at
FROM problem_parts p WHERE cause <> 'waiting'
UNION ALL
SELECT connection_id, updated_at, path, outcome,
    CASE outcome WHEN 'unknown' THEN 76 WHEN 'rejected' THEN 65 ELSE 75 END,
    CASE outcome
        WHEN 'unknown' THEN '{LOOK_FOR_IT} by ' || coalesce(
            lookup_key || ' = ' || sha256,
            'its time: ' || strftime('%Y-%m-%d %H:%M', recorded_at, 'localtime'))
            || '; if it is not there, --retry-unknown'
            || CASE WHEN lookup_key IS NULL THEN '' ELSE ' without --lookup-key' END
            || ' uploads it again'
        WHEN 'rejected' THEN
            'correct the file or its metadata; after a fix in the console: --retry-rejected'
        ELSE 'the next run uploads it' END,
    coalesce(error, CASE state
        WHEN 'finishing' THEN 'the run ended before its result was recorded'
        WHEN 'sending' THEN 'the run ended before it was uploaded'
        ELSE state END),
    recorded_at, updated_at
FROM unnamed""",
}
NEW_LEDGER = "a new ledger uploads everything again"
CHECK_LEDGER = "check --ledger"
RESTORE_LEDGER = f"restore it from a backup, as README says ({NEW_LEDGER})"
BEGIN_LEDGER = f"{CHECK_LEDGER}, or begin it by hand: run once without --quiet ({NEW_LEDGER})"


class LedgerError(UploadError):
    """The ledger cannot be used, so nothing more is sent."""

    def __init__(
        self, path: str, id: str, cause: str, advice: str, exit_code: int = os.EX_CONFIG
    ) -> None:
        cause = f"ledger {path}: {cause}"
        super().__init__(Meaning(exit_code, f"ledger-{id}", cause, advice, stops_run=True))

    @classmethod
    def of(cls, path: str, error: Exception) -> LedgerError:
        """Translate an error of SQLite, which has no errno, or of the file system."""
        cause, number = error_text(error), getattr(error, "errno", 0)
        if re.search("malformed|not a database", cause):
            return cls(path, "damaged", cause, RESTORE_LEDGER)
        if re.search("locked|busy", cause):
            advice = "find what holds it: another program, or it is on a network file system"
            return cls(path, "locked", cause, advice)
        disk_errors = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)
        if number in disk_errors or re.search("full|I/O|too large", cause):
            advice = "wait for that to end, then run again"
            return cls(path, "disk", cause, advice, os.EX_TEMPFAIL)
        return cls(path, "unusable", cause, CHECK_LEDGER)

    def level(self, args: Namespace) -> int:
        """Return how loudly to say it: with --quiet once a day."""
        if self.meaning.id == "ledger-in-use":  # Nothing that cron should email.
            return logging.INFO
        is_old = args.quiet and not args.dry_run and is_said_today(args.ledger, self.meaning.id)
        return logging.INFO if is_old else logging.ERROR


class ProblemKey(NamedTuple):
    """What makes a problem another one: never its text, as IDs and counts differ in every run."""

    path: str  # As stored; empty: the run's.
    exit_code: int  # 0: a warning, or what waits.
    cause: str  # Meaning.id


class LedgerFile:
    """Opens, locks and checks the ledger's file; a dry run works on a copy of it."""

    def __init__(self, args: Namespace) -> None:
        import sqlite3

        self._database_errors = (sqlite3.Error, ValueError, OverflowError)
        self._args = args
        self.path = args.ledger
        self._lock = threading.Lock()
        self._identity: tuple[int, int] | None = None
        self._was_moved = False
        self._lock_failure: LedgerError | None = None  # Waited for in vain: once is enough.
        with contextlib.ExitStack() as undo:
            try:
                # By whatever name, one file has one lock.
                self.path = os.path.realpath(args.ledger)
                is_new = self._check_path()
                if args.dry_run:
                    self._db = sqlite3.connect("")  # Temporary.
                    with contextlib.ExitStack() as briefly:
                        if not is_new:
                            open_read_only(self.path, briefly).backup(self._db)
                else:
                    # Until this process ends, however it ends.
                    undo.callback(os.close, self._take_lock())
                    # SQLite gives its -wal and -shm files the permissions of this one.
                    os.close(os.open(self.path, LEDGER_FLAGS, 0o600))
                    status = os.stat(self.path)
                    self._identity = status.st_dev, status.st_ino
                    self._db = sqlite3.connect(
                        self.path,
                        timeout=LEDGER_LOCK_LIMIT_S,
                        isolation_level=None,
                        check_same_thread=False,
                    )
                # Not that of today: a dry run may replace it.
                undo.callback(lambda: self._db.close())  # noqa: PLW0108
                if self._prepare():
                    what = "none there" if args.dry_run else "begins a new ledger"
                    log.info(f"ledger {self.path}: {what}")
                self._db.row_factory = sqlite3.Row
            except (OSError, sqlite3.Error) as error:
                raise LedgerError.of(self.path, error) from error
            self._undo = undo.pop_all()

    def _check_path(self) -> bool:
        """Return whether there is no ledger yet; raise LedgerError for a file that is not safe."""
        path = self.path
        try:
            status = os.stat(path)
        except FileNotFoundError:
            status = None
        if status and not stat.S_ISREG(status.st_mode):
            raise LedgerError(path, "no-file", "not a regular file", CHECK_LEDGER)
        # SQLite finds a -wal file by the ledger's name. Under two names, one run would not see what
        # another has committed, and writing would damage the file.
        if status and status.st_nlink > 1:
            raise LedgerError(path, "links", "it has more than one name", "remove the hard link")
        if status and is_mount_point(path):
            cause = "it is a mount point, so its -wal file is elsewhere"
            raise LedgerError(path, "mount", cause, "mount the folder that holds it")
        for suffix in ("-lock", "-wal", "-shm", "-journal"):
            if os.path.islink(path + suffix):  # It may lead to a file of somebody else.
                cause = f"its {suffix} file is a symbolic link"
                raise LedgerError(path, "link", cause, "remove the link")
        if is_begun(path):
            return False
        self._refuse_to_begin("empty" if status else "missing")
        return True

    def _refuse_to_begin(self, cause: str) -> None:
        """Raise LedgerError with --quiet: cron must not upload everything again."""
        if self._args.quiet and not self._args.dry_run:
            if self._identity is None and os.path.exists(f"{self.path}-lock"):
                os.close(self._take_lock())  # A first run may be about to begin it.
            cause = f"{cause}, and --quiet begins none"
            raise LedgerError(self.path, "missing", cause, BEGIN_LEDGER)

    def _take_lock(self) -> int:
        """Lock a file beside the ledger, and return its descriptor; raise LedgerError."""
        # A file of its own: SQLite's locks on the ledger itself are lost when any descriptor of
        # the ledger is closed (sqlite.org/howtocorrupt.html, 2.2).
        lock_file = os.open(f"{self.path}-lock", LEDGER_FLAGS, 0o600)
        until_s = time.monotonic() + LEDGER_LOCK_LIMIT_S
        while True:
            try:
                fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return lock_file
            except BlockingIOError as error:
                try:
                    # Shared by reports and dry runs, which are soon done; but not by a run.
                    fcntl.flock(lock_file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    fcntl.flock(lock_file, fcntl.LOCK_UN)
                    gives_up = time.monotonic() > until_s
                except BlockingIOError:
                    gives_up = True
                if gives_up:
                    os.close(lock_file)
                    cause = "another run is using it"
                    raise LedgerError(self.path, "in-use", cause, AGAIN, os.EX_TEMPFAIL) from error
            time.sleep(TICK_S)

    def _prepare(self) -> bool:
        """Check the layout, or create it and return True; for a dry run in its copy."""
        import sqlite3

        (tables,) = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables:
            check_layout(self._db, self.path)
        else:  # Perhaps SQLite has just undone what a killed first run had begun.
            self._refuse_to_begin("empty")
        if self._args.dry_run:
            if tables:
                return False
            self._db.close()
            self._db = sqlite3.connect(":memory:")
        execute = self._db.execute
        execute("BEGIN IMMEDIATE")
        # In one transaction of a file without -wal: a run killed in it leaves an empty file.
        for statement in () if tables else LEDGER_TABLES:
            execute(statement)
        for name, select in LEDGER_VIEWS.items():
            execute(f"DROP VIEW IF EXISTS {name}")
            execute(f"CREATE VIEW {name} AS {select}")
        execute(f"PRAGMA application_id = {LEDGER_APPLICATION_ID}")
        # Written even if it changes nothing, so that a full disk is noticed before we send.
        execute(f"PRAGMA user_version = {LEDGER_VERSION}")
        execute("COMMIT")
        # Write-ahead log: others can read while we write, and a commit is one write and one sync.
        execute("PRAGMA journal_mode = WAL")
        execute("PRAGMA synchronous = NORMAL")
        return not tables

    def be_quick(self) -> None:
        """Wait no longer than a moment for another program: the run was told to end."""
        with contextlib.suppress(LedgerError):
            self._execute(f"PRAGMA busy_timeout = {round(CANCEL_GRACE_S * 1000)}")

    def close(self) -> None:
        """Close the file and release the lock; raise LedgerError if the file was moved."""
        with self._lock:
            self._undo.close()
        if not self._was_moved:
            self._check_identity()

    def _check_identity(self) -> None:
        """Raise LedgerError if the path no longer leads to the file that was opened."""
        present = None
        with contextlib.suppress(OSError):
            status = os.stat(self.path)
            present = status.st_dev, status.st_ino
        if self._identity and present != self._identity:
            self._was_moved = True
            cause = "it was moved or removed during the run"
            raise LedgerError(
                self.path, "moved", cause, f"put it back, with its -wal file ({NEW_LEDGER})"
            )

    def _execute(
        self, sql: str, values: Sequence[Any] = (), synced: bool = False, must_change: bool = False
    ) -> list[Any]:
        """Execute a statement and return its rows; synced: wait until it is on disk.

        Raises LedgerError; with must_change also if no row changed, because somebody deleted it.
        """
        with self._lock:
            if self._lock_failure:
                raise self._lock_failure
            try:
                if synced:
                    self._db.execute("PRAGMA synchronous = FULL")
                cursor = self._db.execute(sql, values)
                rows = cursor.fetchall()
                if synced:
                    self._db.execute("PRAGMA synchronous = NORMAL")
            except self._database_errors as error:
                failure = LedgerError.of(self.path, error)
                self._lock_failure = failure if failure.meaning.id == "ledger-locked" else None
                raise failure from error
            if synced:
                self._check_identity()
        if must_change and not cursor.rowcount:
            cause = "a row was deleted or changed during the run"
            raise LedgerError(self.path, "row", cause, CHECK_LEDGER)
        return rows


class Ledger(LedgerFile):
    """One SQLite file that remembers what became of each recording, by connection and SHA-256.

    state      written                                   what a later run does
    sending    before the first byte                     makes it failed (recover_killed_run)
    finishing  on disk, before the half-close can leave  makes it unknown (recover_killed_run)
    uploaded   with the service's ID in hand             leaves it
    unknown    the response was lost                     leaves it, but for --retry-unknown (Lookup)
    failed     given up before the commit point          uploads it
    rejected   refused by the service or by us           leaves it, until the file or its metadata
                                                         change, or --retry-rejected is given

    So a run that dies leaves either no dialog (no row, or a sending one) or a row that says there
    may be one. `decide` has the right column in code. An unknown one is uploaded once Lookup finds
    its dialog, or somebody has written so by hand; if it is sent again in another format, its own
    row stays. Every method raises LedgerError.

    So does a full disk: at the start (_prepare writes in each run) or in `claim` nothing is sent;
    at the commit point the upload is cancelled, and its row stays `sending`; after the response it
    stays `finishing`, and the ID is printed with 76 (result_unrecorded). Each ends the run, whose
    own row gets no end; problems are said, but not kept, and an update of metadata is sent again.
    The error itself is 75, and with --quiet said once a day (LedgerError.level). Elsewhere: no room
    to convert is NO_SPACE, 75 for that recording; none for stdout ends the run with 74, and the IDs
    go to stderr (Console._print).
    """

    def __init__(self, args: Namespace) -> None:
        super().__init__(args)
        if not args.dry_run:
            self.recover_killed_run()

    def recover_killed_run(self) -> None:
        """Give the rows that a killed run left the state that is known of them."""
        ended = "the run ended before its result was recorded"
        for state, after in (("sending", "failed"), ("finishing", "unknown")):
            sql = f"UPDATE recordings SET state = '{after}', error = ? WHERE state = '{state}'"
            # The second condition lets SQLite use recordings_not_uploaded.
            self._execute(f"{sql} AND state <> 'uploaded'", (ended,))

    def find_by_stem(self, path: str) -> list[Row]:
        """Return the rows of files with this path, whatever their suffix."""
        return self.find_by_stems([path])[path]

    def find_by_stems(self, paths: Sequence[str]) -> dict[str, list[Row]]:
        """Return for each path the rows of files with this path, whatever their suffix."""
        stems = {path: os.path.splitext(stored_path(path))[0] for path in paths}
        marks = ", ".join("?" for _ in stems)
        by_stem: dict[str, list[Row]] = {}
        index = "INDEXED BY recordings_by_stem"
        for row in self._rows(index, f"stem IN ({marks})", *stems.values()):
            by_stem.setdefault(row["stem"], []).append(row)
        return {path: by_stem.get(stem, []) for path, stem in stems.items()}

    def find_by_hash(self, sha256: str) -> Row | None:
        """Return the row of a recording with this audio."""
        return next(iter(self._rows("", "sha256 = ?", sha256)), None)

    def unknown_with_key(self) -> list[Row]:
        """Return the unknown recordings that were sent with their SHA-256 under --lookup-key."""
        where = "state = 'unknown' AND state <> 'uploaded' AND lookup_key = ? ORDER BY sequence"
        return self._rows("INDEXED BY recordings_not_uploaded", where, self._args.lookup_key)

    def uploaded_next(self, row: Row, limit: int) -> list[Row]:
        """Return the recordings with a key whose commit points came next after that of a row."""
        where = "sequence > ? AND state = 'uploaded' AND lookup_key = ? AND NOT split"
        where += f" ORDER BY sequence LIMIT {limit}"
        index = "INDEXED BY recordings_by_sequence"
        return self._rows(index, where, row["sequence"], row["lookup_key"])

    def _rows(self, index: str, where: str, *values: object) -> list[Row]:
        # Left to choose, SQLite would scan all rows of the connection.
        sql = f"SELECT * FROM recordings {index} WHERE connection_id = ? AND {where}"
        return self._execute(sql, (self._args.connection_id, *values))

    def claim(self, recording: Recording) -> None:
        """Record that a recording is about to be sent."""
        # Not synced: whether a crash keeps or loses this row, nothing was sent, and the next run
        # sends the recording.
        stem, suffix = os.path.splitext(stored_path(recording.path))
        columns = {
            "connection_id": self._args.connection_id,
            "sha256": recording.sha256,
            "stem": stem,
            "suffix": suffix,
            **recording.file_state._asdict(),
            **metadata_columns(recording, self._args),
            "state": "sending",
            # Of an earlier sending; what is looked up is this one.
            **dict.fromkeys(("lookup_key", "looked_up_at", "sequence", "sent_at")),
            **dict.fromkeys(("badge_id", "operation_id", "error", "request_id", "duration_s")),
            "is_missing": False,
            "updated_at": utc(),
        }
        names = ", ".join(columns)
        marks = ", ".join("?" for _ in columns)
        renewed = ", ".join(f"{name} = excluded.{name}" for name in columns)
        sql = f"INSERT INTO recordings ({names}) VALUES ({marks})"
        self._execute(f"{sql} ON CONFLICT DO UPDATE SET {renewed}", tuple(columns.values()))

    def record_update(self, recording: Recording) -> None:
        """Record that the service has taken new metadata for an uploaded recording."""
        columns = metadata_columns(recording, self._args)
        if self._args.lookup_key:
            columns["lookup_key"] = self._args.lookup_key
        self.update(recording, error=None, updated_at=utc(), **columns)

    def record_refused_update(self, recording: Recording, error: UploadError) -> None:
        """Record that the service refused new metadata, so that they are not sent again."""
        assert recording.json
        columns = json_columns(recording.json.state)
        text = clean(error.error_text)
        self.update(recording, json_refused=recording.json.sha256, error=text, **columns)

    def record_commit_point(self, recording: Recording, request_id: str) -> None:
        """Record, on disk, that a dialog may exist from now on.

        The lookup key is stored only here: a dialog that the service made before this point may be
        incomplete, so finding it would prove nothing.
        """
        args, now = self._args, utc()
        self._execute(
            "UPDATE recordings SET state = 'finishing', lookup_key = ?, split = ?, ctime_ns = ?, "
            "sent_at = ?, updated_at = ?, sequence = 1 + (SELECT coalesce(max(sequence), 0) "
            "FROM recordings INDEXED BY recordings_by_sequence WHERE connection_id = ?) "
            # Not for an attempt that was given up meanwhile.
            "WHERE connection_id = ? AND sha256 = ? AND state = 'sending' AND request_id = ?",
            (
                *(args.lookup_key, args.split, recording.file_state.ctime_ns, now, now),
                *(args.connection_id, args.connection_id, recording.sha256, request_id),
            ),
            synced=True,
            must_change=True,
        )

    def record_result(self, recording: Recording, result: Result) -> None:
        """Record how sending a recording ended, or what a lookup found of it."""
        # Not synced: after a power failure the row still says finishing, and the next run calls the
        # recording unknown. The next sync, or close(), writes it to disk.
        now, is_uploaded = utc(), result.outcome is Outcome.UPLOADED
        attempts = 0 if recording.is_recorded else recording.attempts
        columns: dict[str, object] = {"attempts": attempts}
        if is_uploaded:
            columns["talk_id"] = one_line(" ".join(result.talk_ids)) or None
            columns["uploaded_at"] = now
        for name in ("badge_id", "operation_id", "found_id"):
            if getattr(result, name):
                columns[name] = one_line(getattr(result, name))
        error = clean(result.error.error_text) if result.error else None
        state = str(result.outcome.value)
        self.update(recording, state=state, error=error, updated_at=now, **columns)

    def update(self, recording: Recording, **columns: object) -> None:
        """Update columns of a recording's row; attempts are added, uploaded_at stays the first."""
        names = ", ".join(f"{name} = ?" for name in columns)
        names = names.replace("attempts = ?", "attempts = attempts + ?")
        names = names.replace("uploaded_at = ?", "uploaded_at = coalesce(uploaded_at, ?)")
        self._execute(
            f"UPDATE recordings SET {names} WHERE connection_id = ? AND sha256 = ?",
            (*columns.values(), self._args.connection_id, recording.sha256),
            must_change=True,
        )

    # Problems and runs

    def knows_below(self, folder: str) -> bool:
        """Return whether there are recordings in a folder or its subfolders."""
        sql = "SELECT 1 FROM recordings WHERE connection_id = ? AND stem >= ? AND stem < ? LIMIT 1"
        values = (self._args.connection_id, *range_below(stored_path(folder)))
        return bool(self._execute(sql, values))

    def files_not_uploaded(self) -> list[tuple[str, int, int]]:
        """Return path, size and mtime of the recordings that are not uploaded, and may yet be."""
        sql = (
            "SELECT path, size_bytes, mtime_ns FROM recordings INDEXED BY recordings_not_uploaded "
            "WHERE connection_id = ? AND state IN ('failed', 'rejected') AND state <> 'uploaded' "
            f"AND NOT {TOO_SHORT}"
        )
        return [tuple(row) for row in self._execute(sql, (self._args.connection_id,))]

    def find_sent(self, waiting: Sequence[OpenProblem]) -> set[tuple[int, int | str]]:
        """Return size and mtime, and size and name, of what was sent since these began to wait."""
        if not waiting:
            return set()
        # That of a recording that is moved may have been written before.
        sql = (
            "SELECT size_bytes, mtime_ns, path FROM recordings WHERE connection_id = ? "
            f"AND state IN {MAY_BE_IN_SERVICE} AND (updated_at >= ? OR mtime_ns BETWEEN ? AND ?)"
        )
        times = [each.file_state.mtime_ns for each in waiting if each.file_state]
        since = min(each.since for each in waiting)
        rows = self._execute(sql, (self._args.connection_id, since, min(times), max(times)))
        sent: set[tuple[int, int | str]] = set()
        for size_bytes, mtime_ns, path in rows:
            sent |= {(size_bytes, mtime_ns), (size_bytes, os.path.basename(path))}
        return sent

    def exists_in_other_format(self, path: str) -> bool:
        """Return whether the call at this path is there in another format, or was sent in it."""
        if formats_of_call(os.path.splitext(path)[0]):
            return True
        rows = self.find_by_stem(path)
        return any(row["state"] in MAY_BE_IN_SERVICE and row["path"] != path for row in rows)

    def problems(self) -> dict[ProblemKey, OpenProblem]:
        """Return the problems that were noted."""
        sql = (
            "SELECT path, exit_code, cause, text, since, said_at, size_bytes, mtime_ns, ctime_ns "
            "FROM problems WHERE connection_id = ?"
        )
        problems = {}
        rows = self._execute(sql, (self._args.connection_id,))
        for *key, text, since, said_at, size, mtime, ctime in rows:
            state = None if mtime is None else FileState(size, mtime, ctime)
            problems[ProblemKey(*key)] = OpenProblem(text, since, said_at, state)
        return problems

    def note_problem(self, key: ProblemKey, text: str, file_state: FileState | None) -> None:
        """Note a problem, or that it lasts."""
        now, state = utc(), file_state or (None, None, None)
        self._execute(
            "INSERT INTO problems VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL) "
            "ON CONFLICT DO UPDATE SET text = excluded.text, seen_at = excluded.seen_at, "
            "size_bytes = excluded.size_bytes, mtime_ns = excluded.mtime_ns, "
            "ctime_ns = excluded.ctime_ns",
            (self._args.connection_id, *key, text, *state, now, now),
        )

    def mark_said(self, key: ProblemKey) -> None:
        """Note that an operator has heard of a problem."""
        self._change_problem("UPDATE problems SET said_at = ?", key, utc())

    def forget_problem(self, key: ProblemKey) -> None:
        """Delete a problem that is over."""
        self._change_problem("DELETE FROM problems", key)

    def _change_problem(self, sql: str, key: ProblemKey, *values: str) -> None:
        where = "connection_id = ? AND path = ? AND exit_code = ? AND cause = ?"
        self._execute(f"{sql} WHERE {where}", (*values, self._args.connection_id, *key))

    def begin_run(self, endpoint: str) -> bool:
        """Note that a run has begun; return whether the latest one before it ended half open."""
        of_run = (self._args.connection_id, endpoint)
        where = "connection_id = ? AND endpoint = ? ORDER BY id DESC LIMIT 1"
        before = self._execute(f"SELECT half_open FROM runs WHERE {where}", of_run)
        half_open = bool(before and before[0]["half_open"])
        # As it was, until the end says otherwise: if this run is killed, it has proved nothing.
        self._execute(
            "INSERT INTO runs (connection_id, endpoint, quiet, began_at, folders, half_open) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            (*of_run, self._args.quiet, utc(), self._folders(), half_open),
        )
        (self._run_id,) = self._execute("SELECT max(id) FROM runs")[0]
        return half_open

    def first_complete_run_s(self) -> float:
        """Return when the first run over these folders began that tried everything."""
        sql = (
            "SELECT began_at FROM runs WHERE connection_id = ? AND folders = ? "
            # Not of a clock that was ahead.
            "AND looked_at_all AND NOT not_tried AND began_at <= ? ORDER BY id LIMIT 1"
        )
        rows = self._execute(sql, (self._args.connection_id, self._folders(), utc()))
        return seconds_of(rows[0]["began_at"]) if rows else math.inf

    def _folders(self) -> str:
        return json.dumps([stored_path(path) for path in self._args.audio_path])

    def end_run(self, **columns: object) -> None:
        """Note how this run ended."""
        names = ", ".join(f"{name} = ?" for name in columns)
        values = (*columns.values(), utc(), self._run_id)
        self._execute(f"UPDATE runs SET {names}, ended_at = ? WHERE id = ?", values)


def is_begun(path: str) -> bool:
    """Return whether there is a ledger, not an empty file.

    Raises LedgerError if there is none, but its write-ahead log.
    """
    sizes = []
    # The log first: a first run, which may be under way, begins the ledger before it.
    for name in (f"{path}-wal", path):
        try:
            status = os.stat(name)
        except FileNotFoundError:
            sizes.append(0)
        except OSError as error:
            raise LedgerError.of(path, error) from error
        else:
            sizes.append(status.st_size if stat.S_ISREG(status.st_mode) else 0)
    has_log, has_ledger = (size > 0 for size in sizes)
    if has_log and not has_ledger:
        cause = "missing or empty, though its -wal file is there"
        advice = f"put that very ledger back beside it ({NEW_LEDGER})"
        raise LedgerError(path, "wal", cause, advice)
    return has_ledger


def check_layout(db: Any, path: str) -> None:
    """Raise LedgerError if a database is not a ledger of this layout."""
    (application_id,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if application_id != LEDGER_APPLICATION_ID:
        cause = "not a ledger, but a database of another program"
        raise LedgerError(path, "foreign", cause, f"{CHECK_LEDGER}, or {RESTORE_LEDGER}")
    if version != LEDGER_VERSION:
        age = "a newer" if version > LEDGER_VERSION else "an older"
        raise LedgerError(path, "version", f"written by {age} upload_grpc", "use that version")


def is_mount_point(path: str) -> bool:
    """Return whether a file is a mount of its own, such as one given to a container."""
    with contextlib.suppress(OSError), open("/proc/self/mountinfo", "rb") as mounts:
        # proc(5): the fifth field, with blanks and the like as octal escapes.
        points = (line.split()[4].decode("unicode_escape") for line in mounts)
        return path in (
            point.encode("latin-1").decode(errors="surrogateescape") for point in points
        )
    return False


def open_read_only(path: str, undo: contextlib.ExitStack) -> Any:
    """Open a ledger so that SQLite neither creates nor changes a file.

    undo closes it, and no run begins before that; beside one that is under way, its -wal file is
    read, too. Raises sqlite3.Error.
    """
    import sqlite3
    from urllib.parse import quote

    address = f"file:{quote(os.fsencode(path))}?mode=ro"
    lock_file, until_s = -1, time.monotonic() + LEDGER_LOCK_LIMIT_S
    with contextlib.suppress(OSError):  # No run yet, or it is another user's.
        lock_file = os.open(f"{path}-lock", os.O_RDONLY | os.O_NOFOLLOW)
        undo.callback(os.close, lock_file)
    while lock_file >= 0:
        try:
            fcntl.flock(lock_file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            break
        except BlockingIOError:  # A run is using it.
            db = sqlite3.connect(f"{address}&readonly_shm=1", uri=True)
            try:
                db.execute("SELECT count(*) FROM sqlite_master").fetchone()
                undo.callback(db.close)
                return db
            except sqlite3.OperationalError:  # Its -wal file is about to come, or gone.
                db.close()
                if time.monotonic() > until_s:
                    raise
            time.sleep(TICK_S)
        except OSError:  # A file system without locks.
            break
    # Without a -wal file nobody is writing, and `immutable` keeps SQLite from creating one.
    options = "" if os.path.exists(f"{path}-wal") else "&immutable=1"
    if os.path.exists(f"{path}-shm"):
        options += "&readonly_shm=1"
    db = sqlite3.connect(f"{address}{options}", uri=True)
    undo.callback(db.close)
    return db


def metadata_columns(recording: Recording, args: Namespace) -> dict[str, object]:
    """Return what the ledger keeps of the metadata that is sent."""
    return {
        **json_columns(recording.json.state if recording.json else None),
        "json_sha256": recording.json.sha256 if recording.json else None,
        "json_refused": None,
        "had_meta_path": bool(args.meta_path),
        "metadata_sha256": recording.metadata_sha256,
        "recorded_at": recorded_at(recording),
    }


def json_columns(state: FileState | None) -> dict[str, object]:
    """Return the columns for the state of the JSON beside a recording."""
    names = ("json_size_bytes", "json_mtime_ns", "json_ctime_ns")
    return dict(zip(names, state or (None, None, None), strict=True))


def stored_path(path: str) -> str:
    """Return a path as the ledger has it: absolute, printable, other bytes escaped."""
    folder, name = os.path.split(path)
    if name in ("", ".", ".."):
        return stored_folder(path)
    return os.path.join(stored_folder(folder), printable(name))


@functools.lru_cache(maxsize=256)
def stored_folder(path: str) -> str:
    """Return a folder like stored_path; remembered, as one holds thousands of recordings."""
    try:
        return printable(os.path.abspath(path))
    except FileNotFoundError:  # The working directory is gone, and with it what is meant.
        return printable(path)


def range_below(folder: str) -> tuple[str, str]:
    """Return where the paths below a folder begin, as text, and where they end."""
    start = os.path.join(folder, "")
    return start, f"{start[:-1]}0"  # "/" is followed by "0".


def printable(name: str) -> str:
    """Return a name with control characters and bytes that are not UTF-8 as escapes."""
    if name.isascii() and name.isprintable():
        return name
    return one_line(os.fsencode(name).decode(errors="backslashreplace"))


def hash_audio(recording: Recording, stopping: threading.Event) -> None:
    """Set the SHA-256 of the audio; raise UploadError."""

    def stop() -> None:
        if stopping.is_set():
            raise stopped_error()

    recording.sha256 = hash_file(recording.path, stop)


def hash_recording(recording: Recording, args: Namespace, stopping: threading.Event) -> None:
    """Set the SHA-256 of the audio and of the metadata; add the former to the metadata if asked."""
    assert recording.metadata is not None
    if not recording.sha256:
        hash_audio(recording, stopping)
    recording.metadata_sha256 = hash_metadata(recording, args)
    if args.lookup_key:
        recording.metadata.fields[args.lookup_key] = recording.sha256


def hash_metadata(recording: Recording, args: Namespace) -> str:
    """Return the SHA-256 of the metadata, with the options that say how the audio is sent."""
    assert recording.metadata is not None
    sent = TalkMetadata()
    sent.CopyFrom(recording.metadata)
    sent.connection_id = ""
    if recording.has_placeholders:  # Their date changes each time.
        del sent.fields["date"]
    way = f"{args.audio_type}{' split' * args.split}{' single' * args.single_message}"
    pcm = f" {args.sample_rate} {args.channels}" if args.audio_type == "pcm" else ""
    return f"{sha256_of(sent)} {way}{pcm}"


def recorded_at(recording: Recording) -> str:
    """Return when a call was recorded: the date in its metadata, else its file's mtime; UTC."""
    assert recording.metadata is not None
    fields = recording.metadata.fields
    match = ISO_DATE.fullmatch(fields["date"]) if "date" in fields else None
    if match:
        minutes = match[4][3:].strip(":") or "00"
        offset = "+00:00" if match[4] == "Z" else f"{match[4][:3]}:{minutes}"
        with contextlib.suppress(ValueError):  # The 30th of February.
            date = datetime.datetime.fromisoformat(f"{match[1]}{offset}")
            if 1900 < date.year < 2200:  # The years 1 and 9999 stand for no date.
                return utc(date.timestamp())
    return utc(recording.file_state.mtime_ns / 1e9)


def seconds_of(time_text: str) -> float:
    """Convert a time in the ledger to seconds since 1970."""
    return datetime.datetime.fromisoformat(f"{time_text[:19]}+00:00").timestamp()


def local_day(time_text: str) -> datetime.date:
    """Return the day of a time in the ledger, in the local zone."""
    return datetime.date.fromtimestamp(seconds_of(time_text))


def today() -> datetime.date:
    """Return the present day in the local zone."""
    return datetime.date.fromtimestamp(time.time())


def utc(seconds: float | None = None) -> str:
    """Return a time, by default the present one, as ISO 8601 in UTC, to the millisecond."""
    seconds = time.time() if seconds is None else seconds
    when = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


# --- 12. Looking up what is unknown -----------------------------------------------------------

# Values per search, and calls per run. The service's quota per project, used by the console too, is
# 20/s, 200/min and 2,000/h.
LOOKUP_BATCH = 20
LOOKUP_CALLS_LIMIT = 30
LOOKUP_PAUSE_S = 1.0
LOOKUP_TIMEOUT_S = 10.0
# A dialog was found about an hour after its upload (one user's report), and how long that takes
# varies with its length: no search can prove anything within a day.
LOOKUP_INTERVAL_S = 15 * 60.0
PROOF_AGE_S = 24 * 60 * 60.0
# Any of these, uploaded next after an unknown one, shows that the index has caught up. The latest
# upload would never do: with a run every five minutes it is never in the index yet.
CONTROLS = 3
# The service's limit. A value should have one dialog, so a batch stays far below it.
GET_LIMIT_TALKS = 100
SEND_ANYWAY = "--retry-unknown without --lookup-key sends it, and may create a duplicate"
CHECK_PLACE = "check --organization-id, --space-id, --project-id and --lookup-key"
LOOKUP_ADVICE = {
    "PERMISSION_DENIED": HAS_ROLE,
    **dict.fromkeys(("NOT_FOUND", "INVALID_ARGUMENT", "FAILED_PRECONDITION"), CHECK_PLACE),
}


class Lookup:
    """Looks up recordings whose response was lost, by the SHA-256 in their metadata.

    Found: Get returns a dialog of this connection with exactly this value (_find).
    Missing, so that --retry-unknown sends it again: it is not found by a search that was complete;
    it was sent a day ago or more; it is one dialog, no split; and one of the CONTROLS recordings
    that were uploaded next after it is found by that very search. So the search works, and its
    index has what is younger. What this rests on: a dialog is in the index within a day.

    What goes wrong in it is a warning, and changes no exit code, but for a refused credential and
    what the ledger raises.
    """

    def __init__(
        self,
        args: Namespace,
        uploader: Uploader,
        ledger: Ledger,
        signals: Sequence[int],
        tally: Tally,
    ) -> None:
        self._args = args
        self._uploader = uploader
        self._ledger = ledger
        self._signals = signals
        self._tally = tally
        self._calls = 0
        self._next_call_s = 0.0
        self._has_warned = False

    def run(self) -> None:
        """Look up the unknown recordings; raise UploadError for a refused credential."""
        rows = [row for row in self._ledger.unknown_with_key() if is_due_for_lookup(row)]
        rows.sort(key=lambda row: row["looked_up_at"] or "")  # A run may not get to all of them.
        for batch in self._batches(rows):
            try:
                found, is_complete = self._find(batch)
            except CallError as error:
                if error.status == "UNAUTHENTICATED":
                    raise
                self._warn(error)
                for row in batch:
                    self._ledger.update(recording_of(row), looked_up_at=utc())
                if would_repeat(error):
                    return
            except UploadError as error:
                log.info(f"unknown recordings not looked up: {error}")
                return
            else:
                for row, controls in batch.items():
                    self._take(row, found, is_complete and found.keys() & controls)
        is_over = bool(self._calls) or not self._ledger.unknown_with_key()
        self._tally.problems.has_looked_up = is_over and not self._has_warned

    def _batches(self, rows: Sequence[Row]) -> Iterator[dict[Row, set[str]]]:
        """Divide rows, each with its controls, so that a batch has at most LOOKUP_BATCH values."""
        batch: dict[Row, set[str]] = {}
        values: set[str] = set()
        for row in rows:
            controls = self._controls(row)
            more = controls | {row["sha256"]}
            if batch and len(values | more) > LOOKUP_BATCH:
                yield batch
                batch, values = {}, set()
            batch[row] = controls
            values |= more
        if batch:
            yield batch

    def _controls(self, row: Row) -> set[str]:
        """Return the SHA-256 of what would be found by now if the row's recording could be.

        What came next is asked of the sequence, not of the clock. That a day has passed has to be:
        a clock that was behind when it was sent, or is ahead now, leaves only the control as proof.
        """
        age_s = time.time() - seconds_of(row["sent_at"])
        if age_s < PROOF_AGE_S or row["split"]:  # What is being split has no dialogs yet.
            return set()
        return {each["sha256"] for each in self._ledger.uploaded_next(row, CONTROLS)}

    def _take(self, row: Row, found: Mapping[str, Mapping[str, float]], is_proof: object) -> None:
        """Record what a search says of one row; report its recording if it was found."""
        recording = recording_of(row)
        created_s = found.get(row["sha256"], {})
        # Not found proves nothing by itself.
        is_missing = bool(is_proof or row["is_missing"]) and not created_s
        self._ledger.update(recording, looked_up_at=utc(), is_missing=is_missing)
        if not created_s:
            return
        ids = sorted(created_s, key=lambda talk_id: (created_s[talk_id], talk_id))
        returned = tuple((row["talk_id"] or "").split())
        if row["split"]:
            log.info(f"{recording.path}: it was split; there may be more dialogs of it later")
            returned = tuple(ids)
        elif ids[1:]:
            others = ", ".join(ids[1:])
            advice = "remove them in the console"
            self._tally.warn(recording, "duplicates", f"{ids[0]} has duplicates: {others}", advice)
        result = Result(Outcome.UPLOADED, returned, found_id=ids[0])
        self._ledger.record_result(recording, result)
        self._tally.add(recording, result)

    def _find(self, batch: Mapping[Row, set[str]]) -> tuple[dict[str, dict[str, float]], bool]:
        """Return when the dialogs with these values under the key were created, by value and ID.

        Also whether that is all of them. A search may match more than it was asked for, so only
        what Get returns is proof.
        """
        values: set[str] = {row["sha256"] for row in batch}.union(*batch.values())
        request = talk_service_pb2.SearchTalkRequest(page_size=GET_LIMIT_TALKS)
        key = f"userMeta.{self._args.lookup_key}"
        request.filters.add(key=key).any_match.values.extend(sorted(values))
        page = self._ask("Search", request)
        talks = self._get(list(dict.fromkeys(page.talk_ids)))
        found: dict[str, dict[str, float]] = collections.defaultdict(dict)
        for talk in talks:
            created_s = talk.created_at.seconds + talk.created_at.nanos / 1e9
            for field in talk.talk_fields:
                is_ours = talk.connection_id == self._args.connection_id
                if is_ours and field.name == self._args.lookup_key and field.value in values:
                    found[field.value][talk.id] = created_s
        is_complete = {talk.id for talk in talks} >= set(page.talk_ids)
        return found, is_complete and not page.next_page_token

    def _get(self, talk_ids: list[str]) -> list[Any]:
        """Get dialogs by their IDs, in halves where a response is too large for a message."""
        if not talk_ids:
            return []
        request = talk_service_pb2.GetTalkRequest(talk_ids=talk_ids)
        request.results_mask.SetInParent()
        try:
            return list(self._ask("Get", request).talk)
        except CallError as error:
            if error.meaning.id != TOO_LARGE.id:
                raise
            if len(talk_ids) == 1:
                self._warn(error)
                return []
        middle = len(talk_ids) // 2
        return self._get(talk_ids[:middle]) + self._get(talk_ids[middle:])

    def _ask(self, method: str, request: Any) -> Any:
        """Make one call: at most one a second, and LOOKUP_CALLS_LIMIT a run."""
        if self._calls == LOOKUP_CALLS_LIMIT:
            cause = f"limit of {LOOKUP_CALLS_LIMIT} lookups per run reached"
            advice = "the next run continues"
            raise UploadError(Meaning(os.EX_TEMPFAIL, "lookup-limit", cause, advice))
        self._calls += 1
        while not self._signals and time.monotonic() < self._next_call_s:
            time.sleep(min(TICK_S, max(0, self._next_call_s - time.monotonic())))
        if self._signals:
            raise stopped_error()
        self._next_call_s = time.monotonic() + LOOKUP_PAUSE_S
        for name in ("organization_id", "space_id", "connection_id", "project_id"):
            setattr(request, name, getattr(self._args, name) or "")
        return self._uploader.ask("lookup", method, request, LOOKUP_TIMEOUT_S)

    def _warn(self, error: CallError) -> None:
        """Say, once a run, that something could not be looked up; uploads go on."""
        advice = LOOKUP_ADVICE.get(error.status, "a later run looks again")
        if not self._has_warned:
            cause = "unknown recordings could not be looked up"
            self._tally.warn(None, LOOKUP_FAILED, cause, f"{advice} ({error.details})")
        self._has_warned = True


def recording_of(row: Row) -> Recording:
    """Return the recording of a row, whose file may be gone."""
    recording = Recording(row["path"])
    recording.sha256 = row["sha256"]
    return recording


def would_repeat(error: CallError) -> bool:
    """Return whether other lookups would end like this one: without an answer, or refused."""
    meaning, end = error.meaning, error.__cause__
    has_answer = isinstance(end, grpc.Call) and (end.initial_metadata() or end.trailing_metadata())
    # NOT_FOUND may be said of one dialog.
    is_for_all = meaning.pauses_run or (meaning.stops_run and meaning.id != NOT_KNOWN.id)
    return not has_answer or is_for_all


def is_due_for_lookup(row: Row) -> bool:
    """Return whether a recording may be looked up again; a clock may jump either way."""
    looked_up_at = row["looked_up_at"]
    return not looked_up_at or abs(time.time() - seconds_of(looked_up_at)) >= LOOKUP_INTERVAL_S


def why_not_missing(row: Row, key: str) -> str:
    """Say why an unknown recording is not sent again although lookups are made; what would help."""
    if row["lookup_key"] != key:
        return f"it was sent without {quoted(key)}, so it is not looked up; {SEND_ANYWAY}"
    if row["split"]:
        return f"no lookup can prove a split recording missing; {SEND_ANYWAY}"
    proof_s = seconds_of(row["sent_at"]) + PROOF_AGE_S
    if time.time() < proof_s:
        when = utc(proof_s)[:16].replace("T", " ")
        return f"within a day of sending no lookup can prove it missing; run again after {when} UTC"
    needed = f"one of the {CONTROLS} recordings uploaded next after it, but not it"
    check = f"if there are any, check that the connection has the key {quoted(key)}"
    return f"no lookup has found {needed}; {check}, --project-id and earlier warnings"


# --- 13. Choosing what to send ----------------------------------------------------------------


# The states of what may be in the service.
MAY_BE_IN_SERVICE = ("uploaded", "unknown", "finishing", "sending")


class Action(enum.Enum):
    """What to do with a recording."""

    SEND = "send"
    WAIT = "wait"  # For the end of the upload of the same audio that is under way.
    FOLLOW = "follow"  # Ask for the dialogs that it is being split into.
    UPDATE_METADATA = "update metadata"
    LEAVE = "leave"
    LEAVE_OUT = "leave out"


class Decision(NamedTuple):
    """An action, and why."""

    action: Action
    reason: str


def decide(  # noqa: PLR0911 - a return a case reads best.
    row: Row, recording: Recording, args: Namespace, claimed: set[str], has_new_json: bool = False
) -> Decision:
    """Say what to do with a recording of which the ledger has a row. Does nothing else.

    The one place to read for "can a later run create a second dialog?". The row is that of the same
    SHA-256, as other bytes are another call; or that of the call in another format (_is_left_out).
    What is_missing proves is said in Lookup; a proof serves one sending, as Ledger.claim clears it.
    claimed: the SHA-256 of what this run has sent, updated, or asks for.
    """
    state, sent_by_this_run = row["state"], row["sha256"] in claimed
    if state in ("sending", "finishing") and not args.dry_run:
        return Decision(Action.WAIT, "the same audio is being uploaded")
    if state == "uploaded":
        # For what this run has sent a worker waits, or has waited.
        if args.wait and row["operation_id"] and not (row["talk_id"] or sent_by_this_run):
            return Decision(Action.FOLLOW, "it is being split")
        if has_new_json and args.update_metadata:
            return Decision(Action.UPDATE_METADATA, "its JSON has changed")
        return Decision(Action.LEAVE, "uploaded")
    if state == "failed" and (row["duration_s"] or math.inf) < args.min_duration:
        return Decision(Action.LEAVE_OUT, "converted before, and too short")
    if state in ("failed", "sending"):
        return Decision(Action.SEND, "no dialog can have been created")
    if state == "rejected":
        before = row["size_bytes"], row["mtime_ns"], row["metadata_sha256"]
        is_changed = (*recording.file_state[:2], recording.metadata_sha256) != before
        # A copy differs from its original, which is there, in each run anew.
        if is_changed and not sent_by_this_run and not original_is_there(row, recording):
            return Decision(Action.SEND, "the file or its metadata has changed since")
        if args.retry_rejected and not sent_by_this_run:
            return Decision(Action.SEND, "--retry-rejected")
        return Decision(Action.LEAVE, "rejected before")
    # Unknown; nobody can have looked for what became so in this run.
    if sent_by_this_run or row["talk_id"] or not args.retry_unknown:
        return Decision(Action.LEAVE, "")
    if not args.lookup_key:
        return Decision(Action.SEND, "this may create a duplicate")
    if not row["is_missing"]:
        return Decision(Action.LEAVE, why_not_missing(row, args.lookup_key))
    return Decision(Action.SEND, "proved missing in the service")


class Source:
    """Yields the recordings to send, one at a time, whichever worker asks; reports the others.

    It holds its lock while it looks at one file, or may not begin one. What could hold up others
    comes last: while the breaker is half open what failed before, then what is hashed only for its
    new ctime, then copies of what was under way.
    """

    def __init__(
        self,
        args: Namespace,
        common: TalkMetadata | None,
        ledger: Ledger | None,
        breaker: CircuitBreaker,
        tally: Tally,
    ) -> None:
        self.under_way: set[Recording] = set()  # Until the breaker knows their results.
        self.found = 0
        self.is_exhausted = False  # All that is there was looked at.
        self.missed_path = False  # A path given is not there, or looks like a lost share.
        self._args = args
        self._ledger = ledger
        self._breaker = breaker
        self._tally = tally
        self._examiner = Examiner(args, common, ledger, breaker, tally)
        self.replaced = self._examiner.replaced
        self._recordings = self._in_order()
        self.to_send = self._choose()
        self._lock = threading.Lock()

    def take(self) -> Recording | None:
        """Return the next recording to send, once the run may begin one; None at the end."""
        with self._lock:
            while not self._breaker.stopping.is_set():
                is_first = all(each.is_waiting for each in list(self.under_way))
                if self._breaker.may_begin(is_first):
                    recording = next(self.to_send, None)
                    if recording:
                        self.under_way.add(recording)
                    return recording
                self._breaker.stopping.wait(TICK_S)
        return None

    def rest(self) -> Iterator[Recording]:
        """Yield the recordings that a stopped run did not get to."""
        for recording in self._recordings:
            # What was looked at, and put off, is known, or a copy of what is under way.
            if not recording.started_s and is_untried(recording, self._examiner.since_s):
                yield recording

    def _in_order(self) -> Iterator[Recording]:
        """Yield the recordings found, and in the end those that have to come last."""
        failed_before: list[Recording] = []
        for recording in self._found():
            # Otherwise one that always fails could hold up the others.
            if self._breaker.half_open and has_failed(recording):
                failed_before.append(recording)
            else:
                yield recording
        examiner = self._examiner
        # Nor those that failed less often.
        yield from sorted(failed_before, key=attempts_before)
        examiner.may_rehash = True
        while examiner.to_rehash:
            yield examiner.to_rehash.popleft()
        examiner.may_wait = True
        while examiner.copies:
            yield examiner.copies.popleft()

    def _found(self) -> Iterator[Recording]:
        """Yield each file found once, whatever its names; report what cannot be looked at."""
        for folder in self._args.audio_path if self._ledger else ():
            self._check_mount(folder, self._ledger)
        # Device and inode: without a ledger, only this keeps a file with two names from becoming
        # two dialogs.
        seen: set[tuple[int, int]] = set()
        for found, rows in self._with_rows(find_files(self._args)):
            if found.is_link:
                if not (self._ledger and self._ledger.knows_below(found.paths[0])):
                    continue  # Nobody knows that there were recordings.
                self.missed_path = True
            recording = Recording(found.paths[0], found.explicit, found.sidecar)
            recording.rows = rows
            self.found += 1
            error: Exception | None = found.error
            files: list[tuple[str, FileState]] = []
            identities: set[tuple[int, int]] = set()
            is_waiting = False
            for path in () if error else found.paths:
                try:
                    status = os.stat(path)
                    state = FileState.from_stat(status)
                except (OSError, ValueError) as problem:
                    error = error or problem
                    continue
                files.append((path, state))
                identities.add((status.st_dev, status.st_ino))
                is_waiting |= is_young(state, self._args.min_age)
            if not files:
                assert error
                is_gone = isinstance(error, FileNotFoundError)  # Not a share that went away.
                is_gone &= not any(map(os.path.lexists, found.paths))
                if is_gone and not (found.error or found.explicit):
                    # If it was not uploaded, the end of the run says that it is lost.
                    what = "gone since its folder was listed"
                    self._tally.leave_out(recording, "gone", what, is_over=False)
                    continue
                self.missed_path |= found.paths[0] in self._args.audio_path
                self._tally.add(recording, result_of_error(unreadable_error(error)))
                continue
            (recording.path, recording.file_state), *recording.siblings = files
            if is_waiting:  # Another program may be converting it.
                self._tally.put_off(recording, f"younger than {self._args.min_age:g} s")
            elif seen.intersection(identities):
                what = "another name of a file that was found before"
                self._tally.leave_out(recording, "under another name", what, is_over=False)
            else:
                # Else another of its names may have a JSON.
                if found.sidecar or self._args.require_json is None:
                    seen |= identities
                yield recording

    def _with_rows(self, found: Iterator[Found]) -> Iterator[tuple[Found, list[Row] | None]]:
        """Add what the ledger has of each path, read for many at once: that takes half the time."""
        while batch := list(itertools.islice(found, ROWS_AT_A_TIME)):
            rows: Mapping[str, list[Row]] = {}
            with contextlib.suppress(LedgerError):  # The next one says so.
                if self._ledger:
                    rows = self._ledger.find_by_stems([each.paths[0] for each in batch])
            for each in batch:
                yield each, rows.get(each.paths[0])

    def _check_mount(self, folder: str, ledger: Ledger | None) -> None:
        """Report a folder that is empty, though the ledger knows recordings in it: 66, at once.

        A folder that is missing is 66, too (_found). Both are Problems' row "65, 66, 76", and set
        missed_path, so that the run is not complete for --report; so does a link below it that
        leads nowhere (_found). Not noticed: a mount point further below (nothing in it counts as
        lost: was_looked_at), a folder that never held recordings, any without a ledger.
        """
        # What is wrong with it is reported when it is searched.
        with contextlib.suppress(OSError, ValueError), os.scandir(folder) as entries:
            if ledger and next(entries, None) is None and ledger.knows_below(folder):
                cause = "the folder is empty, though there were recordings in it"
                meaning = Meaning(os.EX_NOINPUT, "empty-folder", cause, "is it mounted?")
                self.missed_path = True
                self._tally.add(Recording(folder), result_of_error(UploadError(meaning)))

    def _choose(self) -> Iterator[Recording]:
        """Look up and check the recordings; yield those to send or to follow, report the others."""
        try:
            for recording in self._recordings:
                if self._is_wanted(recording):
                    yield recording
                if self._breaker.stopping.is_set():
                    return
        except LedgerError as error:  # While looking for them.
            self._tally.add_error(error)
            return
        self.is_exhausted = True

    def _is_wanted(self, recording: Recording) -> bool:
        """Return whether a worker has to see to a recording; report what is wrong with it."""
        recording.started_s = recording.started_s or time.monotonic()
        try:
            return self._examiner.examine(recording)
        except UploadError as error:
            self._tally.add(recording, result_of_error(error))
        except (OSError, ValueError, OverflowError, RecursionError) as error:
            # One recording's trouble never stops the others.
            self._tally.add(recording, result_of_error(unreadable_error(error)))
        return False


class MetadataExaminer:
    """Looks at the metadata of one recording after the other: waited for, complete, changed."""

    def __init__(
        self, args: Namespace, common: TalkMetadata | None, ledger: Ledger | None, tally: Tally
    ) -> None:
        self._args = args
        self._common = common
        self._ledger = ledger
        self._tally = tally
        self._has_warned = False
        self._dated = 0  # Recordings with the date of --meta-path.
        # In a folder, each run may find one more.
        self._dated_limit = 1 if any(map(os.path.isdir, args.audio_path)) else 2

    def waits_for_json(self, recording: Recording) -> bool:
        """Leave out what is to have a JSON, and has none yet, or one that is still being written.

        Raises UploadError for what waits too long.
        """
        args = self._args
        if not (recording.sidecar or recording.explicit):  # It may have come since the listing.
            recording.sidecar = find_sidecar(recording.path)
        if recording.sidecar:
            with contextlib.suppress(OSError):  # collect_metadata says so.
                if is_young(FileState.of(recording.sidecar), args.min_age):
                    what = f"its JSON is younger than {args.min_age:g} s"
                    self._tally.put_off(recording, what)
                    return True
            return False
        if args.require_json is None:
            return False
        waiting = self._tally.problems.find(recording, WAITING)
        # By a new ctime a file would seem to have come just now.
        is_same = waiting and waiting.is_of(recording.file_state)
        since_s = seconds_of(waiting.since) if waiting and is_same else time.time()
        is_overdue = abs(time.time() - since_s) >= args.require_json
        if (
            recording.explicit
            or is_overdue
            or not is_young(recording.file_state, args.require_json)
        ):
            name = f"{os.path.splitext(os.path.basename(recording.path))[0]}.json"
            advice = "find out why it was not written; or leave out --require-json"
            meaning = Meaning(os.EX_NOINPUT, NO_METADATA, f"no metadata yet: {name}", advice)
            raise UploadError(meaning)
        self._tally.note_waiting(recording.path, recording.file_state, "it has no JSON yet")
        self._tally.put_off(recording, "it has no JSON yet")
        return True

    def has_changed(self, recording: Recording, row: Row) -> bool:
        """Return whether the JSON beside an uploaded recording has other fields than were sent.

        JSON now             without --update-metadata       with it
        same size and times  nothing; it is not read         the same
        rewritten, equal     its new times are remembered    the same
        other fields         warned of, in each run          sent; then the row takes its hash

        "Sent" is: decide, complete_update (which refuses what was split or has another format now,
        had a --meta-path that is missing, or has no dialog ID), then Worker._update, which records
        it, or, if the service refused it, json_refused.

        Only a JSON of another size, mtime or ctime is read, as a nightly export may write all of
        them anew. Raises UploadError for one that cannot be read, or was refused before.
        """
        if not recording.sidecar or not self._ledger:
            return False
        try:
            state = FileState.of(recording.sidecar)
        except FileNotFoundError:  # Removed meanwhile.
            return False
        except OSError as error:
            raise unreadable_error(error, f"metadata file {recording.sidecar}: ") from error
        refused, again = row["json_refused"], self._args.retry_rejected
        before = row["json_size_bytes"], row["json_mtime_ns"], row["json_ctime_ns"]
        is_changed = state != before or (refused and again)
        if is_changed and is_young(state, self._args.min_age):
            self._tally.problems.keep(recording)
        elif is_changed:
            collect_metadata(recording, self._args, self._common)
            assert recording.json
            fields = recording.json.sha256
            if fields not in (row["json_sha256"], refused) or (fields == refused and again):
                return True
            refused = refused if fields == refused else None
            if not self._args.dry_run:
                columns = json_columns(recording.json.state)
                self._ledger.update(recording, json_refused=refused, **columns)
        if refused:
            cause = f"its metadata was not updated, as that was refused before: {row['error']}"
            raise data_error(UPDATE_REFUSED, cause, UPDATE_ADVICE)
        return False

    def complete_update(self, recording: Recording, row: Row) -> None:
        """Complete changed metadata for its dialog, or say why it is not sent.

        Raises UploadError for what would erase fields that the upload had.
        """
        assert recording.metadata is not None and recording.json and self._ledger
        cause = "its metadata has changed since the upload"
        # The file in another format is most likely the same call, but that is no proof.
        stem, suffix = os.path.splitext(stored_path(recording.path))
        is_converted = row["stem"] == stem and row["suffix"] != suffix
        if row["split"] or is_converted:
            why = "its file has another format now" if is_converted else "it was split"
            advice = "update its dialogs with --talk-id"
            self._tally.warn(recording, "split-metadata", f"{cause}, but {why}", advice)
            if not self._args.dry_run:  # Said once.
                columns = json_columns(recording.json.state)
                self._ledger.update(recording, json_sha256=recording.json.sha256, **columns)
            if recording.action is Action.UPDATE_METADATA:
                recording.action = Action.LEAVE
        elif recording.action is not Action.UPDATE_METADATA:
            advice = "run the same command with --update-metadata"
            self._tally.warn(recording, "metadata-changed", cause, advice)
        elif row["had_meta_path"] and not self._args.meta_path:
            cause += ", but the upload had a --meta-path and this run has none"
            raise data_error("no-meta-path", cause, "add --meta-path")
        elif not (row["talk_id"] or row["found_id"]):  # Somebody has written that it is uploaded.
            cause += ", but the ledger has no dialog ID"
            raise data_error("no-dialog-id", cause, "write it into the ledger's found_id")
        else:
            self.warn(recording)
            recording.metadata_sha256 = hash_metadata(recording, self._args)
            # Keys left out are erased.
            if key := self._args.lookup_key or row["lookup_key"]:
                recording.metadata.fields[key] = recording.sha256

    def warn(self, recording: Recording) -> None:
        """Warn of what is doubtful in metadata that are going to be sent."""
        if recording.has_placeholders and not self._has_warned:
            self._has_warned = True
            # Of the run, or each run would have a new one.
            cause = f"{recording.path}: no metadata given, so placeholder fields are sent"
            advice = "use --meta-path or call.json (said once a run)"
            self._tally.warn(None, "placeholders", cause, advice)
        for text in recording.json.warnings if recording.json else ():
            self._tally.warn(recording, "date", text, DATE_ADVICE)
        if self._common and "date" in self._common.fields and recording.metadata:
            self._dated += recording.metadata.fields["date"] == self._common.fields["date"]
            if self._dated == self._dated_limit:
                cause = "the date in --meta-path is sent with several recordings"
                advice = "leave it out there, and give each recording a JSON with its own"
                self._tally.warn(None, "common-date", cause, advice)


class ReplacedNames:
    """Recordings that failed in an earlier run, and whose names others have by now."""

    def __init__(self, ledger: Ledger | None, tally: Tally) -> None:
        self._ledger = ledger
        self._tally = tally
        self._replaced: dict[str, Recording] = {}  # By the SHA-256 of what failed.

    def note(self, rows: Sequence[Row], recording: Recording) -> None:
        """Note what other audio the ledger has of a recording's path."""
        for row in sorted(rows, key=lambda row: str(row["uploaded_at"])):
            if row["sha256"] == recording.sha256 or not is_same_path(row, recording.path):
                continue
            if row["state"] == "uploaded":
                recording.replaces = row["talk_id"] or row["found_id"] or ""
            if row["state"] != "failed" or row["duration_s"]:
                continue
            # What had changed under way, or was not complete, is the same call.
            has_changed = self._tally.problems.find(recording, FILE_CHANGED)
            if not has_changed and not is_beginning(row, recording.path):
                self._replaced[row["sha256"]] = recording

    def warn(self) -> None:
        """Warn of those that nothing can upload any more; may raise LedgerError."""
        lost: dict[Recording, None] = {}  # In order, each once.
        for sha256, recording in self._replaced.items():
            row = self._ledger and self._ledger.find_by_hash(sha256)
            result = recording.result
            # It may have been uploaded by another name.
            if row and row["state"] == "failed" and result and result.outcome is Outcome.UPLOADED:
                lost[recording] = None
        for recording in lost:
            cause = "another recording has its name now, and the first one was not uploaded"
            advice = "restore the first one under another name, if there is a copy"
            self._tally.warn(recording, "name-used-again", cause, advice)


class CallFiles:
    """Chooses one of a call's files, which differ only in suffix, and leaves out the others.

    First the one that was sent, if it has not changed (match). If that is gone, none: it is the
    same call (uploaded_sibling, Examiner._is_left_out). Else the best that can be read
    (Examiner._check_audio).
    """

    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def match(
        self, rows: Sequence[Row], recording: Recording
    ) -> tuple[Row | None, Row | None, bool]:
        """Choose one of a call's files by what the ledger has of them.

        Returns its row, if it is known; the row of a file of the same call that is not there any
        more; and whether one is known but for its ctime.
        """
        gone = None
        known, only_ctime_differs = match_file(rows, recording)
        if known:
            self.choose(recording, recording.path, recording.file_state)
        elif rows:
            gone = uploaded_sibling(rows, recording, self._tally.problems)
            self._choose_sent(rows, recording)
            known, only_ctime_differs = match_file(rows, recording)
            if gone and gone["state"] == "uploaded" and recording.sidecar:
                not_emptied = (file for file in recording.files if file[1].size_bytes)
                self.choose(recording, *next(not_emptied))
                known = gone  # Converted since, but its JSON may have changed.
        return known, gone, only_ctime_differs

    def choose(self, recording: Recording, path: str, state: FileState) -> None:
        """Take one of the files of a call, and leave out the others."""
        for other, _ in recording.files:
            if other != path:
                left_out = Recording(other, recording.explicit)
                what = f"the same call as {path}"
                self._tally.leave_out(left_out, "in another format", what)
        if path != recording.path:
            recording.sha256 = ""
        recording.path, recording.file_state, recording.siblings = path, state, ()

    def _choose_sent(self, rows: Sequence[Row], recording: Recording) -> None:
        """Of a call's files take the one of which there may be a dialog, if it has not changed."""
        for path, state in recording.files if recording.siblings else ():
            for row in rows:
                if was_sent([row], path) and has_audio(row, path):
                    self.choose(recording, path, state)
                    return


class Examiner:
    """Looks at one recording after the other: leaves it out, reports what is known, or claims it.

    One at a time, so that of two recordings with the same audio the first is sent.
    """

    def __init__(
        self,
        args: Namespace,
        common: TalkMetadata | None,
        ledger: Ledger | None,
        breaker: CircuitBreaker,
        tally: Tally,
    ) -> None:
        # What comes last: known but for its new ctime, or a copy of what is under way.
        self.to_rehash: collections.deque[Recording] = collections.deque()
        self.copies: collections.deque[Recording] = collections.deque()
        self.may_rehash = self.may_wait = False
        self._args = args
        self._common = common
        self._ledger = ledger
        self._breaker = breaker
        self._tally = tally
        self.since_s = since_limit_s(args, ledger)
        self._claimed: set[str] = set()
        self._planned: dict[str, Row] = {}  # What a dry run has in place of rows.
        self.replaced = ReplacedNames(ledger, tally)
        self._files = CallFiles(tally)
        self._metadata = MetadataExaminer(args, common, ledger, tally)

    def examine(self, recording: Recording) -> bool:
        """Return whether a worker has to see to a recording.

        If not, its result is reported, or it is looked at again later. Raises UploadError.
        """
        rows, recording.rows = recording.rows, None
        if rows is None:
            rows = self._ledger.find_by_stem(recording.path) if self._ledger else ()
        known, gone, only_ctime_differs = self._files.match(rows, recording)
        if known:
            return self._act_on_row(recording, known)
        if only_ctime_differs and not self.may_rehash:
            self.to_rehash.append(recording)
            return False
        is_known = False
        if recording.metadata is None:  # Not looked at before.
            if self._is_left_out(recording, gone, bool(rows)):
                return False
            # What was uploaded before needs no check: the options or the JSON of then may be gone.
            is_known = only_ctime_differs and self._is_known_audio(recording)
            if not (is_known or self._check(recording)):
                return False
        if not self._ledger:
            return self._send(recording)
        if not (is_known or recording.metadata_sha256):
            hash_recording(recording, self._args, self._breaker.stopping)
        self.replaced.note(rows, recording)
        return self._claim_or_leave(recording, rows, self._ledger)

    def _is_left_out(self, recording: Recording, gone: Row | None, is_known: bool) -> bool:
        """Leave out what is old and new to the ledger, and what was sent in another format.

        gone: the ledger's row of a file of the same call that is not there any more.
        """
        if not gone:
            is_known = is_known or self._tally.problems.seeks(recording)
            is_old = is_before(recording.file_state, self.since_s) and not is_known
            if is_old:
                self._files.choose(recording, recording.path, recording.file_state)
                text = f"older than {self._args.since}"
                self._tally.leave_out(recording, "before --since", text)
            return is_old
        decision = decide(gone, recording, self._args, self._claimed)
        if decision.action is Action.SEND:  # By --retry-unknown.
            return False
        self._files.choose(recording, recording.path, recording.file_state)
        if gone["state"] == "unknown":
            self._tally.add(recording, result_of_row(gone, decision.reason))
        else:
            what = f"the same call as {gone['path']}, which is {gone['state']}"
            self._tally.leave_out(recording, "in another format", what)
        return True

    def _check_audio(self, recording: Recording) -> bool:
        """Read the header of the file to send; return False if it is left out.

        Of files of one call, what the service takes as it is goes first, then the order of FORMATS.
        Raises UploadError if all of them are broken: that of the first.
        """
        best: tuple[Audio, str, FileState] | None = None
        first_error: UploadError | None = None
        for path, _ in recording.files:
            try:
                audio, state = read_header(path, self._args)
            except UploadError as error:
                first_error = first_error or error
                rows = self._ledger.find_by_stem(path) if self._ledger else ()
                if was_sent(rows, path):  # What is beside it may have been made of it.
                    best = None
                    break
                continue
            if not best or not audio.needs_conversion:
                best = audio, path, state
            if not audio.needs_conversion:
                break
        if not best:
            assert first_error
            self._files.choose(recording, recording.path, recording.file_state)
            if self._args.min_duration and first_error.meaning.id in ("empty", "no-samples"):
                self._tally.leave_out(recording, "too short", "without audio so far")
                return False
            raise first_error
        recording.audio, path, state = best
        if recording.sha256 and path == recording.path and state != recording.file_state:
            raise file_changed_error("changed or was replaced after it was hashed")
        self._files.choose(recording, path, state)
        duration_s = recording.audio.duration_s
        if 0 < duration_s < self._args.min_duration:
            self._tally.leave_out(recording, "too short", shorter(duration_s, self._args))
            return False
        return True

    def _claim_or_leave(self, recording: Recording, rows: Sequence[Row], ledger: Ledger) -> bool:
        """Act on what the ledger has of a recording's audio; return like examine.

        A copy of one under way is put off until all else is done (copies), and then waits for the
        first one's end: uploaded: already there, with its ID; failed: the copy is sent; rejected,
        unknown: it is left, too; if the run is stopped: 75. Without a ledger nothing is hashed, and
        a copy is another dialog.
        """
        if recording.sha256 in self._planned:
            check_copy(self._planned[recording.sha256], recording)
            self._tally.add(recording, Result(Outcome.ALREADY))
            return False
        row = ledger.find_by_hash(recording.sha256)
        while row:
            decision = decide(row, recording, self._args, self._claimed)
            if decision.action is Action.SEND:
                log.info(f"{recording.path}: sent again; {decision.reason}")
                self._tally.forget_moved(row)
                break
            if decision.action is Action.LEAVE_OUT:
                what = shorter(row["duration_s"], self._args)
                self._tally.leave_out(recording, "too short", what)
                return False
            if decision.action is not Action.WAIT:
                is_copy = self._is_copy(recording, row)
                if is_copy:
                    check_copy(row, recording)
                else:
                    self._remember_path(recording, row, ledger)
                return self._act_on_row(recording, row, is_copy)
            if not self.may_wait:
                self.copies.append(recording)
                return False
            if self._breaker.stopping.wait(TICK_S):  # Its row may never change again.
                raise stopped_error()
            row = ledger.find_by_hash(recording.sha256)
        if self._args.retry_unknown:
            rows = [row for row in rows if row["state"] != "unknown"]
        check_own_json(rows, recording, self._tally.problems.find(recording, SAME_JSON))
        if self._args.dry_run:
            own = recording.json.sha256 if recording.json else None
            known = {"state": "uploaded", "path": stored_path(recording.path), "json_sha256": own}
            self._planned[recording.sha256] = known
        else:
            ledger.claim(recording)
        self._claimed.add(recording.sha256)
        return self._send(recording)

    def _is_copy(self, recording: Recording, row: Row) -> bool:
        """Return whether a row's own recording is another one than this, with the same audio.

        So it stays when that one is archived. Nor is it that one, moved, if both its mtime and its
        JSON are others.
        """
        problem = self._tally.problems.find(recording, COPY_DIFFERS)
        if problem and problem.is_of(recording.file_state):
            return True
        own = stored_path(recording.path)
        is_elsewhere = row["path"] != own and row["mtime_ns"] != recording.file_state.mtime_ns
        has_other_json = recording.json and row["json_sha256"] not in (None, recording.json.sha256)
        is_another = row["state"] == "uploaded" and is_elsewhere and has_other_json
        return bool(is_another) or original_is_there(row, recording)

    def _check(self, recording: Recording) -> bool:
        """Check a recording's JSON and audio, collect its metadata; return False if it waits."""
        try:
            if self._metadata.waits_for_json(recording):
                return False
        except UploadError as error:
            # What is too short needs none, nor what was moved without it after its upload.
            if self._args.min_duration and not self._check_audio(recording):
                return False
            problem = self._tally.problems.find(recording, error.meaning.id)
            is_of_today = problem is not None and problem.is_of_today()
            if is_of_today or not self._is_known_audio(recording):  # Hashed once a day.
                raise
        if not self._check_audio(recording):
            return False
        collect_metadata(recording, self._args, self._common)
        return True

    def _is_known_audio(self, recording: Recording) -> bool:
        """Hash a file that may have been replaced; return whether its audio is uploaded."""
        if not self._ledger:
            return False
        recording.file_state = FileState.of(recording.path)
        hash_audio(recording, self._breaker.stopping)
        row = self._ledger.find_by_hash(recording.sha256)
        if not row or row["state"] != "uploaded":
            return False
        self._files.choose(recording, recording.path, recording.file_state)
        return True

    def _send(self, recording: Recording) -> bool:
        self._metadata.warn(recording)
        recording.action = Action.SEND
        return True

    def _act_on_row(self, recording: Recording, row: Row, is_copy: bool = False) -> bool:
        """Report a recording as the ledger has it; return True if a worker has to see to it.

        is_copy: the row's own recording is elsewhere, and only the JSON beside that one counts.
        """
        recording.row, recording.sha256 = row, row["sha256"]
        may_be_new = row["state"] == "uploaded" and not is_copy
        is_new = may_be_new and self._metadata.has_changed(recording, row)
        decision = decide(row, recording, self._args, self._claimed, is_new)
        recording.action = decision.action
        if is_new:
            self._metadata.complete_update(recording, row)
        updates = self._tally.updates_breaker
        if recording.action is Action.UPDATE_METADATA and updates.stopping.is_set():
            self._tally.problems.keep(recording)
            self._tally.leave_out(recording, "not updated", updates.cause, is_over=False)
            return False
        if recording.action in (Action.FOLLOW, Action.UPDATE_METADATA):
            self._claimed.add(recording.sha256)
            return True
        if row["sha256"] not in self._tally.looked_up:  # Reported already.
            self._tally.add(recording, result_of_row(row, decision.reason))
        return False

    def _remember_path(self, recording: Recording, row: Row, ledger: Ledger) -> None:
        """Give a row the path where its audio is now: it spares the next run a hash.

        Not while a file of another format is at its present path: without the row that file would
        be taken for another call.
        """
        others = formats_of_call(row["stem"]) - {row["suffix"].lower()}
        own = stored_path(recording.path)
        if row["path"] == own or not others:
            stem, suffix = os.path.splitext(own)
            _, mtime_ns, ctime_ns = recording.file_state
            ledger.update(recording, stem=stem, suffix=suffix, mtime_ns=mtime_ns, ctime_ns=ctime_ns)


def is_young(state: FileState, limit_s: float) -> bool:
    """Return whether a file changed less than limit_s ago, so that it may still be written to.

    By the later of mtime and ctime: a file that a tool copied with its old mtime is young when it
    arrives. An mtime in the future is wrong rather than young, but for a slight clock skew; a ctime
    up to a day ahead is that of a file server whose clock is ahead, by which all is young.
    """
    if not limit_s:
        return False
    now_s = time.time()
    age_s = now_s - max(state.mtime_ns, state.ctime_ns) / 1e9
    if age_s < -limit_s:
        age_s = now_s - state.ctime_ns / 1e9
        return -CLOCK_AHEAD_LIMIT_S < age_s < limit_s
    return age_s < limit_s


def shorter(duration_s: float, args: Namespace) -> str:
    """Say that a recording is too short."""
    return f"{duration_s:,.1f} s, shorter than {args.min_duration:g} s"


def since_limit_s(args: Namespace, ledger: Ledger | None) -> float:
    """Return the time before which a recording is older than --since, in seconds since 1970."""
    if not args.since:
        return -math.inf
    limit_s: float = datetime.datetime.combine(args.since, datetime.time()).timestamp()
    if ledger:
        # What came after the first run is not old, and if it has no row, somebody waits for it: the
        # service, cron, a share or a JSON may have been away for longer.
        limit_s = min(limit_s, ledger.first_complete_run_s())
    return limit_s


def is_before(state: FileState, since_s: float) -> bool:
    """Return whether a file is older than a time, by the later of its mtime and ctime."""
    return max(state.mtime_ns, state.ctime_ns) < since_s * 1e9


def is_untried(recording: Recording, since_s: float) -> bool:
    """Return whether a run that was stopped would have sent a recording, as far as is seen."""
    rows, state = recording.rows or (), recording.file_state
    if not rows:
        return not is_before(state, since_s)
    return not any(
        row["state"] not in ("failed", "sending")
        and is_same_path(row, recording.path)
        and is_same_version(row, state)
        for row in rows
    )


def has_failed(recording: Recording) -> bool:
    """Return whether the recording at this path failed before."""
    rows = recording.rows or ()
    return any(row["state"] == "failed" and is_same_path(row, recording.path) for row in rows)


def attempts_before(recording: Recording) -> int:
    """Return how often earlier runs have tried to upload the recording at this path."""
    return max((row["attempts"] for row in recording.rows or ()), default=0)


def is_beginning(row: Row, path: str) -> bool:
    """Return whether a file begins with a row's audio: it has only grown since."""
    import hashlib

    digest, left_bytes = hashlib.sha256(), row["size_bytes"]
    with contextlib.suppress(OSError), open(path, "rb") as file:
        while left_bytes and (data := file.read(min(left_bytes, SMALL_FILE_LIMIT_BYTES))):
            left_bytes -= len(data)
            digest.update(data)
    return bool(digest.hexdigest() == row["sha256"])


def is_same_path(row: Row, path: str) -> bool:
    """Return whether a row of find_by_stem is of this path."""
    suffix: str = row["suffix"]
    return suffix == printable(os.path.splitext(path)[1])


def was_sent(rows: Sequence[Row], path: str) -> bool:
    """Return whether there may be a dialog of what was at this path; rows: of find_by_stem."""
    return any(row["state"] in MAY_BE_IN_SERVICE and is_same_path(row, path) for row in rows)


def is_same_version(row: Row, state: FileState) -> bool:
    """Return whether a file is as a row has it, but for its ctime."""
    return (row["size_bytes"], row["mtime_ns"]) == state[:2]


def original_is_there(row: Row, recording: Recording) -> bool:
    """Return whether the row's own recording is still there, at another path than this one."""
    own = stored_path(recording.path)
    if row["path"] == own or not has_audio(row, row["path"]):
        return False
    # A folder may have two names.
    folders = {os.path.realpath(os.path.dirname(path)) for path in (row["path"], own)}
    return len(folders) > 1 or os.path.basename(row["path"]) != os.path.basename(own)


def has_audio(row: Row, path: str) -> bool:
    """Return whether a file has a row's audio: its name may have been used again, or it touched."""
    try:
        state = FileState.of(path)
        if is_same_version(row, state):
            return True
        if state.size_bytes != row["size_bytes"]:
            return False
        return bool(hash_file(path, lambda: None) == row["sha256"])
    except FileNotFoundError:
        return False
    except (OSError, UploadError):
        return True


def check_own_json(rows: Sequence[Row], recording: Recording, before: OpenProblem | None) -> None:
    """Raise UploadError if a recording's JSON has not been written since it went with other audio.

    Either a program has changed the audio after its upload (redacted, tagged or completed it), so
    that this would be a second dialog of one call; or it is another call of the same name, whose
    own JSON has not come yet. rows: those of find_by_stem; before: the same problem in an earlier
    run, as the first one may have another name by now.
    """
    if not recording.json:
        return
    state = recording.json.state
    others = [
        (row["json_size_bytes"], row["json_mtime_ns"])
        for row in rows
        if row["state"] in MAY_BE_IN_SERVICE and row["sha256"] != recording.sha256
    ]
    if others or before is None or not before.is_of(recording.file_state):
        is_old = state[:2] in others
    else:
        is_old = utc(state.ctime_ns / 1e9) <= before.since
    if is_old:
        cause = "not sent: its JSON was sent with other audio of this name"
        advice = "if this is another call, write its JSON anew; if not, move it out of the folder"
        raise data_error(SAME_JSON, cause, advice)


def check_copy(row: Row, recording: Recording) -> None:
    """Raise UploadError if a copy of an uploaded recording has a JSON with other fields."""
    is_uploaded = row["state"] == "uploaded"
    if is_uploaded and recording.json and recording.json.sha256 != row["json_sha256"]:
        with contextlib.suppress(UploadError):  # Both may have changed alike.
            own = find_sidecar(row["path"])
            if own and sha256_of(read_metadata(own)) == recording.json.sha256:
                return
        cause = f"not sent: same audio as {row['path']}, other metadata"
        advice = "move it away, with its JSON; or correct the dialog with --talk-id"
        raise data_error(COPY_DIFFERS, cause, advice)


def match_file(rows: Sequence[Row], recording: Recording) -> tuple[Row | None, bool]:
    """Return the uploaded row of this very file, and whether one differs only in its ctime.

    same size, mtime, ctime  known: neither its audio nor its header is read
    new ctime                hashed, last in the run: a chmod gives the row the new ctime; a file
                             replaced by `cp -p` or by a recorder without a clock is another call
    new size or mtime        hashed: another call, unless the ledger has its SHA-256

    rows: those of find_by_stem.
    """
    state, only_ctime_differs = recording.file_state, False
    for row in rows:
        if row["state"] != "uploaded" or not is_same_path(row, recording.path):
            continue
        if is_same_version(row, state):
            if row["ctime_ns"] == state.ctime_ns:
                return row, False
            only_ctime_differs = True
    return None, only_ctime_differs


def uploaded_sibling(rows: Sequence[Row], recording: Recording, problems: Problems) -> Row | None:
    """Return the row of the same call in a format of which no file was found.

    A night job may have turned X.wav into X.mp3 after the upload. If there is a row of a file that
    is there, either that file was sent, or its name has been used again, for another call. It is
    another call, too, if a later one had the name and was not sent: what is there may be made of
    that one.
    """
    # Emptied is as good as gone.
    present = {path for path, state in recording.files if state.size_bytes}
    if not present or any(was_sent(rows, path) for path in present):
        return None
    # As in find_files.
    suffixes = {os.path.splitext(path)[1].lower() for path in present}
    rows = [row for row in rows if {row["suffix"].lower(), *suffixes} <= {*SUFFIXES}]
    sent = [row for row in rows if row["state"] in MAY_BE_IN_SERVICE]
    latest = max(sent, key=lambda row: row["sequence"] or 0, default=None)
    if not latest:
        return None
    later_ns = [
        row["mtime_ns"]
        for row in rows
        if row["state"] in ("failed", "rejected") and not row["duration_s"]
        if not any(is_same_path(row, path) for path in present)
        # Not one that was replaced, by a copy with its old time, and then sent.
        if row["updated_at"] > (latest["uploaded_at"] or latest["updated_at"])
    ]
    # What was not tried has no row. What was only touched has the same size.
    not_tried = problems.not_tried_at(latest["path"])
    later_ns += [s.mtime_ns for s in not_tried if s.size_bytes not in (0, latest["size_bytes"])]
    made_ns = max(state.mtime_ns for path, state in recording.files if path in present)
    is_of_later = any(latest["mtime_ns"] < mtime_ns <= made_ns for mtime_ns in later_ns)
    return None if is_of_later else latest


# --- 14. Counting and reporting ---------------------------------------------------------------


# Meaning.id of what is noted for the run, whichever recording met it, and of some special cases.
OUTAGE = "outage"
UNDELIVERED = "undelivered"  # By the service or the network, though another upload worked.
LOST = "lost"
NO_METADATA = "no-metadata"
COPY_DIFFERS = "copy-differs"
SAME_JSON = "same-json"
WAITING = "waiting"  # No problem yet: waits for its JSON, or was not tried.
LOOKUP_FAILED = "lookup"

# How long a problem has to last before a run with --quiet says it, by cause, else by exit code;
# what is not listed is said at once. May pass by itself: an hour. A person can do nothing: a day.
SAID_AFTER_S: dict[str | int, float] = {
    OUTAGE: PASSING_S,
    LOOKUP_FAILED: PASSING_S,
    UNDELIVERED: LOOKUP_HOPE_S,
    UPDATE_TOO_EARLY: LOOKUP_HOPE_S,
    UNKNOWN.id: LOOKUP_HOPE_S,  # With --lookup-key; without it nothing would find the dialog.
    WAITING: math.inf,
    os.EX_TEMPFAIL: PASSING_S,
}


class OpenProblem:
    """A problem that lasts: a row of problems, and what this run has done about it."""

    def __init__(
        self, text: str, since: str, said_at: str | None, file_state: FileState | None
    ) -> None:
        self.text = text
        self.since = since
        self.said_at = said_at  # By a run with --quiet.
        self.file_state = file_state  # None: there was no file to look at.
        self.is_met = False  # By this run.
        self.is_said = False  # By this run, with --quiet.

    def is_of(self, state: FileState) -> bool:
        """Return whether it is of this very file, but for its ctime."""
        return self.file_state is not None and self.file_state[:2] == state[:2]

    def is_of_today(self) -> bool:
        """Return whether it was said, or else found first, on this local day."""
        return local_day(self.said_at or self.since) == today()

    def has_lasted(self, key: ProblemKey, args: Namespace) -> bool:
        """Return whether it lasts for so long that a person has to hear of it."""
        after_s = SAID_AFTER_S.get(key.cause, SAID_AFTER_S.get(key.exit_code, 0.0))
        if key.cause == UNKNOWN.id and not args.lookup_key:
            after_s = 0.0
        # A clock may jump either way.
        return abs(time.time() - seconds_of(self.since)) >= after_s


class OpenProblems:
    """What earlier runs have left open, and what this run has met of it; the ledger keeps it.

    Every method that changes it may raise LedgerError.
    """

    def __init__(self, args: Namespace, ledger: Ledger | None) -> None:
        self._args = args
        self._ledger = None if args.dry_run else ledger
        # By path, as stored; "": those of the run. A dry run changes none of them.
        self._open: dict[str, dict[ProblemKey, OpenProblem]] = {"": {}}
        for key, problem in ledger.problems().items() if ledger else ():
            self._open.setdefault(key.path, {})[key] = problem
        # The files that an earlier run left open: size and mtime, and their paths.
        self._sought: set[tuple[int, int]] = set()
        self._sought_paths = {*self._open} - {""}
        # Of those, what it has tried: both paths, and size and mtime.
        self._tried: set[str | tuple[int, int]] = set()
        for path, problems in self._open.items():
            for key, problem in problems.items():
                self._sought |= {problem.file_state[:2]} if problem.file_state else set()
                if key.cause != WAITING:
                    self._tried |= {path, problem.file_state[:2] if problem.file_state else path}
        for path, size_bytes, mtime_ns in ledger.files_not_uploaded() if ledger else ():
            self._sought_paths.add(path)
            self._sought.add((size_bytes, mtime_ns))
            self._tried |= {path, (size_bytes, mtime_ns)}
        # Of those, what this run has met: by its path, or by another one, so that it is not lost.
        self._met_paths: set[str] = set()
        self._met_elsewhere: set[tuple[int, int]] = set()

    def find(self, recording: Recording, cause: str) -> OpenProblem | None:
        """Return the problem of this cause that a recording had in an earlier run."""
        of_path = self._of(stored_path(recording.path))
        return next((problem for key, problem in of_path if key.cause == cause), None)

    def not_tried_at(self, path: str) -> list[FileState]:
        """Return what earlier runs have found at a path, as stored, and not even tried."""
        codes = (os.EX_DATAERR, os.EX_NOINPUT)
        found = [p for key, p in self._of(path) if key.exit_code in codes or key.cause == WAITING]
        return [problem.file_state for problem in found if problem.file_state]

    def seeks(self, recording: Recording) -> bool:
        """Return whether an earlier run has left something open of a recording that it tried."""
        return not self._tried.isdisjoint({stored_path(recording.path), recording.file_state[:2]})

    def keep(self, recording: Recording) -> None:
        """Take what is open of a recording as met: whether it lasts cannot be seen yet."""
        stored = stored_path(recording.path)
        self._meet(stored, recording.file_state)
        self._keep_other_formats(stored)
        for key, problem in self._of(stored):
            problem.is_met = True
            problem.is_said |= key.cause == NO_METADATA and bool(recording.sidecar)  # It has come.

    def wait(self, path: str, state: FileState, text: str) -> None:
        """Note that a recording waits for its JSON, or was not tried; nothing is said of that.

        If it is gone before it is uploaded or refused, it is lost. Not noted is what may have been
        a temporary file, as it is empty or has changed five minutes ago, nor, with --min-duration,
        what may be left out for its length.
        """
        if is_young(state, STEADY_AFTER_S) or self._args.min_duration or not state.size_bytes:
            return
        key = ProblemKey(stored_path(path), os.EX_OK, WAITING)
        problem = self._open.get(key.path, {}).get(key)
        if problem and problem.is_of(state):
            problem.is_met = True
        elif self._ledger:
            if problem:  # Its name was used again.
                self._forget(self._ledger, key)
            self._store(self._ledger, key, text, state)

    def forget_moved(self, row: Row) -> None:
        """Forget what is open of the file that a row had, if it is sent by another name now."""
        if self._ledger and not os.path.lexists(row["path"]):
            for key, problem in self._of(row["path"]):
                if problem.file_state and is_same_version(row, problem.file_state):
                    self._forget(self._ledger, key)

    def forget_ledger(self) -> None:
        """Use the ledger no more: it may be what the run waits for."""
        self._ledger = None

    def _of(self, path: str) -> list[tuple[ProblemKey, OpenProblem]]:
        return list(self._open.get(path, {}).items())

    def _meet(self, path: str, file_state: FileState) -> None:
        """Remember a file that this run has met, if an earlier one left it open."""
        if path in self._sought_paths:
            self._met_paths.add(path)
        elif file_state[:2] in self._sought:
            self._met_elsewhere.add(file_state[:2])

    def _keep_other_formats(self, path: str) -> None:
        """Take what is open of a call in other formats as met: this file may be made of it."""
        stem, own = os.path.splitext(path)
        suffixes = {*SUFFIXES, *map(str.upper, SUFFIXES)} if len(self._open) > 1 else set()
        for suffix in suffixes - {own} if own in suffixes else ():
            for _, problem in self._of(f"{stem}{suffix}"):
                problem.is_met = problem.is_said = True

    def _store(
        self, ledger: Ledger, key: ProblemKey, text: str, file_state: FileState | None
    ) -> OpenProblem:
        """Note that this run has met a problem; return it."""
        ledger.note_problem(key, text, file_state)
        of_path = self._open.setdefault(key.path, {})
        problem = of_path.setdefault(key, OpenProblem(text, utc(), None, file_state))
        problem.text, problem.file_state, problem.is_met = text, file_state, True
        return problem

    def _forget(self, ledger: Ledger, key: ProblemKey) -> None:
        ledger.forget_problem(key)
        of_path = self._open[key.path]
        del of_path[key]
        if key.path and not of_path:
            del self._open[key.path]


class Problems(OpenProblems):
    """What an operator hears: the way of errors and warnings to stderr.

    Without --quiet, or without a ledger, a run says at once all that it finds. With both:

    problem                        said first     again     over when
    of a recording, by its path:
      65, 66, 76                   at once        each day  it is uploaded or left out, or meets
      75, may pass by itself       after an hour  each day  another error; or a run that looked at
      unknown, with --lookup-key   after a day    each day  everything has not met it, and it is
      undelivered, though other    after a day    each day  not lost (_clear_or_lose)
        uploads worked
      update of a new dialog       after a day    each day  as above
      lost: gone, not uploaded     at once        never     it is uploaded, or its row is deleted
      warning                      at once        each day  as above
    of the run, path "":
      outage: no upload works      after an hour  each day  an upload works
      lookup failed                after an hour  each day  a lookup works
      other errors (77, 78, ...;   at once        each day  not met by a run that has uploaded,
        75: after an hour)                                  or has looked at everything
      warning                      at once        each day  not met by a run that has done both
    not kept here:
      of the ledger                at once        each day  (LedgerError.level, is_said_today); in
                                                            each run, if it has no -lock file
      before it is open; a bug; a  at once        each run  (main, report_bug, Console._print,
        lost stdout; the summary                            Run._end)
        after a signal

    Never said, and no problem yet: what waits, or was not tried (OpenProblems.wait).
    Met: seen by this run, at its path, or, by size and mtime, at another one.
    _remember says it first, by SAID_AFTER_S; _say_again each day, at the end of the first run of a
    local day, all that lasts. So of a service that is down from 02:00 to 05:00 the first run after
    03:00 with anything to upload says one line; no other run says anything, but of responses that
    were lost and of updates of metadata. Said again on the same day: what was over and came back, a
    path with another error, a second warning of one kind (_remember); and everything, in each run,
    once the ledger fails (note).
    The ledger keeps what is open, for --report. Every method may raise LedgerError.
    """

    def __init__(self, args: Namespace, ledger: Ledger | None) -> None:
        super().__init__(args, ledger)
        self.has_looked_up = False  # With success, or nothing is unknown any more.
        self._has_uploaded = False
        # What failed through the service or the network.
        self._undelivered: list[tuple[str, str, FileState | None]] = []
        self._lines: collections.Counter[str] = collections.Counter()  # By cause, on this day.
        if self._ledger and args.quiet:
            said = ((key, p) for each in self._open.values() for key, p in each.items())
            causes = (key.cause for key, p in said if p.said_at and p.is_of_today())
            # Never said again, so that nobody would hear of the others.
            self._lines.update(cause for cause in causes if cause != LOST)
        self._lines_before = self._lines.copy()

    def note(self, path: str, error: UploadError, file_state: FileState | None = None) -> None:
        """Take a problem of a recording, or with path "" of the run."""
        meaning, text = error.meaning, clean(masked(str(error)))
        try:
            if self._ledger:
                stored, code = stored_path(path) if path else "", meaning.exit_code
                state = file_state if file_state and any(file_state) else None
                if state and meaning.id != LOST:
                    self._meet(stored, state)
                    if code == os.EX_TEMPFAIL:
                        self._keep_other_formats(stored)
                key = self._key(stored, meaning)
                if key.cause in (OUTAGE, UNDELIVERED):
                    self._undelivered.append((stored, text, state))
                for other, problem in self._of(stored) if code and stored else ():
                    if key.path == stored:  # Its own error; for its JSON it goes on waiting.
                        is_over = other.cause == WAITING and meaning.id != NO_METADATA
                    else:  # What it had of its own before it got as far as this is over.
                        is_over = other.exit_code != os.EX_OK and other.cause != UNDELIVERED
                        is_over &= not problem.is_met
                    if is_over:
                        self._forget(self._ledger, other)
                self._remember(self._ledger, key, text, state)
        except LedgerError:
            self.forget_ledger()
            raise
        finally:  # The line comes all the same.
            if not (self._ledger and self._args.quiet):
                self._say(meaning.exit_code, meaning.id, f"{path}: {text}" if path else text)

    def clear(self, recording: Recording, was_sent: bool) -> None:
        """Forget what is over, as a recording was uploaded (was_sent), updated or left out."""
        if self._ledger is None:
            return
        if was_sent:
            self._has_uploaded = True
            self._clear_run(self._ledger, is_complete=False)
        if self._sought_paths or len(self._open) > 1:  # Else none is of a recording.
            row, stored = recording.row, stored_path(recording.path)
            if row is None or row["path"] != stored:
                self._meet(stored, recording.file_state)
            for key, problem in self._of(stored):
                if not problem.is_met:
                    self._forget(self._ledger, key)

    def finish(self, is_complete: bool) -> set[int]:
        """Say what lasts or is lost; return exit codes. is_complete: all was looked at."""
        ledger, codes = self._ledger, set[int]()
        if ledger:
            for path, text, file_state in self._undelivered if self._has_uploaded else ():
                key = ProblemKey(path, os.EX_TEMPFAIL, UNDELIVERED)
                self._remember(ledger, key, text, file_state)
            self._clear_run(ledger, is_complete)
            if is_complete:
                codes = self._clear_or_lose(ledger)
            if self._args.quiet:
                self._say_again(ledger)
        for cause, number in self._lines.items():
            if self._args.quiet and self._lines_before[cause] <= SAID_LIMIT < number:
                where = "--report" if ledger else "leave out --quiet"
                log.error(f"and {number - SAID_LIMIT:,} more ({cause}): {where}")
        return codes

    def _key(self, path: str, meaning: Meaning) -> ProblemKey:
        """Say whether a problem is the recording's or the run's, and of which cause."""
        code = meaning.exit_code
        # That an update failed does not show that uploads do.
        if meaning.is_outage and code == os.EX_TEMPFAIL and meaning.id != UPDATE_FAILED:
            key = ProblemKey(path, code, UNDELIVERED)
            # What has failed though others were uploaded is no sign of an outage, unless nothing
            # connects.
            is_known = key in self._open.get(path, {}) and meaning.id != NO_CONNECTION.id
            return key if is_known else ProblemKey("", code, OUTAGE)
        if meaning.stops_run:
            return ProblemKey("", code, meaning.id)
        return ProblemKey(path, code, self._cause(path, meaning))

    def _cause(self, path: str, meaning: Meaning) -> str:
        if meaning.id == REJECTED_BEFORE:  # The cause that was noted then.
            for key, _ in self._of(path):
                if key.exit_code == meaning.exit_code:
                    return key.cause
        return meaning.id

    def _remember(
        self, ledger: Ledger, key: ProblemKey, text: str, file_state: FileState | None
    ) -> None:
        """Note that this run has met a problem, and say it with --quiet if that is due."""
        for other, _ in self._of(key.path) if key.path and key.exit_code else ():
            if other.exit_code and other != key:  # A recording has one error: the latest.
                self._forget(ledger, other)
        problem = self._store(ledger, key, text, file_state if key.path else None)
        # A JSON may have several wrong dates.
        is_new = problem.said_at is None or (problem.is_said and not key.exit_code)
        if self._args.quiet and is_new and problem.has_lasted(key, self._args):
            self._say_quietly(ledger, key, problem)

    # What is over, and what is lost

    def _clear_run(self, ledger: Ledger, is_complete: bool) -> None:
        for key, problem in self._of(""):
            if key.cause == OUTAGE:  # What fails in a run with uploads is undelivered.
                is_over = self._has_uploaded
            elif problem.is_met:
                is_over = False
            elif key.cause == LOOKUP_FAILED:
                is_over = self.has_looked_up
            elif key.exit_code:
                is_over = self._has_uploaded or is_complete
            else:  # Most warnings are of what is uploaded.
                is_over = self._has_uploaded and is_complete
            if is_over:
                self._forget(ledger, key)

    def _clear_or_lose(self, ledger: Ledger) -> set[int]:
        """Decide on each path that a run has not met, although it looked at everything.

        Returns exit codes.
        """
        paths = {*self._open, *(path for path, _, _ in ledger.files_not_uploaded())} - {""}
        for path, problems in self._open.items():
            if any(problem.is_met for problem in problems.values()):
                paths.discard(path)
        paths -= self._met_paths.union(path for path, _, _ in self._undelivered)
        folders = [stored_path(path) for path in self._args.audio_path if has_entries(path)]
        beside = {os.path.dirname(stored_path(path)) for path in self._args.audio_path}
        # What could not be looked at; if it is a folder, neither could what is below it.
        away = tuple(
            f"{path}/"
            for path, problems in self._open.items()
            if path and any(each.is_met and not each.file_state for each in problems.values())
        )
        of_paths = [each for path in paths for each in self._of(path)]
        sent = ledger.find_sent([each for key, each in of_paths if key.cause == WAITING])
        codes: set[int] = set()
        for path in sorted(paths):
            unmet = UnmetFile(path, self._of(path), ledger)
            was_renamed = unmet.sizes_and_times & self._met_elsewhere and not os.path.lexists(path)
            was_seen = was_looked_at(path, folders, beside) and not path.startswith(away)
            if not was_renamed and not was_seen:
                continue
            if unmet.is_over(self._met_elsewhere, sent):
                for key, _ in self._of(path):
                    self._forget(ledger, key)
            # What may be in the service is to be looked for there.
            elif not unmet.row_states & {"unknown", "finishing"} and LOST not in unmet.causes:
                self.note(path, unmet.lost(), unmet.file_states[0] if unmet.file_states else None)
                codes.add(os.EX_NOINPUT)
        return codes

    # What is said

    def _say_again(self, ledger: Ledger) -> None:
        """Say what was said on an earlier day, whether or not this run has met it."""
        lasting = {key: each for of_path in self._open.values() for key, each in of_path.items()}
        for key, problem in sorted(lasting.items()):
            is_due = is_of_earlier_day(problem)
            if key.cause == LOST:  # Perhaps found by a run without --quiet.
                is_due = problem.said_at is None
            elif key.cause == UNKNOWN.id and problem.said_at is None:  # Its file may be gone.
                is_due = problem.has_lasted(key, self._args)
            if is_due and not problem.is_said:
                self._say_quietly(ledger, key, problem)

    def _say_quietly(self, ledger: Ledger, key: ProblemKey, problem: OpenProblem) -> None:
        ledger.mark_said(key)
        problem.said_at, problem.is_said = utc(), True
        prefix = f"{key.path}: " if key.path else ""
        if key.cause == OUTAGE:
            prefix = f"no upload has worked since {local_time(problem.since)}: "
        self._say(key.exit_code, key.cause, prefix + problem.text)

    def _say(self, exit_code: int, cause: str, line: str) -> None:
        self._lines[cause] += 1
        if not self._args.quiet or self._lines[cause] <= SAID_LIMIT:
            log.log(logging.ERROR if exit_code else logging.WARNING, line)


class UnmetFile:
    """What the ledger knows of a file that a run has not met."""

    def __init__(
        self, path: str, problems: Sequence[tuple[ProblemKey, OpenProblem]], ledger: Ledger
    ) -> None:
        self.path = path
        self.causes = {key.cause for key, _ in problems}
        self.file_states = [problem.file_state for _, problem in problems if problem.file_state]
        rows = [row for row in ledger.find_by_stem(path) if row["path"] == path]
        self._has_row = any(row["state"] != "uploaded" for row in rows)
        # Rows of another size are of another call that had this name.
        sizes = {state.size_bytes for state in self.file_states}
        rows = [row for row in rows if not sizes or row["size_bytes"] in sizes]
        self.row_states = {row["state"] for row in rows}
        is_of_unknown = not rows and any(key.exit_code == os.EX_PROTOCOL for key, _ in problems)
        self.is_copy = is_of_unknown or COPY_DIFFERS in self.causes
        self.sizes_and_times = {state[:2] for state in self.file_states}
        self.sizes_and_times |= {(row["size_bytes"], row["mtime_ns"]) for row in rows}
        errors = [row["error"] for row in rows if row["error"]]
        errors += [problem.text.partition("; ")[0] for _, problem in problems]
        self._error = errors[0] if errors else ""
        self._ledger = ledger

    def is_over(
        self, met_elsewhere: set[tuple[int, int]], sent: set[tuple[int, int | str]]
    ) -> bool:
        """Return whether nobody has to care for it.

        met_elsewhere: size and mtime of files that the run has met at other paths.
        sent: size and mtime, and size and name, of what was sent lately (Ledger.find_sent).
        """
        return (
            os.path.lexists(self.path)
            or "uploaded" in self.row_states
            or self.is_copy  # What it is a copy of has its own row.
            or not self.sizes_and_times.isdisjoint(met_elsewhere)  # It was renamed.
            or self._ledger.exists_in_other_format(self.path)
            or not (self.file_states or self.row_states)  # A typing error: it never was there.
            or not self.causes.isdisjoint({"empty", "zeros", SAME_JSON})  # Removed, as advised.
            or (WAITING in self.causes and self._is_among(sent))
        )

    def _is_among(self, sent: set[tuple[int, int | str]]) -> bool:
        """Return whether it was sent by another name, perhaps in a run that ended early."""
        name = os.path.basename(self.path)
        return any({(size, mtime), (size, name)} & sent for size, mtime in self.sizes_and_times)

    def lost(self) -> UploadError:
        """Return the error of a file that is lost."""
        # With a row left in either, the next run would find it again.
        tables = "problems and recordings" if self._has_row else "problems"
        advice = f"restore it, or delete its row from the ledger's {tables}"
        meaning = Meaning(os.EX_NOINPUT, LOST, "gone before it was uploaded", advice)
        return UploadError(meaning, f"earlier: {self._error}" if self._error else "")


def was_looked_at(path: str, folders: Sequence[str], beside: set[str]) -> bool:
    """Return whether a run that looked at everything would have met a file of this path.

    folders: those given that are not empty; beside: those that hold what was given.
    """
    is_below = any(f"{path}/".startswith(f"{top.rstrip('/')}/") for top in folders)
    folder = os.path.dirname(path)
    # It may stand for another character; of a file below a folder its run has met the very name.
    if "\\" in folder or ("\\" in path and not is_below):
        return False
    if os.path.lexists(path):
        return is_below
    # What a shell's *.wav no longer finds is beside what it found.
    if not is_below and folder not in beside:
        return False
    # The nearest folder that exists has entries, or a share has gone.
    while not os.path.isdir(folder) and folder != os.path.dirname(folder):
        if os.path.islink(folder):
            return False
        folder = os.path.dirname(folder)
    return has_entries(folder)


def is_of_earlier_day(problem: OpenProblem) -> bool:
    """Return whether a problem was said, but not on this local day."""
    return problem.said_at is not None and local_day(problem.said_at) != today()


def has_entries(folder: str) -> bool:
    """Return whether a folder is there and not empty, as the mount point of a lost share is."""
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is not None
    except OSError:
        return False


def is_said_today(ledger: str, cause: str) -> bool:
    """Return whether an error of the ledger itself was said on this local day; note that it is now.

    The ledger cannot remember it, and on a full disk nothing can be written. But the times of its
    -lock file can be set: mtime is when, and atime stands for the cause.
    """
    mark = sum(cause.encode())
    with contextlib.suppress(OSError):
        path = f"{os.path.realpath(ledger)}-lock"
        status = os.stat(path, follow_symlinks=False)
        said_on = datetime.date.fromtimestamp(status.st_mtime)
        if round(status.st_atime) == mark and said_on == today():
            return True
        os.utime(path, (mark, time.time()), follow_symlinks=False)
    return False


class Tally:
    """Takes each result once: prints and counts it, notes problems, feeds the circuit breaker."""

    def __init__(
        self, args: Namespace, console: Console, problems: Problems, breaker: CircuitBreaker
    ) -> None:
        self.lock = threading.RLock()
        self.counts: collections.Counter[str] = collections.Counter()
        self.left_out: collections.Counter[str] = collections.Counter()
        self.not_tried = 0
        self.looked_up: set[str] = set()  # SHA-256 of what a lookup has found.
        self.problems = problems
        # Whatever becomes of updates stops no uploads, but in an outage not all are tried.
        self.updates_breaker = CircuitBreaker()
        self._args = args
        self._console = console
        self._breaker = breaker
        self._exit_codes: set[int] = set()
        self._run_errors: set[str] = set()  # Said already.

    def add(self, recording: Recording, result: Result) -> None:
        """Take the result of a recording."""
        with self.lock:
            if recording.result:  # The run has given it up already.
                return
            recording.result = result
            is_update = recording.action is Action.UPDATE_METADATA
            # What was uploaded before is no sign that uploads work.
            was_uploaded_before = is_update or recording.action is Action.FOLLOW
            # Of what is being waited for add_upload has told the breaker.
            is_old = was_uploaded_before or recording.is_waiting
            (self.updates_breaker if is_old else self._breaker).record(result)
            if is_old and result.error and result.error.meaning.stops_run:
                self._breaker.stop(SAME_FOR_ALL)
            if result.outcome is Outcome.LEFT_OUT:
                self.leave_out(recording, "too short", result.description)
                return
            was_found = bool(result.found_id) and result.outcome is Outcome.UPLOADED
            to_be_updated = is_update and result.outcome is Outcome.CHECKED
            counted = "found" if was_found else "updated" if to_be_updated else result.outcome.value
            self.counts[counted] += 1
            if was_found:
                self.looked_up.add(recording.sha256)
            if isinstance(result.error, LedgerError):  # Once a run, with --quiet once a day.
                self.add_error(result.error, recording.path)
            elif result.error:
                self._exit_codes.add(result.error.meaning.exit_code)
                self._note(recording, result.error)
            else:
                is_new = not (was_uploaded_before or was_found)
                self._clear(recording, was_sent=is_new and result.outcome is Outcome.UPLOADED)
            self._console.result(recording, result)
            if self._console.output_lost:
                self._exit_codes.add(os.EX_IOERR)
                self._breaker.stop("stdout cannot be written")

    def add_upload(self, recording: Recording, result: Result) -> None:
        """Take that uploads work, before this one's dialogs are waited for: that may take hours."""
        with self.lock:
            self._breaker.record(result)
            self._clear(recording, was_sent=True)

    def warn(self, recording: Recording | None, id: str, cause: str, advice: str) -> None:
        """Take a warning, of a recording or of the run."""
        with self.lock:
            self._note(recording, UploadError(Meaning(os.EX_OK, id, cause, advice)))

    def add_error(self, error: UploadError, path: str = "") -> None:
        """Take an error of the run itself, which ends it; path: of the recording that met it."""
        with self.lock:
            is_new = error.meaning.id not in self._run_errors
            self._run_errors.add(error.meaning.id)
            if is_new and isinstance(error, LedgerError):
                log.log(error.level(self._args), f"{path}: {error}" if path else str(error))
            elif is_new:
                self._note(None, error)
            self._exit_codes.add(error.meaning.exit_code)
            self._breaker.stop(SAME_FOR_ALL)

    def leave_out(self, recording: Recording, reason: str, text: str, is_over: bool = True) -> None:
        """Count a recording that is left out, and why."""
        with self.lock:
            self.left_out[reason] += 1
            is_told = recording.explicit or self._args.dry_run
            level = logging.INFO if is_told else logging.DEBUG
            log.log(level, f"{recording.path}: left out, {text}")
            if is_over:
                self._clear(recording, was_sent=False)

    def put_off(self, recording: Recording, text: str) -> None:
        """Count a recording that waits; whether what is open of it lasts cannot be seen yet."""
        with self.lock:
            self.problems.keep(recording)
            self.leave_out(recording, "waiting", text, is_over=False)

    def note_waiting(self, path: str, state: FileState, text: str) -> None:
        """Note a recording that waits, or was not tried: if it vanishes, it is lost."""
        with self.lock:
            try:
                self.problems.wait(path, state, text)
            except LedgerError as failure:
                self._end_without_ledger(failure)

    def forget_moved(self, row: Row) -> None:
        """Take that the audio of a row is sent, perhaps by another name than before."""
        with self.lock:
            self.problems.forget_moved(row)

    def add_not_tried(self, number: int) -> None:
        """Count the recordings that a stopped run did not get to."""
        self.not_tried += number
        if number:
            self._exit_codes.add(os.EX_TEMPFAIL)

    def finish(self, is_complete: bool) -> None:
        """Say what lasts or is lost; is_complete: all was looked at."""
        with self.lock:
            try:
                self._exit_codes |= self.problems.finish(is_complete)
            except LedgerError as failure:
                self._end_without_ledger(failure)

    @property
    def exit_code(self) -> int:
        """The gravest of what happened."""
        return next((code for code in GRAVEST_FIRST if code in self._exit_codes), os.EX_OK)

    def summary(self) -> str:
        """Return the counts in words."""
        counts = self.counts
        would_be, to_be = ("would be ", "to be ") if self._args.dry_run else ("", "")
        parts = [f"{counts['checked'] + counts['uploaded']:,} {would_be}uploaded"]
        parts.append(f"{counts['already']:,} already there")
        if counts["found"]:
            parts.append(f"{counts['found']:,} found in the service")
        if counts["updated"]:
            parts.append(f"{counts['updated']:,} with metadata {to_be}updated")
        parts.append(f"{counts['failed'] + counts['rejected']:,} failed")
        parts.append(f"{counts['unknown']:,} unknown")
        parts += [f"{number:,} {reason}" for reason, number in self.left_out.items()]
        return ", ".join(parts)

    def _note(self, recording: Recording | None, error: UploadError) -> None:
        path, file_state = (recording.path, recording.file_state) if recording else ("", None)
        try:
            self.problems.note(path, error, file_state)
        except LedgerError as failure:
            self.add_error(failure)

    def _clear(self, recording: Recording, was_sent: bool) -> None:
        try:
            self.problems.clear(recording, was_sent)
        except LedgerError as failure:
            self._end_without_ledger(failure)

    def _end_without_ledger(self, failure: LedgerError) -> None:
        self.problems.forget_ledger()
        self.add_error(failure)


class Console(logging.Handler):
    """The only place that prints in a run: results to stdout, a line per problem to stderr."""

    def __init__(self, args: Namespace) -> None:
        super().__init__()
        self.output_lost = False
        self.several = len(args.audio_path) > 1 or any(map(os.path.isdir, args.audio_path))
        self._args = args
        self._bar: Any = None
        watched = sys.stderr.isatty() and not args.quiet
        self._draw_bar_at_s = time.monotonic() + 0.5 if watched else math.inf
        self._done = self._done_bytes = self._total = 0
        if isinstance(sys.stdout, io.TextIOWrapper):
            # File names that are not UTF-8 are printed as their bytes.
            utf8 = sys.stdout.encoding.lower().startswith("utf")
            sys.stdout.reconfigure(errors="surrogateescape" if utf8 else "backslashreplace")
        log.setLevel("DEBUG" if args.verbose else "WARNING" if args.quiet else "INFO")
        log.handlers[:] = [self]
        log.propagate = False

    def result(self, recording: Recording, result: Result) -> None:
        """Print the result of a recording."""
        self._done += 1
        self._done_bytes += recording.file_state.size_bytes
        path, outcome = recording.path, result.outcome
        is_new = outcome in (Outcome.UPLOADED, Outcome.UPDATED)
        if (other := recording.replaces) and outcome is Outcome.UPLOADED:
            ids = ", ".join(result.dialog_ids)
            log.info(f"{path}: uploaded as {ids}; other audio of this name was {other}")
        if recording.call and not result.error:
            seconds = f"{seconds_since(recording):.2f}"
            log.debug(f"{path}: {outcome.value} in {seconds} s ({recording.call.ids()})")
        if self._args.format == "json":
            self._print(as_json(recording, result), is_new)
        elif outcome is Outcome.CHECKED:
            what = "updated" if recording.row or self._args.talk_id else "uploaded"
            self._print(f"{path}: would be {what}: {result.description}", is_new)
        elif is_new or result.error or recording.explicit or self._args.verbose:
            # What a lookup found may not be the recording that was named; and a log of the IDs
            # stands in for a ledger that is lost.
            prefix = f"{path}: " if self.several or self._args.ledger else ""
            for line in dialog_lines(recording, result):
                self._print(prefix + line, is_new)

    def _print(self, line: str, is_new: bool) -> None:
        """Print a line to stdout, or, if that fails, a new dialog's ID to stderr."""
        line = one_line(line)
        if not self.output_lost:
            try:
                with self._above_bar(sys.stdout):
                    print(line, flush=True)
                return
            except OSError as error:
                self.output_lost = True
                log.error(f"stdout cannot be written: {error.strerror}; dialog IDs follow here")
        if is_new:
            log.error(line)

    def show_progress(self, sent_bytes: int) -> None:
        """Draw the bar on a terminal; sent_bytes: of the recordings under way."""
        if time.monotonic() < self._draw_bar_at_s:
            return
        if self._bar is None:
            # smoothing=0: the average rate, as several uploads share the line.
            options: dict[str, Any] = {"unit": "B", "unit_scale": True, "dynamic_ncols": True}
            try:
                from tqdm import tqdm

                # Its own is for processes, too, and Python 3.14 would complain of it at the end.
                tqdm.set_lock(threading.RLock())
                bar = tqdm(smoothing=0, leave=False, **options)
                bar.start_t -= 0.5
            except (ImportError, AttributeError, ValueError, LookupError):  # TQDM_DISABLE, ...
                self._draw_bar_at_s = math.inf
                return
            self._bar = bar
            threading.Thread(target=self._count, daemon=True).start()
        total = f" of {self._total:,}" if self._total else ""
        self._bar.set_description(f"{self._done:,}{total} recordings", refresh=False)
        self._bar.update(self._done_bytes + sent_bytes - self._bar.n)

    def _count(self) -> None:
        """Find out how much there is to do; until that is known, the bar has no total."""
        sizes = []
        for found in find_files(self._args):
            with contextlib.suppress(OSError, ValueError):
                sizes.append(os.stat(found.paths[0]).st_size)
        if self._bar is not None:
            self._bar.total = sum(sizes)
            self._total = len(sizes)

    def end_progress(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _above_bar(self, stream: TextIO) -> contextlib.AbstractContextManager[Any]:
        bar = self._bar if stream.isatty() else None
        return contextlib.nullcontext() if bar is None else bar.external_write_mode()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a log message to stderr, without secrets."""
        line = shortened(one_line(masked(f"upload_grpc: {record.getMessage()}")))
        # If stderr is closed or full there is nowhere to report it.
        with contextlib.suppress(OSError, ValueError), self._above_bar(sys.stderr):
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()


def dialog_lines(recording: Recording, result: Result) -> list[str]:
    """Return the lines with the IDs of a recording's dialogs."""
    is_update = result.outcome is Outcome.UPDATED and recording.row
    note = " (metadata updated)" if is_update else ""
    if result.found_id and result.found_id not in result.dialog_ids:
        note = f" (in the service: {result.found_id}){note}"
    lines = [f"Dialog ID: {dialog_id}{note}" for dialog_id in result.dialog_ids]
    if result.badge_id:
        lines.insert(0, f"Badge ID: {result.badge_id}")
    elif result.operation_id:
        lines.insert(0, f"Operation ID: {result.operation_id}")
    return lines


def as_json(recording: Recording, result: Result) -> str:
    """Return one line of JSON; README explains the keys."""
    error = result.error
    values = {
        "schema_version": 1,
        "time": utc(),
        "path": recording.path,
        "outcome": result.outcome.value,
        "talk_id": result.dialog_ids[0] if result.dialog_ids and not result.badge_id else None,
        "badge_id": result.badge_id or None,
        "operation_id": result.operation_id or None,
        "talk_ids": result.dialog_ids,
        "found_id": result.found_id or None,
        "error": clean(masked(str(error))) if error else None,
        "exit_code": error.meaning.exit_code if error else os.EX_OK,
        "request_id": recording.call.request_id if recording.call else None,
        "bytes": recording.file_state.size_bytes or None,
        "seconds": round(seconds_since(recording), 3),
        "attempts": recording.attempts,
        "description": result.description or None,
    }
    return json.dumps(values)


def seconds_since(recording: Recording) -> float:
    """Return how long it has been since a recording was looked at first."""
    return time.monotonic() - recording.started_s if recording.started_s else 0.0


# What would move a terminal's cursor or turn its text round: control characters, line and paragraph
# separators, and the marks of bidirectional text (Unicode Standard Annex 9).
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def one_line(text: str) -> str:
    """Escape what could break a line or fake another one; file names and services contain it."""
    return UNPRINTABLE.sub(escaped, text)


def escaped(match: re.Match[str]) -> str:
    """Return a character as a Python escape."""
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def shortened(text: str) -> str:
    """Return a text with its middle cut out if it is too long.

    Its end has the cause, behind a long path, or the IDs behind a service's words.
    """
    half = LINE_LIMIT_CHARACTERS // 2
    return text if len(text) <= 2 * half else f"{text[:half]}...{text[-half:]}"


def clean(text: str) -> str:
    """Return a text as the ledger keeps it: printable, in UTF-8, and not endless."""
    text = text.encode(errors="backslashreplace").decode()  # File names may be no UTF-8.
    return shortened(one_line(text))


# --- 15. The run ------------------------------------------------------------------------------


class Worker:
    """What one thread does with a recording: converts it, sends it over its own channel."""

    def __init__(
        self,
        args: Namespace,
        uploader: Uploader,
        ledger: Ledger | None,
        ffmpeg: str,
        stopping: threading.Event,
        tally: Tally,
    ) -> None:
        self._args = args
        self._uploader = uploader
        self._ledger = ledger
        self._ffmpeg = ffmpeg
        self._stopping = stopping
        self._tally = tally

    def deliver(self, recording: Recording) -> Result:
        """Upload a recording, or only wait for its dialogs; return and record the result."""
        if recording.action is Action.UPDATE_METADATA:
            return self._update(recording)
        if recording.action is Action.SEND:
            result = self._send(recording)
        else:
            recording.received = result_of_row(recording.row)
            recording.is_recorded = True
            result = recording.received._replace(outcome=Outcome.UPLOADED)
        is_being_split = result.operation_id and not result.talk_ids and not result.error
        if not (self._args.wait and is_being_split):
            return result
        if recording.action is Action.SEND:
            self._tally.add_upload(recording, result)
        recording.is_waiting = True
        result = self._uploader.follow(recording, result, has_ledger=bool(self._ledger))
        if not result.error:
            return self._recorded(recording, result)
        is_earlier = recording.action is Action.FOLLOW
        return result._replace(outcome=Outcome.ALREADY) if is_earlier else result

    def _send(self, recording: Recording) -> Result:
        """Convert a recording, if it has to be, and upload it; return and record the result."""
        try:
            if too_short := self._convert(recording):
                return too_short
            result = self._uploader.upload_talk(recording, self._ledger)
        except LedgerError as error:
            # Its row says at most `finishing`: less than what happened, never more.
            return result_of_error(error)
        except UploadError as error:
            recording.received = result = result_of_error(error)
        finally:
            if recording.converted:
                recording.converted.file.close()
        return self._recorded(recording, result)

    def _convert(self, recording: Recording) -> Result | None:
        """Convert a recording, if it has to be; return a result if it turns out too short.

        Raises UploadError.
        """
        args, audio = self._args, recording.audio
        if not audio or not audio.needs_conversion:
            return None
        check_unchanged(recording, lambda: None)
        try:
            recording.converted = converted = convert(
                self._ffmpeg, recording.path, audio, args.timeout, self._stopping
            )
        finally:  # That it changed meanwhile explains an error, too.
            check_unchanged(recording, lambda: None)
        duration_s = converted.audio.duration_s
        if duration_s >= args.min_duration:
            check_limits(converted.audio, converted.size_bytes, args.split, args.single_message)
            return None
        if self._ledger:  # So that it is not converted again.
            self._ledger.update(recording, state="failed", duration_s=duration_s)
        return Result(Outcome.LEFT_OUT, description=shorter(duration_s, args))

    def _update(self, recording: Recording) -> Result:
        """Send changed metadata of an uploaded recording; return and record the result."""
        row: Any = recording.row
        talk_id = row["talk_id"] or row["found_id"]
        request = talk_service_pb2.UploadTalkRequest(talk_id=talk_id, metadata=recording.metadata)
        assert self._ledger
        try:
            result = self._uploader.update_talk(recording, request)
        except CallError as error:
            result = result_of_error(UploadError(update_meaning(error, row), error.details))
        except UploadError as error:
            return result_of_error(error)
        try:
            if result.error is None:
                self._ledger.record_update(recording)
            elif result.error.meaning.id == UPDATE_REFUSED:
                self._ledger.record_refused_update(recording, result.error)
        except LedgerError as error:  # It is sent again, which does no harm.
            return result_of_error(error)
        return result

    def _recorded(self, recording: Recording, result: Result) -> Result:
        """Record a result in the ledger; return it, or what it has become if that failed."""
        try:
            if self._ledger:
                self._ledger.record_result(recording, result)
            recording.is_recorded = True
        except LedgerError as error:
            self._tally.add_error(error)
            # What was recorded before, and is being split, is asked for again.
            return result if recording.is_recorded else result_unrecorded(result, error)
        return result


class Run:
    """Workers and signals, from the paths named to the exit code."""

    def __init__(
        self,
        args: Namespace,
        access: Access | None,
        console: Console,
        ledger: Ledger | None,
        problems: Problems,
    ) -> None:
        common = read_metadata(args.meta_path) if args.meta_path else None
        self._ffmpeg = find_ffmpeg() if args.convert else ""
        self._args = args
        self._access = access
        self._console = console
        self._ledger = ledger
        half_open = bool(ledger and access and ledger.begin_run(access.endpoint))
        self._breaker = CircuitBreaker(half_open)
        self._tally = Tally(args, console, problems, self._breaker)
        for text in date_warnings(args.meta_path, common) if common is not None else ():
            self._tally.warn(None, "date", text, DATE_ADVICE)
        self._source = Source(args, common, ledger, self._breaker, self._tally)
        self._signals: list[int] = []
        self._bug: BaseException | None = None
        self._has_counted = True  # What was not tried.

    def main(self) -> int:
        """Upload everything; return the exit code."""
        # Daemons, as a worker that hangs in a read must not keep the program from ending.
        jobs = self._args.jobs if self._console.several else 1
        workers = [threading.Thread(target=self._work, daemon=True) for _ in range(jobs)]
        self._collect_signals()
        self._look_up()
        for worker in workers if not self._is_ending() else ():
            try:
                worker.start()
            except RuntimeError as bug:  # A limit on threads.
                self._bug = bug
                break
        while not self._is_ending() and self._wait_a_tick(workers):
            pass
        if self._is_ending():
            self._wind_down(workers)
        self._console.end_progress()
        if self._breaker.stopping.is_set():
            self._count_rest()
        return self._end()

    def plan(self) -> int:
        """Report what main() would do; return the exit code."""
        for recording in self._source.to_send:
            if recording.action is Action.FOLLOW:
                self._tally.add(recording, result_of_row(recording.row))
                continue
            size = f"{recording.file_state.size_bytes:,} bytes"
            audio = recording.audio
            text = f"{audio.description}, {size}, " if audio and not recording.row else ""
            if audio and audio.needs_conversion:
                text = f"to be converted: {text}"
            text += described(recording.metadata)
            self._tally.add(recording, Result(Outcome.CHECKED, description=text))
        return self._end()

    def _collect_signals(self) -> None:
        """Note SIGINT, SIGTERM and SIGHUP, unless they were ignored when we started."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda number, frame: self._signals.append(number))

    def _look_up(self) -> None:
        """Look up what earlier runs left unknown; a refused credential ends the run."""
        if not (self._args.lookup_key and self._ledger and self._access):
            return
        with contextlib.closing(Uploader(self._args, self._access, self._breaker)) as uploader:
            try:
                Lookup(self._args, uploader, self._ledger, self._signals, self._tally).run()
            except UploadError as error:
                self._tally.add_error(error)

    def _work(self) -> None:
        """Send one recording after the other over this worker's own channel."""
        assert self._access is not None
        try:
            uploader = Uploader(self._args, self._access, self._breaker)
            stopping = self._breaker.stopping
            worker = Worker(self._args, uploader, self._ledger, self._ffmpeg, stopping, self._tally)
            with contextlib.closing(uploader):
                while recording := self._source.take():
                    self._tally.add(recording, worker.deliver(recording))
                    self._source.under_way.discard(recording)
        except BaseException as bug:  # noqa: BLE001 - raised again by the main thread.
            self._bug = self._bug or bug

    def _is_ending(self) -> bool:
        """Return whether the run ends before its time, by a signal or a bug."""
        return bool(self._signals or self._bug)

    def _wind_down(self, workers: Sequence[threading.Thread]) -> None:
        """End the run with 128 + signal, or 70 for a bug, whoever hangs.

        0 s: nothing new begins; what is before its commit point is cancelled, and `failed`
        up to 10 s, or until a second signal: responses to what is past it are waited for
        then: what is left is cancelled, and unknown
        1 s later: the process ends, though a worker may hang in a disk or in grpc (_abandon)
        If no worker hangs, another second at most for counting what was not tried, and one for a
        ledger that another program has locked: 13 s in all. Without a limit: a ledger whose disk
        hangs, and a terminal or pipe that takes no lines. All this begins once the main thread is
        back from a lookup's call (LOOKUP_TIMEOUT_S) that is under way.
        """
        self._breaker.stop(self._cause())
        for call in self._calls():
            call.cancel(unless_committed=True)
        until_s = time.monotonic() + ANSWER_GRACE_S
        while any(call.is_due() for call in self._calls()):
            if len(self._signals) > 1 or time.monotonic() > until_s:
                break
            self._wait_a_tick(workers)
        for call in self._calls():
            call.cancel()
        until_s = time.monotonic() + CANCEL_GRACE_S
        while self._wait_a_tick(workers):
            if time.monotonic() > until_s:
                self._abandon()

    def _count_rest(self) -> None:
        """Count what was not tried; after a signal for a second at most, as a disk may hang.

        The ledger notes what was never tried (Tally.note_waiting), unless a signal ends the run.
        """
        not_tried: list[tuple[str, FileState]] = []

        def count() -> None:
            number = 0
            with contextlib.suppress(LedgerError):  # Perhaps what has ended the run.
                for recording in self._source.rest():
                    number += 1
                    if not self._tally.problems.seeks(recording):
                        not_tried.append((recording.path, recording.file_state))
                self._tally.add_not_tried(number)
                self._has_counted = True

        self._has_counted = False
        counting = threading.Thread(target=count, daemon=True)
        counting.start()
        until_s = math.inf
        while counting.is_alive() and time.monotonic() < until_s:
            counting.join(TICK_S)
            if self._is_ending():
                until_s = min(until_s, time.monotonic() + CANCEL_GRACE_S)
        for path, state in not_tried if self._has_counted else ():
            if self._is_ending():
                break
            self._tally.note_waiting(path, state, "not tried")

    def _cause(self) -> str:
        if self._signals:
            return f"stopped by {signal.Signals(self._signals[0]).name}"
        return f"stopped by {'a limit of this process' if limit_error(self._bug) else 'a bug'}"

    def _calls(self) -> list[Call]:
        # Of a copy, as workers change the set meanwhile.
        return [each.call for each in list(self._source.under_way) if each.call]

    def _wait_a_tick(self, workers: Sequence[threading.Thread]) -> bool:
        """Wait a moment for a worker to end, and move the bar; return whether any is at work."""
        alive = [worker for worker in workers if worker.is_alive()]
        if alive:
            alive[0].join(TICK_S)
        # Not while a worker is reporting, or the bar would step back.
        if self._tally.lock.acquire(blocking=False):
            calls = [call for call in self._calls() if isinstance(call, Transfer)]
            self._console.show_progress(sum(call.done_bytes for call in calls))
            self._tally.lock.release()
        return bool(alive)

    def _abandon(self) -> NoReturn:
        """End although workers are stuck; for the ledger, this is a kill -9."""
        self._tally.problems.forget_ledger()
        if self._tally.lock.acquire(timeout=TICK_S):  # Else a worker hangs in printing.
            self._console.end_progress()
            for recording in list(self._source.under_way):
                self._tally.add(recording, self._result_of_abandoned(recording))
            self._tally.finish(is_complete=False)
            log.warning(f"{self._breaker.cause}; {self._tally.summary()}, the others not tried")
            if self._bug:
                report_bug(self._bug)
        kill_ffmpeg()
        os._exit(self._exit_code())

    def _result_of_abandoned(self, recording: Recording) -> Result:
        """Return what a worker that is stuck has left of a recording."""
        received = recording.received
        if received and recording.is_recorded:  # Only its dialogs were waited for.
            return received
        cause = f"{self._breaker.cause} while it was under way"
        error = UploadError(FAILED._replace(cause=cause))
        if received:
            return result_unrecorded(received, error)
        if recording.call and recording.call.phase is Phase.COMMITTED:
            cause += ", so the dialog may or may not exist"
            advice = recording.call.advice.get(UNKNOWN.id, LOOK_FOR_IT)
            error = UploadError(UNKNOWN._replace(cause=cause, advice=advice))
        return result_of_error(error)

    def _end(self) -> int:
        """Print the summary, and note it in the ledger; return the exit code."""
        tally = self._tally
        if self._is_ending():  # Perhaps after the workers had ended.
            self._breaker.stop(self._cause())
        if self._ledger and self._is_ending():
            self._ledger.be_quick()
        is_complete = self._source.is_exhausted and not self._is_ending()
        with contextlib.suppress(LedgerError):
            self._source.replaced.warn()
        tally.finish(is_complete)
        if self._ledger and self._access:
            self._note_end(self._ledger, is_complete)
        if self._is_ending() or tally.not_tried or not self._has_counted:
            # The ledger notes an outage, and says so once it has lasted.
            is_told = self._is_ending() or not self._ledger
            level = logging.WARNING if is_told else logging.INFO
            number = f"{tally.not_tried:,}" if self._has_counted else "the others"
            log.log(level, f"{self._breaker.cause}; {tally.summary()}, {number} not tried")
        elif not tally.counts and not tally.left_out:
            looked_for = ", ".join(self._args.suffixes)
            folders = ", ".join(self._args.audio_path)
            log.info(f"{folders}: no recordings found (looked for {looked_for})")
        elif tally.counts.total() > 1 or self._console.several:
            log.info(tally.summary())
        if self._bug:
            raise self._bug
        return self._exit_code()

    def _exit_code(self) -> int:
        if self._bug:
            limit = limit_error(self._bug)
            return limit.meaning.exit_code if limit else os.EX_SOFTWARE
        return 128 + self._signals[0] if self._signals else self._tally.exit_code

    def _note_end(self, ledger: Ledger, is_complete: bool) -> None:
        try:
            ledger.end_run(
                looked_at_all=is_complete and not self._source.missed_path,
                found=self._source.found,
                uploaded=self._tally.counts["uploaded"],
                left_out=json.dumps(self._tally.left_out),
                not_tried=self._tally.not_tried,
                exit_code=self._exit_code(),
                half_open=self._breaker.half_open,
            )
        except LedgerError as error:
            self._tally.add_error(error)


def described(metadata: TalkMetadata | None) -> str:
    """Describe the metadata that would be sent."""
    assert metadata is not None
    fields = json.dumps(dict(sorted(metadata.fields.items())), ensure_ascii=False)
    return f"metadata {fields}, {len(metadata.users)} users"


def update_talk(args: Namespace, access: Access | None, console: Console) -> int:
    """Send new metadata for a dialog that exists; return the exit code."""
    recording = Recording(args.talk_id)
    metadata = read_metadata(args.meta_path)
    metadata.connection_id = args.connection_id
    request = talk_service_pb2.UploadTalkRequest(talk_id=args.talk_id, metadata=metadata)
    breaker = CircuitBreaker()
    tally = Tally(args, console, Problems(args, None), breaker)
    for text in date_warnings(args.meta_path, metadata):
        tally.warn(None, "date", text, DATE_ADVICE)
    if access is None:
        tally.add(recording, Result(Outcome.CHECKED, description=described(metadata)))
    else:
        try:
            tally.add(recording, Uploader(args, access, breaker).update_talk(recording, request))
        except UploadError as error:
            tally.add(recording, result_of_error(error))
    return tally.exit_code


# --- 16. The report ---------------------------------------------------------------------------

# A connection whose cron job works has a run within this time that looked at everything.
QUIET_RUN_LIMIT_S = 24 * 60 * 60.0
CHECK_CRON = "check that cron runs, and what it emails"
# So that a good day fits a screen; with --since all days since then, up to a year.
DAYS_SHOWN = 10
DAYS_SHOWN_SINCE = 366
# Of each cause; the newest are shown.
ATTENTION_SHOWN = 10
NO_CALLS = (0,) * len(OUTCOMES)
SAME_CONNECTION = "connection_id = coalesce(:connection, connection_id)"


class Filter(NamedTuple):
    """Conditions in SQL for the rows that were asked for, and their named values."""

    calls: str
    attention: str
    covered: str  # What of attention counts for the exit code; shown is all that is open.
    values: dict[str, str | None]


class LastRun(NamedTuple):
    """The last --quiet run of a connection that looked at everything, in words."""

    connection_id: str
    text: str
    is_overdue: bool


def report(args: Namespace) -> int:
    """Print what the ledger knows and return the exit code; raise UploadError.

    The exit code is the gravest of what needs attention; with --since, of what has begun since then
    or is about a call recorded since then (about no call: was met since then). It is at least 75
    if, of any connection that ever had a --quiet run, none within 24 h looked at everything, or the
    latest left something not tried, or was ended by a signal or a bug.
    """
    import shutil
    import sqlite3
    import tempfile

    path = args.ledger
    # Who reads the lines slowly, as in a pager, must not keep runs from beginning.
    form: Any = {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}
    try:
        path = os.path.realpath(args.ledger)
        with tempfile.SpooledTemporaryFile(SPOOL_LIMIT_BYTES, "w+", **form) as lines:
            with contextlib.ExitStack() as undo, contextlib.redirect_stdout(lines):
                db = open_for_report(path, undo)
                chosen = make_filter(args)
                check_connection(db, args.connection_id, path)
                check_paths(db, args.audio_path, path)
                last_runs = find_last_runs(db, chosen)
                overdue = [run for run in last_runs if run.is_overdue]
                if args.format == "text":
                    print_text(db, args, chosen, last_runs)
                else:
                    print_calls(db, chosen, args.format)
                    for run in overdue:
                        log.warning("%s: %s", one_line(run.connection_id), one_line(run.text))
                sql = f"SELECT DISTINCT exit_code FROM attention WHERE {chosen.covered}"
                codes = {code for (code,) in db.execute(sql, chosen.values)}
            lines.seek(0)
            if args.format != "text" and isinstance(sys.stdout, io.TextIOWrapper):
                # Whatever the locale is.
                sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
            try:
                shutil.copyfileobj(lines, sys.stdout)
                sys.stdout.flush()
            except OSError as error:
                cause = f"stdout cannot be written: {error_text(error)}"
                raise UploadError(Meaning(os.EX_IOERR, "stdout", cause, "redirect it")) from error
    except (OSError, sqlite3.Error) as error:
        raise LedgerError.of(path, error) from error
    if overdue:
        codes.add(os.EX_TEMPFAIL)
    return next((code for code in GRAVEST_FIRST if code in codes), os.EX_OK)


def open_for_report(path: str, undo: contextlib.ExitStack) -> Any:
    """Open a ledger for one look at it, with the views; raise UploadError or sqlite3.Error."""
    if not is_begun(path):
        cause = "empty" if os.path.isfile(path) else "missing, or not a regular file"
        raise LedgerError(path, "missing", cause, CHECK_LEDGER)
    db = open_read_only(path, undo)
    check_layout(db, path)
    # Of this version, whatever version made those in the file.
    for name, select in LEDGER_VIEWS.items():
        db.execute(f"CREATE TEMP VIEW {name} AS {select}")
    db.execute("BEGIN")  # All queries see the same state.
    return db


def make_filter(args: Namespace) -> Filter:
    """Return the conditions that --connection-id, --audio-path and --since stand for."""
    since = ""
    if args.since:
        since = utc(datetime.datetime.combine(args.since, datetime.time()).timestamp())
    values = {"connection": args.connection_id, "since": since}
    paths = []
    for number, path in enumerate(map(stored_path, args.audio_path)):
        start, end = range_below(path)
        values |= {f"at{number}": path, f"from{number}": start, f"to{number}": end}
        paths.append(f"path = :at{number} OR path >= :from{number} AND path < :to{number}")
    at_paths = " OR ".join(paths) or "TRUE"
    # What is wrong with a run is wrong for each path.
    attention = f"{SAME_CONNECTION} AND (path = '' OR {at_paths})"
    return Filter(
        calls=f"{SAME_CONNECTION} AND ({at_paths}) AND calls.recorded_at >= :since",
        attention=attention,
        covered=f"{attention} AND max(coalesce(recorded_at, seen_at), since) >= :since",
        values=values,
    )


def check_connection(db: Any, connection_id: str | None, path: str) -> None:
    """Raise UploadError if the ledger knows nothing of --connection-id: a typo is not "all well".

    Its value is not named, as it may be a misplaced key.
    """
    tables = ("runs", "recordings", "problems")
    sql = " UNION ".join(f"SELECT connection_id FROM {table}" for table in tables)
    known = [name for (name,) in db.execute(f"{sql} ORDER BY 1")]
    if connection_id is not None and connection_id not in known:
        cause = "the connection of --connection-id is not in it"
        advice = f"it has: {one_line(', '.join(known[:10])) or 'no run yet'}"
        raise LedgerError(path, "connection", cause, advice)


def check_paths(db: Any, given: Sequence[str], path: str) -> None:
    """Raise UploadError if the ledger knows nothing of a path that is not there, as with a typo."""
    missing = list(itertools.filterfalse(os.path.lexists, given))
    folders: set[str] = set()
    for (text,) in db.execute("SELECT DISTINCT folders FROM runs") if missing else ():
        folders.update(json.loads(text))
    where = "WHERE path = ? OR path >= ? AND path < ? LIMIT 1"
    for each in missing:
        stored = stored_path(each)
        start, end = range_below(stored)
        is_known = any(start.startswith(os.path.join(top, "")) for top in folders) or any(
            db.execute(f"SELECT 1 FROM {table} {where}", (stored, start, end)).fetchone()
            for table in ("recordings", "problems")
        )
        if not is_known:
            cause = f"it knows nothing of {each}, which is not there either"
            raise LedgerError(path, "path", cause, "check --audio-path")


def find_last_runs(db: Any, chosen: Filter) -> list[LastRun]:
    """Describe the last --quiet run that looked at everything, of each connection with runs."""
    by_connection = f"""SELECT connection_id, max(quiet),
        max(CASE WHEN quiet AND looked_at_all THEN id END),
        max(CASE WHEN quiet AND ended_at IS NOT NULL THEN id END)
        FROM runs WHERE {SAME_CONNECTION} GROUP BY connection_id"""
    by_id = """SELECT coalesce(ended_at, began_at), found, uploaded, left_out, not_tried, exit_code
        FROM runs WHERE id = ?"""
    runs = []
    for name, has_quiet, complete_id, latest_id in db.execute(by_connection, chosen.values):
        if not has_quiet:
            runs.append(LastRun(name, "no run with --quiet so far", False))
            continue
        complete = db.execute(by_id, (complete_id,)).fetchone()
        is_newer = (latest_id or 0) > (complete_id or 0)
        latest = db.execute(by_id, (latest_id,)).fetchone() if is_newer else None
        # A clock that jumped must not hide a dead cron for years.
        is_old = not complete or abs(time.time() - seconds_of(complete[0])) > QUIET_RUN_LIMIT_S
        words = [f"none for 24 h looked at everything; {CHECK_CRON}"] if is_old else []
        if complete:
            words.append(f"{'The last: ' if is_old else ''}{run_text(*complete)}")
        if latest:
            words.append(f"Since then: {run_text(*latest)}")
        # A run that was ended may not have counted what it left.
        not_tried = any(
            run and (run[4] or run[5] == os.EX_SOFTWARE or (run[5] or 0) > 128)
            for run in (complete, latest)
        )
        runs.append(LastRun(name, ". ".join(words), is_old or not_tried))
    return runs


def run_text(
    at: str, found: int, uploaded: int, left_out: str | None, not_tried: int, exit_code: int | None
) -> str:
    """Say when a run ended, what it found and what it left."""
    counts = {"found": found, "uploaded": uploaded, **json.loads(left_out or "{}")}
    words = [f"{number:,} {what}" for what, number in counts.items()]
    words += [f"{not_tried:,} not tried"] if not_tried else []
    words += [f"exit code {exit_code}"] if exit_code else []
    return f"{local_time(at)}: {', '.join(words)}"


def local_time(text: str) -> str:
    """Return a time of the ledger in the local zone, to the minute."""
    return f"{datetime.datetime.fromtimestamp(seconds_of(text)):%Y-%m-%d %H:%M}"


def print_calls(db: Any, chosen: Filter, output_format: str) -> None:
    """Print a line for each call, the earliest first: csv for spreadsheets, json for programs.

    Times: csv has local ones without an offset, json the ledger's (UTC).
    """
    import csv

    columns = "*"
    if output_format == "csv":
        local = "strftime('%Y-%m-%d %H:%M:%S', {0}, 'localtime') AS {0}".format
        columns = f"connection_id, path, {local('recorded_at')}, {local('uploaded_at')}, "
        columns += "outcome, dialog_id, found_id, error"
    sql = f"SELECT {columns} FROM calls WHERE {chosen.calls} ORDER BY calls.recorded_at, path"
    cursor = db.execute(sql, chosen.values)
    names = [name for name, *_ in cursor.description]
    # Nothing in a call may move a terminal's cursor.
    rows = (tuple(value and one_line(value) for value in row) for row in cursor)
    if output_format == "json":
        encode = json.JSONEncoder(ensure_ascii=False).encode
        for row in rows:  # Not writelines, which would keep all of them in memory.
            print(encode(dict(zip(names, row))))  # noqa: B905
        return
    # The byte order mark tells spreadsheets that this is UTF-8.
    print("\ufeff", end="")
    writer = csv.writer(sys.stdout, delimiter=";", lineterminator="\n")
    writer.writerow(names)
    # Nobody's words may become a formula.
    writer.writerows(
        [f"'{cell}" if cell and cell[0] in "=+-@" else cell for cell in row] for row in rows
    )


def print_text(db: Any, args: Namespace, chosen: Filter, last_runs: list[LastRun]) -> None:
    """Print the report for people: totals, runs, days, what needs attention."""

    def counted(column: str) -> dict[str, Sequence[int]]:
        sql = f"SELECT {column}, {COUNTS} FROM calls WHERE {chosen.calls} GROUP BY 1"
        return {name: counts for name, *counts in db.execute(sql, chosen.values)}

    since = f" recorded since {args.since}" if args.since else ""
    now = datetime.datetime.now().astimezone()
    print_line(f"Calls{since} (ledger {args.ledger})")
    print(f"Days and times: {now:%Z}, now UTC{now.isoformat()[-6:]}\n")
    totals = {run.connection_id: NO_CALLS for run in last_runs} | counted("connection_id")
    for connection_id, counts in sorted(totals.items()):
        words = zip(counts, OUTCOMES.values(), strict=True)
        text = ", ".join(f"{n:,} {word}" for n, word in words if n or word == "uploaded")
        print_line(f"{connection_id}: {text}")
    print("" if totals else "No calls.\n")
    for run in last_runs:
        name = f" of {run.connection_id}" if len(last_runs) > 1 else ""
        print_line(f"Last complete run{name}: {run.text}")
    print("" if last_runs else "No runs.\n")
    print_days(counted(LOCAL_DAY), args.since)
    print_attention(db, chosen, len(totals) > 1)


def print_days(days: Mapping[str, Sequence[int]], since: datetime.date | None) -> None:
    """Print a table of days, the latest first, those without calls too."""
    if not days and not since:
        return
    limit = DAYS_SHOWN_SINCE if since else DAYS_SHOWN
    first, last = str(since or min(days)), today()
    recent = (str(last - datetime.timedelta(days=ago)) for ago in range(limit))
    every_day = sorted({*days, *(day for day in recent if day >= first)}, reverse=True)
    # What is being uploaded is in the totals only.
    widths = {word: max(len(word), 7) + 2 for word in [*OUTCOMES.values()][:-1]}
    print(f"{'Day':14}" + "".join(f"{word:>{width}}" for word, width in widths.items()))
    for day in every_day[:limit]:
        cells = zip(days.get(day, NO_CALLS), widths.values(), strict=False)
        weekday = f"{datetime.date.fromisoformat(day):%a}"
        print(f"{day} {weekday:3}" + "".join(f"{n:>{width},}" for n, width in cells))
    print("Earlier days: --since DAY\n" if every_day[limit:] else "")


def print_attention(db: Any, chosen: Filter, name_connections: bool) -> None:
    """Print all that is open, the gravest cause first; of each cause the newest few."""
    sql = f"SELECT exit_code, cause, count(*), min(since) FROM attention WHERE {chosen.attention}"
    causes = db.execute(f"{sql} GROUP BY 1, 2 ORDER BY 1, 2", chosen.values).fetchall()
    if not causes:
        print("Nothing needs attention.")
        return
    print(f"Needs attention: {sum(number for _, _, number, _ in causes):,}, the newest first")
    # Warnings come last.
    causes.sort(key=lambda row: (*GRAVEST_FIRST, row[0]).index(row[0]))
    for exit_code, cause, number, first in causes:
        kind = f"exit code {exit_code}" if exit_code else "a warning"
        print()
        print_line(f"{number:,} {cause} ({kind})")
        sql = f"""SELECT since, connection_id, path, error, what_to_do FROM attention
            WHERE ({chosen.attention}) AND exit_code = :exit_code AND cause = :cause
            ORDER BY since DESC, path DESC LIMIT {ATTENTION_SHOWN}"""
        said = ""
        values = {**chosen.values, "exit_code": exit_code, "cause": cause}
        for since, connection_id, path, *what in db.execute(sql, values):
            if (text := "; ".join(filter(None, what))) != said:
                print_line(f"  {text}")
                said = text
            name = f"{connection_id}  " if name_connections else ""
            print_line(f"    {local_time(since)}  {name}{path or '(the run)'}")
        if (rest := number - ATTENTION_SHOWN) > 0:
            where = "--format csv" if exit_code else "the view attention in the ledger"
            print_line(f"  and {rest:,} more, since {local_time(first)}: {where}")


def print_line(text: str) -> None:
    """Print a line; it is not cut, so that paths can be copied."""
    print(one_line(text))


# --- 17. Options and main ---------------------------------------------------------------------


def age(text: str) -> float:
    """Return an age in seconds: 90, 90s, 5m, 1h or 2d."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?)([smhd]?)", text.strip())
    if not match or float(match[1]) > 1e6:
        raise argparse.ArgumentTypeError("must be a number of seconds, or like 5m, 1h, 2d")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}[match[2]]


def day(text: str) -> datetime.date:
    """Return a local day: YYYY-MM-DD, today, yesterday, or 7d for seven days ago."""
    days = {"today": "0d", "yesterday": "1d"}.get(text, text)
    with contextlib.suppress(ValueError, OverflowError):
        if match := re.fullmatch(r"(\d{1,5})d", days):
            return today() - datetime.timedelta(days=int(match[1]))
        found = datetime.date.fromisoformat(text)
        datetime.datetime.combine(found, datetime.time()).timestamp()  # Fails for the year 1.
        return found
    raise argparse.ArgumentTypeError("must be YYYY-MM-DD, today, yesterday, or like 7d")


def one_of(*choices: str) -> Callable[[str], str]:
    """Return a type of an option whose error, unlike that of choices=, does not show the value."""

    def choice(text: str) -> str:
        if text in choices:
            return text
        raise argparse.ArgumentTypeError(f"must be {', '.join(choices[:-1])} or {choices[-1]}")

    return choice


def number(kind: type[int] | type[float], least: float, most: float) -> Callable[[str], float]:
    """Return the type of an option for a number in a range."""

    def checked(text: str) -> float:
        with contextlib.suppress(ValueError):
            if least <= (value := kind(text)) <= most:
                return value
        what = "a whole number" if kind is int else "a number"
        raise argparse.ArgumentTypeError(f"must be {what} from {least:,g} to {most:,g}")

    return checked


def terminal_width() -> int:
    """Return the terminal's width in characters, from 40 to 100; without one that of an email."""
    columns = 0
    # shutil.get_terminal_size() does the same, but importing it takes some ms.
    with contextlib.suppress(ValueError, OSError):
        columns = int(os.environ.get("COLUMNS", "0")) or os.get_terminal_size().columns
    return min(max(columns or 80, 40), 100)


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Fits the terminal; where that is narrow, what an option means has lines of its own."""

    def __init__(self, prog: str) -> None:
        width = terminal_width()
        super().__init__(prog, width=width, max_help_position=24 if width > 60 else 4)


class Parser(argparse.ArgumentParser):
    """argparse whose errors never show a value, as it may be a misplaced key."""

    def format_help(self) -> str:
        """Return the help: the docstring of this file, and the options."""
        import textwrap

        lines = []
        text = textwrap.TextWrapper(
            terminal_width(), break_long_words=False, break_on_hyphens=False
        )
        for line in (__doc__ or "").splitlines():
            text.initial_indent = line[: len(line) - len(line.lstrip())]
            text.subsequent_indent = text.initial_indent * 3
            lines += text.wrap(line.strip()) or [""]
        self.description, _, self.epilog = "\n".join(lines).partition("\n\n")
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        """Exit with 2."""
        self.exit(2, f"upload_grpc: {one_line(message)}; see --help\n")

    def parse(self, argv: Sequence[str] | None) -> Namespace:
        """Parse the command line; exit with 2, naming options, but no value that is not a path."""
        try:
            args, rest = self.parse_known_args(argv)
        except argparse.ArgumentError as error:
            name = error.argument_name or ""
            if isinstance(error.__context__, argparse.ArgumentTypeError):
                self.error(f"{name}: {error.__context__}")
            default = self.get_default(name.rpartition("/")[2].strip("-").replace("-", "_"))
            is_flag = default is False or default is argparse.SUPPRESS  # -h/--help, --version
            self.error(f"{name} takes no value" if is_flag else f"{name} needs a value")
        for word in rest:
            # Not what follows =, nor more than a letter of -kKEY.
            if match := re.match(r"(--?[a-z][a-z_-]{0,20}|-[A-Za-z])(=|$)", word):
                self.error(f"unknown option {match[1]}")
        for word in rest:
            if os.path.lexists(word):
                self.error(f"unexpected argument {word}: paths follow --audio-path")
            self.error("unexpected argument")
        return args


def make_parser() -> Parser:
    """Define the options, as README's table has them."""
    parser = Parser(
        prog="upload_grpc.py",
        usage="%(prog)s --audio-path PATH\n    --connection-id ID [option ...]",
        formatter_class=HelpFormatter,
        allow_abbrev=False,
        exit_on_error=False,
    )
    # fmt: off
    option = parser.add_argument_group("what to upload").add_argument
    option("--audio-path", action="extend", nargs="+", default=[], metavar="PATH",
           help="recordings (WAV with 16 bit LPCM, MP3, OggOpus; others with --convert), or "
                "folders searched for them")
    option("--connection-id", metavar="ID", help="the connection to upload to")
    option("--meta-path", metavar="FILE",
           help="JSON object of metadata fields; call.json beside call.wav wins, field by field")
    option("--talk-id", metavar="ID",
           help="send --meta-path alone: new metadata for this dialog; keys left out are erased")
    option("--audio-type", type=one_of("auto", *AUDIO_TYPES), default="auto", metavar="TYPE",
           help=f"auto (default): from the content; else {', '.join(AUDIO_TYPES)} (raw signed "
                "16 bit little-endian samples)")
    option("--sample-rate", type=number(int, SAMPLE_RATES_HZ[0], SAMPLE_RATES_HZ[-1]), default=0,
           metavar="HZ", help="of raw samples")
    option("--channels", type=number(int, 1, 64), default=0, metavar="N", help="of raw samples")
    option("--convert", action="store_true",
           help="have FFmpeg convert recordings in a format that the service does not take")
    option("--min-duration", type=number(float, 0, 100_000), default=0.0, metavar="S",
           help="leave out recordings shorter than S seconds; MP3 and OggOpus are not measured")
    option("--require-json", type=age, nargs="?", const=3600.0, metavar="AGE",
           help="in folders, upload only recordings that have their own JSON; one that waits "
                "longer than AGE (default: 1h) is a problem")
    option("--update-metadata", action="store_true",
           help="send a JSON that changed after the upload to the dialog; needs --ledger")
    option("--since", type=day, metavar="DAY",
           help="leave out recordings older than YYYY-MM-DD, today, yesterday or 7d, unless the "
                "ledger knows them, or they came after the first run over the same paths; with "
                "--report: begin there")
    option("--min-age", type=age, default=0.0, metavar="AGE",
           help="leave out files that changed less than AGE ago (90, 5m, 1h): they may still be "
                "written to")
    option = parser.add_argument_group("access").add_argument
    option("--key", metavar="KEY", help="API key or IAM token; every user sees it in process lists")
    option("--key-file", metavar="FILE", help="file that holds the key or token")
    option("--key-type", type=one_of("auto", "api-key", "iam-token", "vm"), default="auto",
           metavar="TYPE",
           help="auto (default), api-key, iam-token or vm. auto: t1. begins an IAM token; without "
                "--key and --key-file API_KEY is taken from the environment, then IAM_TOKEN. "
                "vm: the token of this cloud VM's "
                "service account, from its metadata service (YC_METADATA_ADDR: another address)")
    option("--endpoint", metavar="HOST:PORT", default=ENDPOINT, help="default: %(default)s")
    option("--ca-file", metavar="FILE", help="PEM certificates to trust instead of the public ones")
    option = parser.add_argument_group("how").add_argument
    option("--single-message", action="store_true",
           help="one message instead of a stream: under 128 MB, all of it in memory")
    option("--split", action="store_true",
           help="have the service split a long recording of one channel, WAV or MP3, into dialogs")
    option("--wait", action="store_true",
           help=f"with --split: wait for its dialog IDs, up to {WAIT_LIMIT_S / 3600:g} hours")
    option("--jobs", type=number(int, 1, 64), default=4, metavar="N",
           help="uploads at a time (default: 4)")
    option("--retries", type=number(int, 0, 100), default=5, metavar="N",
           help="retries per recording (default: 5)")
    option("--timeout", type=number(float, 0.1, 86_400), default=TIMEOUT_S, metavar="S",
           help="abandon an attempt after S seconds without progress (default: %(default)g)")
    option("--ledger", metavar="FILE", help="remember what was uploaded, and send nothing twice")
    option("--retry-unknown", action="store_true",
           help="send again what the ledger has as unknown: without --lookup-key this may create "
                "duplicates")
    option("--retry-rejected", action="store_true",
           help="send again what the service rejected, after a fix in the console")
    option("--dry-run", action="store_true",
           help="check everything, say what would be uploaded, upload nothing")
    option = parser.add_argument_group("looking unknown recordings up").add_argument
    option("--lookup-key", metavar="KEY",
           help="a string key of the connection's metadata: send each recording's SHA-256 under "
                "it, and find unknown ones by it; needs --ledger and the next two options")
    option("--organization-id", metavar="ID", help="where the connection is")
    option("--space-id", metavar="ID", help="where the connection is")
    option("--project-id", metavar="ID", help="look only in this project")
    option = parser.add_argument_group("output").add_argument
    option("--report", action="store_true",
           help="print what the --ledger knows: each day's counts, and what needs attention")
    option("--format", type=one_of("text", "json", "csv"), default="text", metavar="FORMAT",
           help="of stdout: text (default), json, or for --report csv")
    option("--quiet", action="store_true", help="on stderr: only failures and doubtful metadata")
    option("--verbose", action="store_true", help="on stderr: every step, with IDs")
    option("--version", action="version", version=f"upload_grpc {__version__}")
    # fmt: on
    return parser


def parse_arguments(argv: Sequence[str] | None) -> Namespace:
    """Parse the command line; exit with 2 if options are missing or contradictory."""
    parser = make_parser()
    args = parser.parse(argv)
    args.connection_id = args.connection_id and args.connection_id.strip()
    for name, value in vars(args).items():
        # An unset $LEDGER expands to ''; reject it. (authorization() reports an empty --key.)
        if value == "" and name != "key":
            parser.error(f"--{name.replace('_', '-')} is empty")
    given = {name for name, value in vars(args).items() if value not in (None, 0, [], "auto")}
    with_audio = {"audio_path", "audio_type", "min_age", "split", "single_message", "ledger"}
    with_audio |= {"require_json"}
    pcm_format = {"sample_rate", "channels"} & given
    lookup = ("organization_id", "space_id", "ledger")
    missing = ", ".join(f"--{each.replace('_', '-')}" for each in lookup if each not in given)
    about_lookup = {"organization_id", "space_id", "project_id"} & given
    pcm = args.audio_type == "pcm"
    wrong = (
        (not args.connection_id and not args.report, "--connection-id is missing"),
        (args.report and not args.ledger, "--report needs --ledger"),
        (args.format == "csv" and not args.report, "--format csv is for --report"),
        (not (args.talk_id or args.audio_path or args.report), "--audio-path is missing"),
        ("" in args.audio_path, "--audio-path is empty"),
        (args.talk_id and not args.meta_path, "--talk-id needs --meta-path"),
        (args.talk_id and with_audio & given, "--talk-id sends metadata only, and no audio"),
        (pcm and len(pcm_format) < 2, "--audio-type pcm needs --sample-rate and --channels"),
        (pcm_format and not pcm, "--sample-rate and --channels are for --audio-type pcm"),
        (args.split and args.single_message, "--split is a stream: leave out --single-message"),
        (args.wait and not args.split, "--wait is for --split"),
        ({"key", "key_file"} <= given, "--key and --key-file exclude each other"),
        (args.key_type == "vm" and {"key", "key_file"} & given, "--key-type vm takes no key"),
        (args.retry_unknown and not args.ledger, "--retry-unknown needs --ledger"),
        (args.update_metadata and not args.ledger, "--update-metadata needs --ledger"),
        (args.retry_rejected and not args.ledger, "--retry-rejected needs --ledger"),
        (args.lookup_key and missing, f"--lookup-key needs {missing}"),
        (about_lookup and not args.lookup_key, "--lookup-key is missing"),
    )
    for is_wrong, reason in wrong:
        if is_wrong:
            parser.error(reason)
    for name in ("connection_id", "lookup_key", *sorted(about_lookup), "talk_id"):
        if not (getattr(args, name) or "-").isprintable():
            what = "key" if name == "lookup_key" else "ID"
            parser.error(f"--{name.replace('_', '-')} has characters that no {what} has")
    args.suffixes = PCM.suffixes if pcm else SUFFIXES
    return args


def import_problem(error: Exception) -> UploadError:
    """Say why grpc or the stubs cannot be loaded, and what helps."""
    venv, stubs = os.path.join(HERE, ".venv"), os.path.join(HERE, "generated")
    places = [HERE, venv, os.path.join(venv, "bin/python")]
    for folder in (*sys.path, stubs):
        names = ("", "grpc", "google/protobuf", "yandex/cloud/speechsense/v1")
        places += [os.path.join(folder, name) for name in names]
    for place in places:
        if blocked := find_blocked(place):
            at = "" if blocked == place else f" at {blocked}"
            cause = f"{place} cannot be read{at}: Permission denied"
            advice = "give this user the right to read it; it was made by another one"
            return config_error("venv", cause, advice)
    cause = f"cannot load grpc and the stubs in {stubs}: {error}"
    if limit := limit_error(error):
        return limit
    if not os.path.exists(os.path.join(HERE, "Makefile")):
        cause = f"{HERE} has no packages: upload_grpc.py is away from its clone"
        return config_error("clone", cause, "put it back, and make a link to it: ln -s")
    import shlex

    return config_error("stubs", cause, f"run: make -C {shlex.quote(HERE)}")


def find_blocked(path: str) -> str:
    """Return what this user may not read of a path, the files in a folder, or what leads there."""
    folder = "/"
    for name in os.path.realpath(path).split("/")[1:]:
        if not os.access(folder, os.X_OK):
            return folder
        folder = os.path.join(folder, name)
        if not os.path.lexists(folder):
            return ""
    if not os.path.isdir(folder):
        return "" if os.access(folder, os.R_OK) else folder
    if not os.access(folder, os.R_OK | os.X_OK):
        return folder
    files = (entry.path for entry in os.scandir(folder))
    return next((file for file in files if not os.access(file, os.R_OK)), "")


def check_files_limit(jobs: int, converts: bool) -> None:
    """Raise UploadError if so many uploads could not open their files: grpc may abort then."""
    import resource

    needed = FILES_NEEDED + FILES_PER_JOB * jobs * (2 if converts else 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if not 0 <= soft < needed:  # Negative: unlimited.
        return
    if not 0 <= hard < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
        return
    cause = f"the limit on open files is {hard}, and {needed} are needed"
    raise config_error("files", cause, RAISE_FILES)


def report_bug(bug: BaseException) -> int:
    """Print the traceback of a bug, or the limit that it met; return the exit code."""
    if limit := limit_error(bug):
        log.error(str(limit))
        return limit.meaning.exit_code
    for line in "".join(traceback.format_exception(bug)).splitlines():
        log.error(line)
    log.error("this is a bug: report it with the lines above")
    return os.EX_SOFTWARE


def run_command(args: Namespace, console: Console, ledger: Ledger | None) -> int:
    """Run with an open ledger, so that a wrong setting, too, is said once and not in each run."""
    problems = Problems(args, ledger)
    try:
        access = None if args.dry_run else Access(args)
        run = Run(args, access, console, ledger, problems)
    except UploadError as error:
        if isinstance(error, LedgerError):
            raise
        problems.note("", error)
        problems.finish(is_complete=False)
        return error.meaning.exit_code
    return run.plan() if args.dry_run else run.main()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")
    SECRETS.clear()
    # No file of ours gets a number that FFmpeg takes for stdin, stdout or stderr.
    while (spare := os.open(os.devnull, os.O_RDWR)) < 3:
        pass
    os.close(spare)
    args = parse_arguments(argv)
    console = Console(args)
    try:
        if sys.stdout is None:
            advice = "results go there: redirect it"
            raise UploadError(Meaning(os.EX_IOERR, "stdout", "stdout is closed", advice))
        if args.report:
            return report(args)
        if import_error:
            raise import_problem(import_error)
        check_files_limit(args.jobs if console.several else 1, args.convert)
        if args.talk_id:
            return update_talk(args, None if args.dry_run else Access(args), console)
        ledger = Ledger(args) if args.ledger else None
        with contextlib.closing(ledger) if ledger else contextlib.nullcontext():
            return run_command(args, console, ledger)
    except UploadError as error:
        level = error.level(args) if isinstance(error, LedgerError) else logging.ERROR
        log.log(level, str(error))
        return error.meaning.exit_code
    except Exception as bug:  # noqa: BLE001 - a bug is reported, whatever it is.
        return report_bug(bug)


if __name__ == "__main__":
    code = main()
    with contextlib.suppress(OSError, AttributeError):  # Full, or closed from the beginning.
        sys.stdout.flush()
    # Skip the interpreter's cleanup: it takes some ms, and threads may still be in grpc's code.
    os._exit(code)
