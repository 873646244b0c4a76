from __future__ import annotations

import base64
import hashlib
import json
import random
import string
import time
import uuid
from datetime import UTC, datetime
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qraf.text.secrets import KINDS, Secret, find_secrets, mask_secrets, secrets_within

# put together here, so that no tool that looks for keys in sources stops at this file
B64 = string.ascii_letters + string.digits


def word(alphabet: str, size: int) -> st.SearchStrategy[str]:
    return st.text(st.sampled_from(alphabet), min_size=size, max_size=size)


def joined(prefix: str, alphabet: str, size: int) -> st.SearchStrategy[str]:
    return word(alphabet, size).map(lambda rest: prefix + rest)


def part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def with_check_digit(digits: str) -> str:
    return next(digits + str(d) for d in range(10) if luhn(digits + str(d)))


def luhn(digits: str) -> bool:
    """As the patent tells it: from the right, every second digit doubled, the digits of all of that summed."""
    rows = [int(c) * (2 if place % 2 else 1) for place, c in enumerate(reversed(digits))]
    return sum(int(c) for row in rows for c in str(row)) % 10 == 0


SECRETS = st.one_of(
    st.tuples(st.just("aws_key"), joined("AKIA", string.ascii_uppercase + "234567", 16)),
    st.tuples(st.just("api_key"), joined("sk-", B64, 48)),
    st.tuples(st.just("api_key"), joined("sk-proj-", B64, 64)),
    st.tuples(st.just("api_key"), joined("ghp_", B64, 36)),
    st.tuples(st.just("api_key"), joined("glpat-", B64, 20)),
    st.tuples(st.just("api_key"), joined("sk_live_", B64, 24)),
    st.tuples(st.just("api_key"), joined("AIza", B64 + "_-", 34).map(lambda text: text + "x")),
    st.tuples(st.just("api_key"), joined("hf_", string.ascii_letters, 34)),
    st.tuples(st.just("api_key"), joined("npm_", B64, 36)),
    st.tuples(st.just("api_key"), joined("qraf_0123456789ab_", B64 + "_-", 42).map(lambda text: text + "x")),
    st.tuples(
        st.just("jwt"),
        st.builds(lambda sub, sig: f"{part({'alg': 'HS256'})}.{part({'sub': sub})}.{sig}", st.text(), word(B64, 43)),
    ),
    st.tuples(st.just("card_number"), joined("4", string.digits, 14).map(with_check_digit)),
    st.tuples(st.just("card_number"), joined("37", string.digits, 12).map(with_check_digit)),
)
PLAIN = st.text(st.sampled_from("abc äöü中 ,.!?\n"), max_size=60)


@given(SECRETS, PLAIN, PLAIN)
def test_a_secret_is_found_where_it_is_and_nothing_else(secret: tuple[str, str], before: str, after: str) -> None:
    kind, value = secret
    text = f"{before} {value} {after}"
    assert find_secrets(text) == [Secret(kind, len(before) + 1, len(before) + 1 + len(value))]
    assert mask_secrets(text, find_secrets(text)) == f"{before} [{kind}] {after}"


@given(st.lists(st.tuples(PLAIN, SECRETS), max_size=4))
def test_masked_text_holds_none(parts: list[tuple[str, tuple[str, str]]]) -> None:
    text = "".join(f"{plain}\n{value}\n" for plain, (_, value) in parts)
    masked = mask_secrets(text, find_secrets(text))
    assert find_secrets(masked) == []
    for _, (kind, value) in parts:
        assert value not in masked
        assert kind in KINDS


@given(st.text(max_size=300))
def test_any_text_is_looked_through(text: str) -> None:
    found = find_secrets(text)
    assert all(0 <= one.start < one.end <= len(text) for one in found)
    assert all(a.end <= b.start for a, b in pairwise(found))


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("pay with 4111-1111-1111-1111 please", ["card_number"]),
        ("pay with 4111 1111 1111 1111.", ["card_number"]),
        ("amex 3782 822463 10005", ["card_number"]),
        ("mastercard 2223003122003222", ["card_number"]),
        ("4111 1111 1111 1112", []),  # check digit
        ("4111 1111-1111 1111", []),  # no grouping of a card
        ("0.4111111111111111", []),
        ("aws_secret_access_key = " + "wJalrXUtnFEMI/K7MDENG/bPxRfiCY" + "EXAMPLEKEY", ["aws_key"]),
        ("secretAccessKey: '" + "wJalrXUtnFEMI/K7MDENG/bPxRfiCY" + "EXAMPLEKEY'", ["aws_key"]),
        ("aws key = " + hashlib.sha1(b"a").hexdigest(), []),
        ("-----BEGIN RSA PRIVATE " + "KEY-----\nMIIE\n-----END RSA PRIVATE " + "KEY-----\nrest", ["private_key"]),
        ("-----BEGIN PGP PRIVATE " + "KEY BLOCK-----\ncut off", ["private_key"]),
        ("-----BEGIN PUBLIC KEY-----\nMIIE\n-----END PUBLIC KEY-----", []),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.", []),  # not signed
        ("a task-list-of-things-to-do-tomorrow-and-later", []),
        ("sk-learn is a library", []),
    ],
)
def test_forms(text: str, kinds: list[str]) -> None:
    assert [one.kind for one in find_secrets(text)] == kinds


def test_all_of_a_private_key_is_masked() -> None:
    text = "a\n-----BEGIN PRIVATE " + "KEY-----\nMIIEvQ\n-----END PRIVATE " + "KEY-----\nb"
    assert mask_secrets(text, find_secrets(text)) == "a\n[private_key]\nb"


def test_no_false_alarm_on_ordinary_numbers_dates_ids_and_hashes() -> None:
    rng = random.Random(7)
    made = (
        lambda: str(uuid.UUID(int=rng.getrandbits(128), version=4)),
        lambda: hashlib.md5(rng.randbytes(8)).hexdigest(),
        lambda: hashlib.sha1(rng.randbytes(8)).hexdigest(),
        lambda: hashlib.sha256(rng.randbytes(8)).hexdigest(),
        lambda: base64.b64encode(rng.randbytes(rng.randrange(4, 60))).decode(),
        lambda: str(rng.randrange(10 ** rng.randrange(1, 13))),
        lambda: str(rng.uniform(-1e6, 1e6)),
        lambda: f"{rng.randrange(10**9):,}.{rng.randrange(100):02}",
        lambda: datetime.fromtimestamp(rng.uniform(0, 4e9), UTC).isoformat(),
        lambda: str(int(rng.uniform(1.0e9, 1.9e9) * 10 ** rng.choice((0, 3, 6, 9)))),
        lambda: f"+49 {rng.randrange(100, 999)} {rng.randrange(10**7)}",
        lambda: f"({rng.randrange(200, 999)}) {rng.randrange(200, 999)}-{rng.randrange(1000, 9999)}",
        lambda: ".".join(str(rng.randrange(256)) for _ in range(4)),
        lambda: "DE" + "".join(rng.choices(string.digits, k=20)),
        lambda: " ".join(rng.choices(("risk-free", "ask-me", "the", "sk-", "AKIA", "key", "secret", "eyJ"), k=6)),
        lambda: f"https://example.org/{rng.randrange(10**6)}/{rng.getrandbits(64):x}",
    )
    alarms = [text for _ in range(1000) for make in made if find_secrets(text := make())]
    assert alarms == []


def test_json_is_looked_through() -> None:
    card = "4111111111111111"
    value = {"a": [card, 1, None, {"b": f"x {card}"}], "c": True}
    clean, found = secrets_within(value)
    assert clean == {"a": ["[card_number]", 1, None, {"b": "x [card_number]"}], "c": True}
    assert [one.kind for one in found] == ["card_number", "card_number"]
    assert value["a"][0] == card
    same, none = secrets_within({"a": ["x"]})
    assert (same, none) == ({"a": ["x"]}, [])


@pytest.mark.parametrize(
    "text",
    ["eyJ" * 80_000, "aws " * 60_000, "aws_secret_key" * 17_000, "4" * 250_000, "4111 " * 50_000, "sk-" * 80_000],
)
def test_a_text_that_is_made_to_be_slow_is_not(text: str) -> None:
    began = time.thread_time()
    find_secrets(text)
    assert time.thread_time() - began < 1.0
