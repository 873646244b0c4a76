"""Data keys and master keys."""

import base64
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qraf.errors import KeysMissing
from qraf.settings import SealSettings
from qraf.storage.seal import DataKey, MasterKeys, NotOpened, bound, new_key, new_key_line

KEY = DataKey(1, new_key())


@given(st.binary(max_size=100), st.lists(st.text(max_size=5) | st.integers(0, 9), max_size=3))
def test_what_was_sealed_opens_where_it_belongs(plain, facts):
    sealed = KEY.seal(plain, bound(*facts))
    assert len(sealed) == len(plain) + 28
    assert KEY.open(sealed, bound(*facts)) == plain
    assert KEY.seal(plain, bound(*facts)) != sealed


@given(st.binary(min_size=1, max_size=40), st.data())
def test_one_flipped_bit_anywhere_is_noticed(plain, data):
    sealed = bytearray(KEY.seal(plain, b"here"))
    place = data.draw(st.integers(0, len(sealed) * 8 - 1))
    sealed[place // 8] ^= 1 << place % 8
    with pytest.raises(NotOpened):
        KEY.open(bytes(sealed), b"here")


@pytest.mark.parametrize(
    "sealed",
    [b"", b"short", KEY.seal(b"x", b"there"), DataKey(1, new_key()).seal(b"x", b"here")],
    ids=["empty", "short", "elsewhere", "another key"],
)
def test_what_belongs_elsewhere_or_to_another_key_does_not_open(sealed):
    with pytest.raises(NotOpened):
        KEY.open(sealed, b"here")


def test_additional_data_is_not_ambiguous():
    assert bound("a", "bc") != bound("ab", "c")
    assert bound("1") != bound(1)


def test_a_name_has_the_same_token_under_its_key_alone():
    assert KEY.token("Ada") == KEY.token("Ada") != KEY.token("Bo")
    assert DataKey(1, new_key()).token("Ada") != KEY.token("Ada")
    assert "Ada" not in KEY.token("Ada")


def test_the_default_file_is_made_once_for_its_owner_alone(tmp_path):
    file = tmp_path / "data" / "master.key"
    assert MasterKeys(SealSettings(), file).make()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    text = file.read_text()
    assert not MasterKeys(SealSettings(), file).make()
    assert file.read_text() == text


def test_a_file_that_was_named_is_not_made(tmp_path):
    masters = MasterKeys(SealSettings(key_file=tmp_path / "mine.key"), tmp_path / "master.key")
    assert not masters.make()
    with pytest.raises(KeysMissing, match=r"mine\.key is not there"):
        masters.check(set())


def source(kind, tmp_path, text) -> SealSettings:
    file = tmp_path / "keys"
    file.write_text(text)
    file.chmod(0o600)
    return {
        "file": SealSettings(key_file=file),
        "key": SealSettings(key=text),
        "command": SealSettings(command=f"cat '{file}'"),
    }[kind]


@pytest.mark.parametrize("kind", ["file", "key", "command"])
def test_of_several_keys_the_first_wraps_and_all_unwrap(kind, tmp_path):
    old, new = new_key_line(), new_key_line()
    before = MasterKeys(source(kind, tmp_path, old), tmp_path / "no")
    old_id, wrapped = before.wrap(b"k" * 32, b"b")
    after = MasterKeys(source(kind, tmp_path, f"{new} # since May\n{old}\n"), tmp_path / "no")
    new_id, again = after.wrap(b"k" * 32, b"b")
    assert old_id != new_id
    assert after.unwrap(old_id, wrapped, b"b") == after.unwrap(new_id, again, b"b") == b"k" * 32
    with pytest.raises(NotOpened):
        after.unwrap(old_id, again, b"b")
    with pytest.raises(NotOpened):
        after.unwrap(old_id, wrapped, b"c")


@pytest.mark.parametrize("kind", ["file", "key", "command"])
@pytest.mark.parametrize(
    ("text", "why"), [("c2VjcmV0LWtleQ==", "32 bytes"), ("no-base64!", "32 bytes"), ("# none", "no master key")]
)
def test_a_fault_of_the_keys_says_where_without_quoting_them(kind, text, why, tmp_path):
    with pytest.raises(KeysMissing, match=why) as caught:
        MasterKeys(source(kind, tmp_path, text), tmp_path / "no").check(set())
    assert text not in str(caught.value)


def test_a_key_that_is_needed_and_not_there_is_named_by_its_id(tmp_path):
    first = MasterKeys(SealSettings(key=new_key_line()), tmp_path)
    other = MasterKeys(SealSettings(key=new_key_line()), tmp_path)
    with pytest.raises(KeysMissing, match=f"{first.first()}.*QRAF_SEAL__KEY has {other.first()}"):
        other.check({first.first()})


@pytest.mark.parametrize("command", ["/does/not/exist", "false", "sh -c 'echo c2VjcmV0; exit 3'"])
def test_a_command_that_fails_is_not_quoted(command, tmp_path):
    with pytest.raises(KeysMissing, match="QRAF_SEAL__COMMAND failed") as caught:
        MasterKeys(SealSettings(command=command), tmp_path).check(set())
    assert command not in str(caught.value)


def test_several_sources_at_once_are_refused(tmp_path):
    with pytest.raises(KeysMissing, match="name one of"):
        MasterKeys(SealSettings(command="true", key=new_key_line()), tmp_path)


def test_a_changed_file_is_read_again(tmp_path):
    masters = MasterKeys(SealSettings(), tmp_path / "k")
    masters.make()
    old_id, wrapped = masters.wrap(b"k" * 32, b"")
    old = (tmp_path / "k").read_text()
    (tmp_path / "k").write_text(f"{base64.b64encode(b'n' * 32).decode()}\n{old}")
    assert masters.first() != old_id
    assert masters.unwrap(old_id, wrapped, b"") == b"k" * 32
    newer = MasterKeys(SealSettings(), tmp_path / "k")
    new_id, new_wrapped = newer.wrap(b"x" * 32, b"")
    assert masters.unwrap(new_id, new_wrapped, b"") == b"x" * 32
