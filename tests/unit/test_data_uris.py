import base64
import contextlib
import string
from urllib.parse import quote_from_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resolvers.data_uris import DataUriInvalid, is_data_uri, read_data_uri

CONTENT = b"\x89PNG\r\n\x1a\n\xfb\xff\xbe"
PLAIN = base64.b64encode(CONTENT).decode()
URL_SAFE = base64.urlsafe_b64encode(CONTENT).decode()


@pytest.mark.parametrize(
    "text",
    [
        f"data:image/png;base64,{PLAIN}",
        f"data:image/png;base64,{PLAIN.rstrip('=')}",
        f"data:image/png;base64,{PLAIN}===",
        f"data:image/png;base64,{URL_SAFE}",
        f"data:image/png;base64,{URL_SAFE.rstrip('=')}",
        f"  data:image/png;base64,{PLAIN}\n",
        f"data:image/png;base64,\n{PLAIN[:5]}\r\n\t{PLAIN[5:]} ",
        f"data:image/png;base64,{quote_from_bytes(PLAIN.encode(), safe='')}",
        f"DATA:IMAGE/PNG;BASE64,{PLAIN}",
        f"data:;base64,{PLAIN}",
        f"data:image/png; charset=utf-8 ;name=a.png; base64 ,{PLAIN}",
        f"data:text/html;base64;charset=utf-8,{PLAIN}",
        f"data:image/png,{quote_from_bytes(CONTENT)}",
    ],
)
def test_the_same_bytes_are_read_from_every_way_platforms_write_them(text: str) -> None:
    assert is_data_uri(text)
    assert read_data_uri(text, max_bytes=100) == CONTENT


def test_svg_written_as_text_is_read_as_it_stands() -> None:
    text = "data:image/svg+xml;utf8,<svg xmlns='http://www.w3.org/2000/svg'>%3Cg/%3E é</svg>"

    assert (
        read_data_uri(text, max_bytes=100)
        == "<svg xmlns='http://www.w3.org/2000/svg'><g/> é</svg>".encode()
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("data:image/png;base64", "The data URI has no comma"),
        ("data:,", "The data URI is empty"),
        ("data:image/png;base64,", "The data URI is empty"),
        ("data:image/png;base64,====", "The data URI is empty"),
        ("data:image/png;base64,iVBO%%%", "The data URI is marked as base64 but is not"),
        ("data:image/png;base64,iV=BO", "The data URI is marked as base64 but is not"),
        ("data:image/png;base64,<svg/>", "The data URI is marked as base64 but is not"),
        ("data:image/png;base64,iVBOR", "The base64 text of the data URI is cut off"),
        ("data:," + "a" * 101, "The data URI holds more than 100 bytes"),
        ("data:," + "a" * 601, "The data URI holds more than 100 bytes"),
        (
            "data:;base64," + base64.b64encode(b"a" * 101).decode(),
            "The data URI holds more than 100 bytes",
        ),
    ],
)
def test_what_is_not_readable_is_refused_with_its_reason(text: str, problem: str) -> None:
    with pytest.raises(DataUriInvalid) as refused:
        read_data_uri(text, max_bytes=100)

    assert str(refused.value) == problem


def test_percent_escapes_without_end_are_refused_before_they_cost_memory() -> None:
    with pytest.raises(DataUriInvalid) as refused:
        read_data_uri("data:," + "%" * 500_001, max_bytes=5_000_000)

    assert str(refused.value) == "The data URI has more than 500000 percent escapes"


@pytest.mark.parametrize("text", ["", "/icon.png", "https://x/data:image/png,", "database:"])
def test_an_address_is_no_data_uri(text: str) -> None:
    assert not is_data_uri(text)


@given(
    content=st.binary(min_size=1),
    url_safe=st.booleans(),
    padded=st.booleans(),
    line_length=st.integers(min_value=1, max_value=80),
    line_end=st.sampled_from(["", "\n", "\r\n", " \t"]),
)
def test_base64_of_any_bytes_is_read_back(
    content: bytes, *, url_safe: bool, padded: bool, line_length: int, line_end: str
) -> None:
    encode = base64.urlsafe_b64encode if url_safe else base64.b64encode
    text = encode(content).decode()
    text = text if padded else text.rstrip("=")
    lines = [text[start : start + line_length] for start in range(0, len(text), line_length)]

    assert read_data_uri("data:image/x;base64," + line_end.join(lines), max_bytes=10_000) == content


@given(st.text(alphabet=string.printable + "é\0\ud800") | st.text())
def test_any_text_is_read_or_refused_and_nothing_else(rest: str) -> None:
    for head in ("data:", "data:;base64,"):
        with contextlib.suppress(DataUriInvalid):
            assert len(read_data_uri(head + rest, max_bytes=50)) <= 50
