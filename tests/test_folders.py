"""What happens in a folder between runs, or during one: renamed, replaced, removed, linked."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from conftest import Outcome, make_wav
from stand_in import At, Call, Fail, Step
from stories import DAY_S, HOUR_S, LOST_ANSWER, REJECTED, Cron, lines

import upload_grpc

pytestmark = pytest.mark.usefixtures("waits")

# For Cron.tell().
STORIES = {
    # Rows of content that is no more.
    "one that was being written leaves no failure": """
        call a.wav 600000, while_it changes a.wav           : 75
        works                                               : 0
        in the store                                        : -
        report                                              : 0 | Nothing needs attention
    """,
    "nor is it said to be replaced, if it is young then": """
        call a.wav 600000, while_it changes a.wav           : 75
        --min-age=1h                                        : 0
        works                                               : 0
        in the store                                        : -
    """,
    "nor one that only grew": """
        mp3 a.mp3, fail                                     : 75
        mp3 a.mp3 2, works                                  : 0
        in the store                                        : -
    """,
    "a rejected file that was replaced, as advised, is no failure any more": """
        call a.wav, refuse                                  : 65 a.wav
        call a.wav 4000, works                              : 0
        in the store                                        : -
        report                                              : 0 | Nothing needs attention
    """,
    "a failed call whose name another uses is lost: no run can upload it": """
        call a.wav 2000 1, fail                             : 75
        call a.wav 2000 2, works                            : 0 a.wav
        report                                              : 0 | Needs attention: 1
        in the end                                          : a.wav name-used-again
    """,
    "what failed and is uploaded by another name is not replaced: rotated": """
        call current.wav 2000 1, fail                       : 75
        rename current.wav rec.1.wav, call current.wav 4000 2, works : 0
        in the store                                        : - -
    """,
    "what failed and is uploaded by another name is not replaced: a link to the latest": """
        call rec.1.wav, link current.wav rec.1.wav, fail    : 75
        call rec.2.wav 4000, remove current.wav, link current.wav rec.2.wav, works : 0
        in the store                                        : - -
    """,
    # Renamed or moved: it is young then.
    "what was renamed, and waits, is not lost: broken": """
        broken a.wav                                        : 65 a.wav
        rename a.wav b.wav, --min-age=300                   : 0
    """,
    "what was renamed, and waits, is not lost: failed in an outage": """
        call a.wav, call keep.wav, fail                     : 75
        rename a.wav day/a.wav, works, --min-age=300        : 0
        in the store                                        :
    """,
    "what was renamed, and waits, is not lost: for the JSON of its new name": """
        call a.wav, --require-json=0s                       : 66 a.wav
        rename a.wav b.wav, --require-json=1h               : 0
    """,
    "what was uploaded, and is archived below the folder, is not lost": """
        call a.wav, json a.wav 1, call keep.wav             : 0
        json a.wav 2                                        : 0 a.wav
        rename a.wav archive/a.wav, remove a.json           : 0
    """,
    "nor does it need the JSON that was not archived with it": """
        call a.wav, json a.wav 1, --require-json            : 0
        rename a.wav archive/a.wav, remove a.json, --require-json=0s : 0
    """,
    "what is not uploaded does: failed": """
        call a.wav, json a.wav 1, fail, --require-json      : 75
        rename a.wav b.wav, remove a.json, works, --require-json=0s : 66 b.wav
        in the store                                        :
    """,
    "what is not uploaded does: rejected": """
        call a.wav, json a.wav 1, refuse, --require-json    : 65 a.wav
        rename a.wav b.wav, remove a.json, works, --require-json=0s : 66 b.wav
        in the store                                        :
    """,
    # A name that was used again.
    "the JSON of what was moved counts though its name is another's": """
        call rec.wav 2000 1, json rec.wav 1, --update-metadata : 0
        rename rec.wav archive/rec1.wav, rename rec.json archive/rec1.json,
            call rec.wav 2000 2, json rec.wav 2, --update-metadata : 0
        json archive/rec1.wav changed, --update-metadata    : 0
        in the store                                        : changed 2
    """,
    "and has it sent again if it was rejected": """
        call rec.wav 2000 1, json rec.wav 1, refuse         : 65 rec.wav
        rename rec.wav archive/rec1.wav, remove rec.json, json archive/rec1.wav corrected,
            call rec.wav 2000 2, works                      : 0
        in the store                                        : - corrected
    """,
    "its conversion updates no dialog of the first": """
        call rec.wav 2004 1, json rec.wav first, --update-metadata : 0
        call rec.wav 2008 2, json rec.wav second, --update-metadata : 0
        rename rec.wav rec.mp3, --update-metadata           : 0
        in the store                                        : first second
    """,
    "its conversion updates no dialog of the first, whichever digest is less": """
        call rec.wav 2008 2, json rec.wav first, --update-metadata : 0
        call rec.wav 2004 1, json rec.wav second, --update-metadata : 0
        rename rec.wav rec.mp3, --update-metadata           : 0
        in the store                                        : first second
    """,
    # A night job turns X.wav into X.mp3.
    "metadata that change after that are said once": """
        call a.wav, json a.wav 1, --update-metadata         : 0
        rename a.wav a.mp3, json a.wav 2,
            --update-metadata : 0 a.mp3 | another format now; update its dialogs with --talk-id
        --update-metadata                                   : 0
        in the store                                        : 1
    """,
    "an unknown one that is sent again is not unknown any more": """
        call a.wav, lose                                    : 76 a.wav
        call a.mp3 4000, remove a.wav                       : 76 a.mp3
        --retry-unknown                                     : 0
                                                            : 0
        report                                              : 0 |
    """,
    "a failed one that is uploaded is no failure any more": """
        call a.wav, fail                                    : 75
        call a.mp3 4000, remove a.wav, works                : 0
        in the store                                        : -
        report                                              : 0 |
    """,
    "failed as WAV and unknown as MP3, it is one call": """
        call a.wav, fail_one                                : 75
        call a.mp3 4000, remove a.wav, lose                 : 76 a.mp3
        report                                              : 76 | Needs attention: 2
        its calls                                           : a.mp3 unknown
    """,
    "rejected as WAV and unknown as MP3, it is one call": """
        call a.wav, refuse                                  : 65 a.wav
        call a.mp3 4000, remove a.wav, works, lose          : 76 a.mp3
        report                                              : 76 | Needs attention: 1
        its calls                                           : a.mp3 unknown
    """,
    "what stays where the original was is no new call": """
        call a.wav                                          : 0
        rename a.wav archive/a.wav, call a.mp3 3000         : 0
                                                            : 0
                                                            : 0
        in the store                                        : -
    """,
    "a touched file that was sent goes before another format of it": """
        mp3 a.mp3                                           : 0
        call a.wav 3000, touch a.mp3                        : 0
                                                            : 0
        in the store                                        : -
    """,
    # Removed.
    "what is removed as advised is not lost": """
        call b.wav, empty a.wav                             : 65 a.wav | or remove it
        remove a.wav                                        : 0
    """,
    "another file of the same size and time is no other name of a lost one": """
        call 1-in.wav, call 1-out.wav, touch 1-in.wav, touch 1-out.wav, fail_one : 75
        remove 1-in.wav                                     : 66 1-in.wav
    """,
    "what was refused, copied by a tool that keeps no times, and sent is not lost": """
        call a.wav, refuse                                  : 65 a.wav
        copy a.wav b.wav, remove a.wav, works               : 0
        in the store                                        : -
    """,
    "nor if a run that an outage ends early is the first to meet it": """
        call b.wav, refuse                                  : 65 b.wav
        copy b.wav a.wav, remove b.wav, call 1.wav, call 2.wav, call 3.wav, call c.wav, call d.wav,
            call e.wav, fail                                : 75
        works                                               : 0
    """,
    "a copy of an unknown one is unknown, and not lost when both are gone": """
        call keep.wav                                       : 0
        call a.wav 2000 1, call b.wav 2000 1, lose          : 76 a.wav b.wav
                                                            : 76
        its calls                                 : a.wav unknown b.wav unknown keep.wav uploaded
        remove a.wav, remove b.wav                          : 0
        report                                              : 76 | Needs attention: 1
    """,
    "what is uploaded may be removed during a run": """
        call b.wav                                          : 0
        call a.wav, while_it removes b.wav                  : 0
    """,
    "what failed is lost then": """
        call b.wav, fail                                    : 75
        call a.wav, while_it removes b.wav                  : 66 b.wav | gone before it was uploaded
    """,
    "a JSON that is replaced during a run is nothing to email": """
        call a.wav, call b.wav, json b.wav 1, while_it removes b.json : 75
    """,
    # Links.
    "a recording with a link before it has its own metadata": """
        call rec.wav, json rec.wav own, link current.wav rec.wav : 0
        in the store                                        : own
    """,
    "so it has in a folder of links": """
        call tree/rec.wav, json tree/rec.wav own, link sorted/by-day/x.wav tree/rec.wav : 0
        in the store                                        : own
    """,
    "a link without JSON does not keep it from being uploaded": """
        call rec.wav, json rec.wav own, link current.wav rec.wav, --require-json : 0
        in the store                                        : own
    """,
    "a hard link without JSON, as of names by day and by agent, does not either": """
        call b.wav, hard_link a.wav b.wav, json b.wav own, --require-json : 0
        in the store                                        : own
        --require-json=0s                                   : 0
    """,
    "a JSON that is written for that name later counts": """
        call b.wav, hard_link a.wav b.wav, json b.wav own, --require-json : 0
        json b.wav new, --require-json=0s, --update-metadata : 0
        in the store                                        : new
    """,
    "a later call of the same name that failed, and is converted, is sent": """
        call rec.wav 2000 1                                 : 0
        call rec.wav 4000 2, fail                           : 75
        mp3 rec.mp3, remove rec.wav, works                  : 0
        its calls                                           : rec.mp3 uploaded rec.wav uploaded
        in the store                                        : - -
    """,
    "so is one that was refused for its header, or had no JSON": """
        call 1.wav 2000 1, call 2.wav 2000 2, json 2.wav -  : 0
        broken 1.wav                                        : 65 1.wav
        mp3 1.mp3, remove 1.wav                             : 0
        in the store                                        : - - -
        call 2.wav 4000 3, remove 2.json, --require-json=0s : 66 *
        mp3 2.mp3 2, remove 2.wav, json 2.wav -             : 0
        in the store                                        : - - - -
    """,
    "and not only if its first try works": """
        call rec.wav 2000 1                                 : 0
        broken rec.wav                                      : 65 rec.wav
        mp3 rec.mp3, remove rec.wav, fail                   : 75
        works                                               : 0
        in the store                                        : - -
    """,
    "but not what was made of an unknown one, and was not sent with --retry-unknown": """
        call a.wav, lose                                    : 76 a.wav
        mp3 a.mp3, remove a.wav                             : 76 a.mp3
        fail, --retry-unknown                               : 75
        find, works                                         : 0
        in the store                                        : -
    """,
    "nor what was made of the first call, before the later one": """
        call rec.wav 2000 1                                 : 0
        mp3 rec.mp3, call rec.wav 4000 2, fail              : 75
        remove rec.wav, works                               : 0
        in the store                                        : -
    """,
    "nor if the later one is emptied": """
        call rec.wav 2000 1                                 : 0
        mp3 rec.mp3, call rec.wav 4000 2, fail              : 75
        empty rec.wav, works                                : 0
        in the store                                        : -
    """,
    "nor what was made of one that was refused, replaced by a copy with its old time, and sent": """
        refuse, call a.wav                                  : 65 a.wav
        works, call a.wav 4000, touch a.wav                 : 0
        mp3 a.mp3, remove a.wav                             : 0
        in the store                                        : -
    """,
    "of two names without JSON one gets one: on the next day nobody waits for the other's": """
        call raw/1.wav, link zz/anna.wav raw/1.wav, --require-json=0s : 66 1.wav anna.wav
        json zz/anna.wav anna, --require-json=0s            : 66
        day, --require-json=0s                              : 0
        in the store                                        : anna
    """,
    "what has a name after a copy with another JSON is no update in a dry run either": """
        call a.wav, json a.wav anna, --update-metadata      : 0
        rename a.wav x.wav, rename a.json x.json,
        copy x.wav y.wav, json y.wav boris, --update-metadata, --dry-run : 65 y.wav
        --update-metadata                                   : 65 y.wav
        in the store                                        : anna
    """,
    "a JSON beside a link counts where the recording has none": """
        call raw/1.wav, link by/anna.wav raw/1.wav, json by/anna.wav anna, --require-json=0s : 0
        in the store                                        : anna
    """,
    "a broken one whose name was used again is lost though what had the name is sent": """
        call keep.wav, call 1.wav 2000 1, fail              : 75
        rename 1.wav x.txt, broken 1.wav, works             : 65 1.wav
        rename x.txt old/2.wav, remove 1.wav                : 66 1.wav
        in the store                                        : - -
    """,
    "a failed one whose name was used again is not hidden by what is unknown": """
        call 1.wav, fail                                    : 75
        call 1.wav 4000, works, lose                        : 76 1.wav
        its calls                                           : 1.wav failed 1.wav unknown
    """,
    "a call with the audio of one that is archived takes over no dialog": """
        call a.wav 2000 1, json a.wav anna, --update-metadata : 0
        remove a.wav, remove a.json, call b.wav 2000 1, json b.wav boris,
        --update-metadata                                   : 65 b.wav | same audio as
        --update-metadata                                   : 65
        in the store                                        : anna
    """,
    "but one that was moved is the same": """
        call a.wav 2000 1, json a.wav anna, --update-metadata : 0
        rename a.wav x/a.wav, rename a.json x/a.json,
        json x/a.wav new, --update-metadata                 : 0
        in the store                                        : new
    """,
    "audio that was changed after its upload, with the JSON as it was, is no second call": """
        call a.wav 2000 1, json a.wav anna, --require-json  : 0
        call a.wav 3000 2, --require-json                   : 65 a.wav | sent with other audio
        json a.wav boris, --require-json                    : 0
        in the store                                        : anna boris
    """,
    "nor after a lost answer, and it is over when it is moved away": """
        call keep.wav, json keep.wav keep                   : 0
        call a.wav 2000 1, json a.wav anna, lose            : 76 a.wav
        call a.wav 3000 2                                   : 65 a.wav | sent with other audio
        remove a.wav                                        : 0
        report                                              : 76 | unknown
        in the store                                        : keep anna
    """,
    "--retry-unknown is for what is unknown": """
        call a.wav 2000 1, json a.wav anna                  : 0
        call a.wav 3000 2                                   : 65 a.wav
        --retry-unknown                                     : 65
        in the store                                        : anna
    """,
    # What has waited, or was not tried.
    "what an expired key kept from being tried is lost when it is moved away": """
        call keep.wav                                       : 0
        call 1.wav, call 2.wav, call 3.wav, days_ahead 1, --key=expired : 77 *
        --key=expired                                       : 77
        remove 1.wav, remove 2.wav, rename 3.wav day/3.wav  : 66 1.wav 2.wav | gone before it was
        report                                              : 66 | 2 lost
        in the store                                        : - -
    """,
    "what an outage did, too": """
        call keep.wav                                       : 0
        call 1.wav, call 2.wav, call 3.wav, call 4.wav, call 5.wav, call 6.wav, call 7.wav,
        days_ahead 1, fail                                  : 75
        remove 7.wav, works                                 : 66 7.wav | earlier: not tried
    """,
    "--since counts for what an earlier run did not try": """
        call keep.wav, call 1.wav, call 2.wav, days_ahead 9, --key=expired : 77 *
        --since=7d                                          : 0
        in the store                                        : -
        remove 2.wav, --since=7d                            : 0
    """,
    "what waits for its JSON is lost when it is moved away": """
        call keep.wav, json keep.wav keep                   : 0
        call a.wav, days_ahead 1, --require-json=2d         : 0
        report                                              : 0 | Nothing needs attention
        remove a.wav, --require-json=2d                     : 66 a.wav | earlier: it has no JSON yet
        day, --require-json=2d                              : 0
    """,
    "but what was young may have been a temporary file": """
        call keep.wav, json keep.wav keep                   : 0
        call a.wav, --require-json=2d                       : 0
        remove a.wav, --require-json=2d                     : 0
        call b.wav, --min-age=300                           : 0
        remove b.wav                                        : 0
        in the end                                          :
    """,
    "what gets a new ctime each night waits no longer for its JSON": """
        call a.wav, days_ahead 1, --require-json=36h        : 0
        days_ahead 0, hours 72, --require-json=36h          : 66 a.wav | no metadata yet
        --require-json=36h                                  : 66
    """,
    "what was sent by another name, or may be left out for its length, is not lost": """
        call keep.wav, call 0.wav                           : 0
        rename 0.wav z/0.wav, call 1.wav, call 2.wav 200, empty 3.wav, days_ahead 1,
        --key=expired, --min-duration=0.1                   : 77 *
        remove z/0.wav, remove 2.wav, remove 3.wav          : 0
        report                                              : 0
    """,
    "what failed, and was young then, is lost if it is gone": """
        call keep.wav, call a.wav, fail_one                 : 75
        --min-age=300                                       : 0
        call b.wav, remove a.wav                            : 66 a.wav
    """,
    "what is wrong with a run hides nothing that is lost": """
        call keep.wav                                       : 0
        call a.wav, call b.wav, fail                        : 75
        remove a.wav                                        : 66 a.wav
    """,
    "what is converted while it is young is of the later call, too": """
        call rec.wav, call two.WAV                          : 0
        broken rec.wav, broken two.WAV                      : 65 rec.wav two.WAV
        mp3 rec.mp3, remove rec.wav, mp3 two.mp3 2, remove two.WAV, --min-age=300 : 0
        --quiet                                             : 0
        in the store                                        : - - - -
    """,
    "what was made of a later call that waited, or was not tried, is of that one, too": """
        call 1.wav, call 2.wav 2000 2, json 2.wav -         : 0
        call 1.wav 4000 1, call 0.wav, days_ahead 1, --key=expired : 77 *
        mp3 1.mp3, remove 1.wav                             : 0
        in the store                                        : - - - -
        call 2.wav 4000 3, remove 2.json, --require-json=9d : 0
        mp3 2.mp3 2, remove 2.wav, --require-json=9d        : 0
        json 2.wav -, --require-json=9d                     : 0
        in the store                                        : - - - - -
    """,
    "what was refused, is converted, and is refused again is named once": """
        refuse, call a.wav                                  : 65 a.wav
        mp3 a.mp3, remove a.wav                             : 65 a.mp3
        day                                                 : 65 a.mp3
    """,
    "a call whose JSON has not come waits, wherever the first one of its name is": """
        call a.wav 2000 1, json a.wav anna                  : 0
        rename a.wav 1.wav, call a.wav 4000 2               : 65 a.wav
                                                            : 65
                                                            : 65
        json a.wav boris                                    : 0
        in the store                                        : anna boris
    """,
    "what was not tried, is moved, and has a new time then, is not lost": """
        call 1.wav, call 2.wav, days_ahead 1, --key=expired : 77 *
        rename 2.wav d/2.wav, touch d/2.wav                 : 0
    """,
    "what was made of audio with an old JSON has none of its own either": """
        call a.wav 2000 1, json a.wav anna                  : 0
        call a.wav 4000 2                                   : 65 a.wav
        mp3 a.mp3, remove a.wav                             : 65 a.mp3
        in the store                                        : anna
    """,
    "metadata that come after the upload, to another name, are an update": """
        call a.wav, days_ahead 1                            : 0
        rename a.wav b.wav, touch b.wav, json b.wav anna, --update-metadata : 0
        in the store                                        : anna
    """,
    # --since, and a key that expired, or a share that was away, for longer.
    "what came after the first run is not before --since": """
        call before.wav, --since=7d                         : 0
        call 0.wav, call 1.wav, call 2.wav, --since=7d, --key=expired : 77 *
        days_ahead 8, --since=7d                            : 0
        in the store                                        : - - - -
        call of-that-day.wav, --since=7d                    : 0
        in the store                                        : - - - - -
    """,
    "what is before a day that is yet to come stays so": """
        call a.wav, sleep 1, --since=2999-01-01             : 0
        --since=2999-01-01                                  : 0
        in the store                                        :
    """,
    "nor if the clock was wrong in a run since": """
        call before.wav, --since=7d                         : 0
        days_ahead 400, --since=7d                          : 0
        days_ahead 0, call 0.wav, call 1.wav, call 2.wav, --since=7d, --key=expired : 77 *
        days_ahead 8, --since=7d                            : 0
        in the store                                        : - - - -
    """,
    "nor if it was wrong in the first run": """
        days_ahead 400, call before.wav, --since=7d         : 0
        days_ahead 0, --since=7d                            : 0
        call 0.wav, call 1.wav, call 2.wav, --since=7d, --key=expired : 77 *
        days_ahead 8, --since=7d                            : 0
        in the store                                        : - - - -
    """,
    "nor if its folder was renamed": """
        broken day/a.wav, sleep 1, call keep.wav, --since=7d : 65 a.wav
        days_ahead 9, --since=7d                            : 65 a.wav
        rename day archive, --since=7d, --dry-run           : 65 a.wav
        --since=7d                                          : 65 a.wav
        report                                              : 65 |
    """,
    "nor if a part of the folder was away": """
        call keep.wav, call sub/old.wav, --since=7d         : 0
        call sub/new.wav, rename sub ../away, --since=7d    : 0
        days_ahead 9, --since=7d                            : 0
        rename ../away sub, --since=7d                      : 0
        in the store                                        : - - -
    """,
    "a run that does not find the share, or finds it empty, is no look": """
        call before.wav, --since=7d                         : 0
        call meanwhile.wav, unmount gone, days_ahead 8, --since=7d : 66 calls
        mount, unmount empty, --since=7d                    : 66 calls
        report               : 66 | none for 24 h looked at everything
        mount, --since=7d                                   : 0
        in the store                                        : - -
    """,
    "what the first run left out stays out": """
        call old.wav, json old.wav x, days_ahead 1, --since=today, --require-json=2d : 0
        --since=today, --require-json=2d                    : 0
        in the store                                        :
    """,
    "what is named already is no old file that nobody knows": """
        call a.wav, --since=7d, --require-json=1h           : 0
        days_ahead 1, --since=7d, --require-json=1h         : 66 a.wav
        days_ahead 9, --since=7d, --require-json=1h         : 66 a.wav
        report                                              : 66 |
        json a.wav own, --since=7d, --require-json=1h       : 0
        in the store                                        : own
    """,
    "a copy whose JSON changed like that of its original is no other call": """
        call b.wav 2000 1, json b.wav 1, --update-metadata  : 0
        copy b.wav a.wav, json a.wav 1, --update-metadata   : 0
        json a.wav 2, json b.wav 2, --update-metadata       : 0
        in the store                                        : 2
    """,
    "two calls of one silence stay two when the first is archived, and its dialog is its own": """
        call a.wav 2000 1, json a.wav anna, call b.wav 2000 1, json b.wav boris : 65 b.wav
        remove a.wav, remove a.json, --update-metadata      : 65
        day                                                 : 65 b.wav
        in the store                                        : anna
    """,
    "but what has the name of such a copy since is its own": """
        call a.wav 2000 1, json a.wav a, call b.wav 2000 1, json b.wav b,
        call c.wav, json c.wav c                            : 65 b.wav
        rename c.wav b.wav, rename c.json b.json, json b.wav new, --update-metadata : 0
        in the store                                        : a new
    """,
    "one that is emptied beside its conversion is not sent once more": """
        call a.wav                                          : 0
        mp3 a.mp3, empty a.wav                              : 0
        in the store                                        : -
    """,
    "and its JSON is that of a file in another format": """
        call a.wav, json a.wav old, --update-metadata       : 0
        mp3 a.mp3, empty a.wav, json a.wav new, --update-metadata : 0 a.mp3 | another format now
        in the store                                        : old
    """,
    "one that is emptied, and nothing is beside it, is empty": """
        call a.wav, json a.wav old, --update-metadata       : 0
        empty a.wav, json a.wav new, --update-metadata      : 65 a.wav
        in the store                                        : old
    """,
    "nor one that a stub is left of": """
        call a.wav                                          : 0
        mp3 a.mp3, broken a.wav                             : 65 a.wav
        remove a.wav                                        : 0
        in the store                                        : -
    """,
    "a JSON that comes while others are uploaded counts": """
        call a.wav, json a.wav anna, call b.wav, while_it writes b.wav : 0
        in the store                                        : anna boris
    """,
    # What waits, and what is over.
    "what waits is found": """
        call a.wav, --min-age=1h                            : 0
        report                                              : 0 | 1 found, 0 uploaded, 1 waiting
    """,
    "what is too short needs no JSON": """
        call a.wav, call b.wav 0, --require-json=0s, --min-duration=5 : 0
    """,
    "an error that was met before an outage is over": """
        call a.wav, no_json a.wav                           : 65 a.wav
        json a.wav corrected, fail                          : 75
        day                                                 : 75 no upload has worked since *
        in the end                                          : outage
    """,
}


@pytest.mark.parametrize("title", STORIES)
def test_story(cron: Cron, title: str) -> None:
    cron.tell(STORIES[title])


# --- What no story tells ---------------------------------------------------------------------


def test_a_recording_is_known_by_its_own_name_though_a_link_comes_first(cron: Cron) -> None:
    """`current.wav` leads to the latest recording, which a night job turns into an MP3."""
    call = cron.call("day/rec.wav")
    cron.link("current.wav", "day/rec.wav")
    assert cron.run().out == f"{call}: Dialog ID: {next(iter(cron.service.talks))}\n"
    cron.call("day/rec.mp3", 4_000)
    cron.remove("day/rec.wav")
    cron.remove("current.wav")
    assert cron.run() == Outcome(0, "", "")
    assert len(cron.service.talks) == 1


def test_what_was_said_of_a_json_is_not_said_again_when_an_export_rewrites_it(cron: Cron) -> None:
    """Each hour: it is young then, as its recording may be."""
    sidecar = cron.call("a.wav").with_suffix(".json")
    cron.json("a.wav", "before")
    assert cron.run().code == 0
    time.sleep(0.1)
    for content, code in (('{"client_name": "after"}', 0), ("no JSON", 65)):
        said = []
        for _ in range(3):
            sidecar.write_text(content)
            written_s = sidecar.stat().st_ctime
            # Both are young, the JSON alone is, none is any more.
            for min_age_s, after_s in ((3600, 0.025), (0.05, 0.025), (0.05, 0.075)):
                cron.stop_clock(written_s + after_s)
                last_code, names = cron.said("--min-age", min_age_s)
                said += names
            assert last_code == code
        assert said == ["a.wav"]


@pytest.mark.parametrize("ahead_s", [HOUR_S, 3 * DAY_S])
def test_by_a_file_server_s_clock_that_is_ahead_a_file_is_young(cron: Cron, ahead_s: float) -> None:
    """One that is days ahead was wrong then, and would be waited for for days."""
    written_s = cron.call("a.wav", 3_000).stat().st_ctime
    cron.stop_clock(written_s - ahead_s)
    waits = ahead_s < DAY_S
    assert (", 1 waiting" in cron.by_hand("--min-age", 300).err) == waits
    assert len(cron.service.calls) == (0 if waits else 1)
    cron.stop_clock(written_s + 301)
    assert cron.run("--min-age", 300).code == 0
    assert len(cron.service.calls) == 1


def test_what_was_sent_by_another_name_in_a_run_that_ended_early_is_not_lost(cron: Cron) -> None:
    cron.call("keep.wav")
    assert cron.run().code == 0
    for number in range(4):
        cron.call(f"{number}.wav")
    cron.days_ahead(1)
    assert cron.run("--key", "expired").code == 77
    for number in (2, 3):
        cron.rename(f"{number}.wav", f"day/{number}.wav")
    expired = Fail(grpc.StatusCode.UNAUTHENTICATED, "expired")
    cron.service.script[:] = [None, None, None, expired]  # 0, 1, day/2
    assert cron.said()[0] == 77
    assert cron.said() == (0, [])
    assert len(cron.service.talks) == 5


def test_a_json_written_anew_counts_though_the_file_server_s_clock_is_behind(cron: Cron) -> None:
    cron.call("a.wav", seed=1)
    cron.json("a.wav", "anna")
    assert cron.run().code == 0
    cron.call("a.wav", 3_000, seed=2)
    cron.stop_clock(time.time() + 60)
    assert cron.run().code == 65
    cron.json("a.wav", "boris")
    assert cron.run().code == 0
    assert len(cron.service.talks) == 2


def test_nested_folders_do_not_hide_what_lasts(cron: Cron) -> None:
    """With a folder and one in it: what fails for more than an hour is said."""
    cron.call("sub/a.wav", 600_000)
    cron.while_it("changes", "sub/a.wav")
    both = ("--audio-path", cron.folder, cron.folder / "sub", "--jobs", 2)
    assert cron.run(*both) == Outcome(75, "", "")
    cron.pass_time(2 * HOUR_S)
    assert cron.said(*both) == (75, ["a.wav"])


@pytest.mark.parametrize("name", [b"caf\xe9.wav", b"a\nb.wav"])
def test_an_odd_name_is_not_lost_while_it_waits_and_over_when_it_is_gone(
    cron: Cron, name: bytes
) -> None:
    """Refused, repaired in place, and young; refused again, and removed as advised."""
    call = cron.folder / os.fsdecode(name)
    cron.call("keep.wav")
    for repaired in (True, False):
        call.write_bytes(b"RIFF")
        assert cron.run().code == 65
        if repaired:
            make_wav(call, 3_000, seed=1)
            assert cron.run("--min-age", 300) == Outcome(0, "", "")
    call.unlink()
    cron.run()
    for _ in range(3):
        cron.day()
        assert cron.said() == (0, [])


def test_an_odd_name_beside_a_named_file_is_not_lost(cron: Cron) -> None:
    odd = os.path.join(os.fsencode(cron.folder), b"caf\xe9.wav")
    with open(odd, "wb") as file:
        file.write(b"RIFF")
    assert cron.run().code == 65
    outcome = cron.over(cron.call("other.wav"), "--quiet")
    assert (outcome.code, outcome.err) == (0, "")


def test_a_refused_raw_recording_is_sent_again_with_the_rate_that_it_has(cron: Cron) -> None:
    (cron.folder / "x.pcm").write_bytes(bytes(range(100)) * 100)
    words = ("--audio-type", "pcm", "--channels", 1, "--sample-rate")
    cron.refuse()
    assert cron.said(*words, 8_000) == (65, ["x.pcm"])
    cron.works()
    assert cron.said(*words, 8_000) == (65, [])
    assert cron.said(*words, 16_000) == (0, [])


def test_a_folder_that_was_renamed_takes_its_problems_with_it(cron: Cron) -> None:
    """The folder and cron's line are renamed: the old path is not said each day for ever."""
    cron.call("keep.wav")
    cron.broken("a.wav")
    assert cron.said() == (65, ["a.wav"])
    other = cron.folder.parent / "other" / "calls"
    other.parent.mkdir()
    cron.folder.rename(other)
    cron.over(other, "--quiet")
    cron.day()
    assert len(lines(cron.over(other, "--quiet"))) == 1


def test_of_those_that_failed_the_ones_tried_least_go_first(cron: Cron) -> None:
    """Five that can never be uploaded do not keep out one that failed once in an outage."""
    cut = Fail(grpc.StatusCode.UNAVAILABLE, "cut", after_bytes=1_000)
    works: set[str] = set()

    def step(call: Call) -> Step:
        return None if call.fields["client_name"] in works else cut

    cron.service.on_call = lambda _: At(metadata=step)
    for name in ("0", "1", "2", "3", "4", "innocent"):
        cron.call(f"{name}.wav", 600_000)
        cron.json(f"{name}.wav", name)
        for _ in range(4 if name == "4" else 1):
            assert cron.run().code == 75
    works.add("innocent")
    assert cron.run().code == 75
    clients = [talk.fields["client_name"] for talk in cron.service.talks.values()]
    assert clients == ["innocent"]


def test_what_has_new_ctimes_is_not_said_to_be_not_tried(cron: Cron) -> None:
    """A backup by hard links, and an outage."""
    paths = [cron.call(f"x{number}.wav") for number in range(9)]
    assert cron.by_hand().code == 0
    for path in paths:
        path.chmod(0o600)
    for number in range(5):
        cron.call(f"a{number}.wav")
    cron.fail()
    outcome = cron.by_hand()
    assert outcome.code == 75 and outcome.err.count("not tried") == outcome.err.count(
        ", 0 not tried"
    )


def test_a_folder_that_is_removed_during_a_search_is_no_problem(folder: Path) -> None:
    """A retention job; a long run searches while it uploads."""
    (folder / "z").mkdir()
    make_wav(folder / "a.wav", 2_000)
    search = upload_grpc.find_in_folder(str(folder), (".wav",))
    assert next(search).paths == [str(folder / "a.wav")]
    (folder / "z").rmdir()
    assert list(search) == []


def test_a_share_that_dies_during_a_run_is_said(
    cron: Cron, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As sshfs does: its files are neither there nor gone."""
    for name in "abc":
        cron.call(f"{name}.wav")

    def dying(stat: Any) -> Any:
        def look(path: Any, *more: Any, **options: Any) -> Any:
            if str(path).endswith(("b.wav", "c.wav")):
                raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")
            return stat(path, *more, **options)

        return look

    monkeypatch.setattr(os, "stat", dying(os.stat))
    monkeypatch.setattr(os, "lstat", dying(os.lstat))
    assert cron.said() == (66, ["b.wav", "c.wav"])


@pytest.mark.parametrize(("step", "code"), [(REJECTED, 65), (LOST_ANSWER, 76)])
def test_the_report_has_calls_that_only_their_endings_tell_apart(
    cron: Cron, step: Fail, code: int
) -> None:
    paths = [cron.call("rec.103000"), cron.call("rec.104500")]
    cron.service.script.append(step)
    assert cron.over(*paths).code == code
    outcome = cron.report("--format", "csv")
    assert outcome.code == code and all(path.name in outcome.out for path in paths)
