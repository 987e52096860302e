"""Secrets hide, sealed values stay where they were put, and keys can be replaced."""

import base64
import copy
import dataclasses
import pickle
import stat
import threading
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from storage.credentials import KeyRing, Secret
from storage.errors import CredentialsUnreadable, KeyRingInvalid

FIRST = base64.b64encode(bytes(range(32))).decode()
SECOND = base64.b64encode(bytes(range(32, 64))).decode()
HERE = "provider|1|credentials"


def make_ring(text: str = f"k1:{FIRST}") -> KeyRing:
    return KeyRing.parse(text)


# Secrets.


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    name: str
    secret: Secret[str]


def test_a_secret_is_shown_to_nobody_but_who_asks_for_it() -> None:
    secret = Secret("canary-4711")
    holder = Holder(name="x", secret=secret)

    shown = [
        repr(secret),
        str(secret),
        f"{secret}",
        f"{secret!r:>9}",
        f"{secret:>9}",
        "%s %r" % (secret, secret),  # noqa: UP031 - one more way
        "{}".format(secret),  # noqa: UP032 - and another
        repr(holder),
        repr([secret]),
        repr(dataclasses.asdict(holder)),
    ]

    assert not [text for text in shown if "canary" in text]
    assert shown[0] == "***"
    assert not hasattr(secret, "__dict__")
    assert secret.reveal() == "canary-4711"


def test_a_secret_cannot_be_pickled_or_encoded() -> None:
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(Secret("canary"))
    with pytest.raises(TypeError):
        msgspec.json.encode(Holder(name="x", secret=Secret("canary")))


def test_secrets_compare_by_value_and_copies_are_the_same_object() -> None:
    secret = Secret("a")

    assert secret == Secret("a")
    assert secret != Secret("b")
    assert secret != "a"
    assert {secret, Secret("a")} == {secret}
    assert copy.copy(secret) is secret
    assert copy.deepcopy([secret])[0] is secret


# Sealing.


@given(plaintext=st.binary(max_size=2000), bound_to=st.text(max_size=100))
def test_what_is_sealed_comes_back(plaintext: bytes, bound_to: str) -> None:
    ring = make_ring()

    blob = ring.seal(plaintext, bound_to=bound_to)

    assert ring.unseal(blob, bound_to=bound_to) == plaintext
    assert len(blob) == len(plaintext) + 1 + 1 + 2 + 12 + 16


@given(st.dictionaries(st.text(), st.text()))
def test_names_and_values_come_back(values: Mapping[str, str]) -> None:
    ring = make_ring()

    blob = ring.seal_mapping(Secret(values), bound_to=HERE)

    assert ring.unseal_mapping(blob, bound_to=HERE) == Secret(values)


def test_a_sealed_value_has_the_layout_written_down() -> None:
    blob = make_ring(f"key-2:{SECOND},k1:{FIRST}").seal(b"", bound_to=HERE)

    assert blob[:7] == b"\x01\x05key-2"
    assert KeyRing.key_id_of(blob) == "key-2"


def test_the_same_value_is_sealed_differently_every_time() -> None:
    ring = make_ring()

    assert len({ring.seal(b"password", bound_to=HERE) for _ in range(100)}) == 100


def test_a_value_moved_to_another_row_is_refused() -> None:
    ring = make_ring()
    blob = ring.seal(b"password", bound_to="provider|1|credentials")

    with pytest.raises(CredentialsUnreadable, match=r"provider\|2\|credentials was damaged, moved"):
        ring.unseal(blob, bound_to="provider|2|credentials")


def test_a_key_of_an_unknown_id_is_named() -> None:
    blob = make_ring(f"k9:{FIRST}").seal(b"password", bound_to=HERE)

    with pytest.raises(CredentialsUnreadable) as caught:
        make_ring(f"k2:{SECOND},k1:{FIRST}").unseal(blob, bound_to=HERE)

    assert caught.value.message == (
        f"The value of {HERE} was sealed with key k9, which is not among the keys given: k2, k1"
    )


def test_another_key_of_the_same_id_is_refused() -> None:
    blob = make_ring(f"k1:{FIRST}").seal(b"password", bound_to=HERE)

    with pytest.raises(CredentialsUnreadable, match="sealed with another key named k1"):
        make_ring(f"k1:{SECOND}").unseal(blob, bound_to=HERE)


def test_no_byte_can_be_changed_and_none_left_out() -> None:
    ring = make_ring()
    blob = ring.seal(b"password", bound_to=HERE)
    changed = [
        blob[:position] + bytes([blob[position] ^ 1]) + blob[position + 1 :]
        for position in range(len(blob))
    ]
    cut = [blob[:length] for length in range(len(blob))]

    refused = 0
    for forged in [*changed, *cut, blob + b"\0"]:
        try:
            ring.unseal(forged, bound_to=HERE)
        except CredentialsUnreadable:
            refused += 1

    assert refused == 2 * len(blob) + 1


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_in_one_way(blob: bytes) -> None:
    with pytest.raises(CredentialsUnreadable):
        make_ring().unseal(blob, bound_to=HERE)


@pytest.mark.parametrize("plaintext", [b"canary-4711", b'["canary-4711"]', b'{"a": 4711}', b""])
def test_a_sealed_value_that_is_not_names_and_values_is_refused_without_quoting_it(
    plaintext: bytes,
) -> None:
    ring = make_ring()
    blob = ring.seal(plaintext, bound_to=HERE)

    with pytest.raises(CredentialsUnreadable) as caught:
        ring.unseal_mapping(blob, bound_to=HERE)

    assert caught.value.message == f"The value of {HERE} is not names and values"
    assert caught.value.__cause__ is None


# Key rings.


def test_the_first_key_seals_and_every_key_opens() -> None:
    old = make_ring(f"k1:{FIRST}").seal(b"password", bound_to=HERE)
    ring = make_ring(f"k2:{SECOND},k1:{FIRST}")

    new = ring.seal(b"password", bound_to=HERE)

    assert ring.newest_key_id == "k2"
    assert ring.key_ids == ("k2", "k1")
    assert KeyRing.key_id_of(new) == "k2"
    assert ring.unseal(old, bound_to=HERE) == ring.unseal(new, bound_to=HERE) == b"password"


@pytest.mark.parametrize(
    "text",
    [
        f"k1:{FIRST}",
        f" k1:{FIRST} , ",
        f"k1:{FIRST.rstrip('=')}",
        f"k1:{base64.urlsafe_b64encode(bytes(range(32))).decode()}\n",
    ],
)
def test_every_usual_form_of_base64_is_the_same_key(text: str) -> None:
    blob = make_ring().seal(b"password", bound_to=HERE)

    assert make_ring(text).unseal(blob, bound_to=HERE) == b"password"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "No key is given: expected comma-separated <id>:<32 bytes in base64>"),
        (" , \n", "No key is given"),
        (FIRST, "Key number 1 has no id"),
        (f"k1:{FIRST},{SECOND}", "Key number 2 has no id"),
        (f":{FIRST}", "Key number 1 has no id"),
        (f"k 1:{FIRST}", "Key number 1 has no id"),
        (f"{'k' * 33}:{FIRST}", "Key number 1 has no id"),
        ("k1:", "Key number 1 has no id"),
        ("k1:not/base64!", "Key k1 is not base64"),
        (f"k1:{FIRST[:-2]}", "Key k1 has 31 bytes"),
        ("k1:AAAAA", "Key k1 is not base64"),
        (f"k1:{FIRST},k1:{SECOND}", "Two keys have the same id"),
    ],
)
def test_keys_of_another_form_are_refused_without_quoting_them(text: str, problem: str) -> None:
    with pytest.raises(KeyRingInvalid) as caught:
        make_ring(text)

    assert caught.value.message.startswith(problem)
    assert FIRST[:8] not in str(caught.value)
    assert SECOND[:8] not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_key_ring_shows_the_ids_of_its_keys_only() -> None:
    ring = make_ring(f"k2:{SECOND},k1:{FIRST}")

    assert repr(ring) == "KeyRing(k2, k1)"
    assert not hasattr(ring, "__dict__")


# Key files.


def test_the_first_start_makes_a_key_file_of_its_owner_only_and_warns(tmp_path: Path) -> None:
    path = tmp_path / "data" / "keys"

    with capture_logs() as logs:
        ring = KeyRing.open_file(path)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [(log["log_level"], log["event"], log["path"]) for log in logs] == [
        ("warning", "key_file_made", str(path))
    ]
    assert path.read_text().strip() not in repr(logs)
    assert ring.key_ids == ("k1",)
    assert list(path.parent.iterdir()) == [path]


def test_later_starts_use_the_same_key_and_say_nothing(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    blob = KeyRing.open_file(path).seal(b"password", bound_to=HERE)

    with capture_logs() as logs:
        ring = KeyRing.open_file(path)

    assert ring.unseal(blob, bound_to=HERE) == b"password"
    assert logs == []


def test_first_starts_at_once_end_with_one_key(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    start = threading.Barrier(8)
    blobs: list[bytes] = []

    def open_and_seal() -> None:
        start.wait()
        blobs.append(KeyRing.open_file(path).seal(b"password", bound_to=HERE))

    threads = [threading.Thread(target=open_and_seal) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    ring = KeyRing.open_file(path)
    assert [ring.unseal(blob, bound_to=HERE) for blob in blobs] == [b"password"] * 8
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_key_file_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "keys"
    KeyRing.open_file(path)
    path.chmod(mode)

    with pytest.raises(KeyRingInvalid, match=rf"\(mode {mode:04o}\): make it its owner's only"):
        KeyRing.open_file(path)


def test_a_key_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyRingInvalid, match=r"The key file /.* cannot be used: Is a directory$"):
        KeyRing.open_file(tmp_path)


def test_a_key_file_with_something_else_in_it_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.touch(mode=0o600)
    path.write_bytes(b"\xff\xfe canary-4711")

    with pytest.raises(KeyRingInvalid, match="Key number 1 has no id") as caught:
        KeyRing.open_file(path)

    assert "canary" not in str(caught.value)
    assert path.read_bytes() == b"\xff\xfe canary-4711"


def test_renewing_a_key_file_puts_a_key_in_front_and_keeps_the_others(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    blob = KeyRing.open_file(path).seal(b"password", bound_to=HERE)

    renewed = KeyRing.renew_file(path)
    again = KeyRing.renew_file(path)

    assert renewed.key_ids == ("k2", "k1")
    assert again.key_ids == KeyRing.open_file(path).key_ids == ("k3", "k2", "k1")
    assert again.unseal(blob, bound_to=HERE) == b"password"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_renewing_numbers_its_key_apart_from_named_ones(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.touch(mode=0o600)
    path.write_text(f"spring:{FIRST}")

    assert KeyRing.renew_file(path).key_ids == ("k1", "spring")


def test_a_key_file_that_cannot_be_replaced_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / ("k" * 250)  # leaves no room for the name of a file beside it
    path.touch(mode=0o600)
    path.write_text(f"k1:{FIRST}")

    with pytest.raises(KeyRingInvalid, match="cannot be used: File name too long"):
        KeyRing.renew_file(path)

    assert path.read_text() == f"k1:{FIRST}"
    assert list(tmp_path.iterdir()) == [path]
