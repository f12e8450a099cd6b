"""What the kit says, and with which exit code, for every error of the service in the words of two client versions.

The replies in kaggle_stub/replies.json were recorded from the real clients (kaggle_stub/record_replies.py).
"""

import importlib.metadata
import json
import sys

import pytest

from osteograde.kaggle import cli, client
from osteograde.kaggle.client import Cause, Reply
from tests.kaggle_stub import record_replies, reply_table

REPLIES = json.loads(record_replies.FILE.read_text(encoding="utf-8"))
RETRY, REFUSED = cli.RETRY, 2
LOG_IN, RULES = "kaggle auth login", "https://www.kaggle.com/competitions/some-competition/rules"
# Situation -> exit code, what the service says, what we advise. Client 2.2.4 tells no HTTP status, so words that are
# not known end in a refusal there (second table).
EXPECTED = {
    "400 download": (REFUSED, "Invalid file name", "exit code 1"),
    "401 download": (REFUSED, "Authentication required", LOG_IN),
    "401 status": (REFUSED, "Cannot access kernel 'tester/some-kernel'", "log in again"),
    "403 download, rules": (REFUSED, record_replies.RULES, RULES),
    "403 push": (REFUSED, "Permission 'kernels.update' was denied", "check the name"),
    "403 status": (REFUSED, "Cannot access kernel 'tester/some-kernel'", "check the name"),
    "403 data set": (REFUSED, "Permission 'datasets.get' was denied", "check the name"),
    "404 download": (REFUSED, "Competition not found", "check the name"),
    "404 data set": (REFUSED, "Dataset not found", "check the name"),
    "404 push": (REFUSED, "Notebook not found", "check the name"),
    "409 push": (REFUSED, "The notebook title is already in use", "exit code 1"),
    "429 download": (RETRY, "Too many requests", "retry later"),
    "429 push, sessions": (RETRY, "Maximum batch GPU session count of 2 reached.", "retry later"),
    "429 push, quota": (REFUSED, "Maximum weekly GPU quota of 30.00 hours reached.", "do not retry"),
    "429 status, unknown words": (RETRY, "Please slow down", "retry later"),
    "500 push": (RETRY, "Internal Server Error", "retry later"),
    "500 data set": (RETRY, "An error occurred while processing your request", "retry later"),
    "502 status, page": (RETRY, "502 Server Error: Bad Gateway", "retry later"),
    "503 download": (RETRY, "Service Unavailable", "retry later"),
    "503 download, page": (RETRY, "503 Server Error: Service Unavailable", "retry later"),
    "504 push": (RETRY, "Gateway Timeout", "retry later"),
    "200 push, sessions": (RETRY, "Maximum batch GPU session count of 2 reached.", "retry later"),
    "200 push, quota": (REFUSED, "Maximum weekly GPU quota of 30.00 hours reached.", "do not retry"),
    "200 push, not found": (REFUSED, "Notebook not found", "check the name"),
    "200 push, source left out": (REFUSED, "not valid dataset sources", "make it again"),
}
WITHOUT_STATUS = {
    ("2.2.4", "429 status, unknown words"): (REFUSED, "Please slow down", "exit code 1"),
    ("2.2.4", "500 data set"): (REFUSED, "An error occurred while processing your request", "exit code 1"),
}
HINTS = ("kaggle search", "<competition>", "Check the spelling", "rate limited", "Kaggle's side")


def test_the_table_covers_what_was_recorded_of_both_versions():
    assert set(REPLIES) == {"2.2.4", "2.2.5"}
    assert set(EXPECTED) == set(record_replies.SITUATIONS) == set(REPLIES["2.2.4"]) == set(REPLIES["2.2.5"])


@pytest.mark.parametrize("version", REPLIES)
@pytest.mark.parametrize("situation", EXPECTED)
def test_an_error_is_told_in_the_words_of_the_service_with_advice_and_exit_code(version, situation, capsys):
    reply = Reply(record_replies.SITUATIONS[situation][0], *REPLIES[version][situation])

    def step() -> None:
        client.expect(reply, "successfully pushed")

    try:
        code = cli._run(step)
        told = capsys.readouterr().err
    except client.Refused as error:
        code, told = REFUSED, str(error)
    expected, sentence, advice = WITHOUT_STATUS.get((version, situation), EXPECTED[situation])
    assert code == expected, told
    assert sentence in told
    assert advice in told
    assert not any(hint in told for hint in HINTS), told
    assert len(told.splitlines()) == 1


def test_the_page_of_replies_is_what_the_commands_say():
    assert reply_table.PAGE.read_text(encoding="utf-8") == reply_table.page()


@pytest.mark.parametrize(
    ("err", "cause", "sentence"),
    [
        ("\n\nYou have been rate limited. Wait a little.\n", Cause.BUSY, "You have been rate limited. Wait a little."),
        ("Quota exceeded. Please try again later.\n", Cause.QUOTA, "Quota exceeded. Please try again later."),
        ("Quota exceeded: 60 requests per minute\n", Cause.BUSY, "Quota exceeded: 60 requests per minute"),
        ("You have reached your daily submission limit\n", Cause.QUOTA, "You have reached your daily submission limit"),
        ("Rate limit exceeded\n", Cause.BUSY, "Rate limit exceeded"),
        ("Expected at most 503 files, got 504\n", Cause.OTHER, "Expected at most 503 files, got 504"),
        (" 50%|###   | 1.0M/2.0M\r100%|####| 2.0M/2.0M\n\nOne\nTwo\n\nThree\n", Cause.OTHER, "One Two"),
        ("Traceback (most recent call last):\n  File \"a.py\"\nKeyError: 'no'\n", Cause.OTHER, "KeyError: 'no'"),
        ("HTTPConnectionPool: Max retries exceeded\n", Cause.BUSY, "HTTPConnectionPool: Max retries exceeded"),
        ("x" * 5000 + "\n", Cause.OTHER, "x" * 300 + "..."),
        ("", Cause.OTHER, "nothing was said"),
    ],
)
def test_the_cause_is_judged_by_the_first_paragraph(err, cause, sentence):
    reply = Reply(("kernels", "push"), 1, "", err)
    assert (reply.cause, reply.sentence) == (cause, sentence)


@pytest.mark.parametrize(
    ("situation", "expected"), [("403 data set", True), ("404 data set", True), ("500 data set", False)]
)
@pytest.mark.parametrize("version", REPLIES)
def test_only_what_is_missing_or_hidden_counts_as_absent(version, situation, expected):
    assert client.is_absent(Reply(record_replies.SETS, *REPLIES[version][situation])) is expected


@pytest.mark.slow
@pytest.mark.parametrize("situation", ["404 push", "503 download, page", "200 push, sessions"])
def test_what_was_recorded_is_what_the_installed_client_prints(situation):
    version = importlib.metadata.version("kaggle")
    assert version in REPLIES, "record its replies: python -m tests.kaggle_stub.record_replies PYTHON..."
    assert (
        list(record_replies.answer(sys.executable, *record_replies.SITUATIONS[situation]))
        == REPLIES[version][situation]
    )
