"""Which URLs and addresses may be called, told by examples of each kind."""

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessions.addresses import LOCAL_NETWORKS, AddressPolicy, Origin, split_url
from sessions.errors import ProviderAddressRefused

PUBLIC_ONLY = AddressPolicy()
LOCAL_TOO = AddressPolicy(allowed_networks=LOCAL_NETWORKS)

# Every spelling of this machine, of private hosts and of metadata services a public-only
# gateway must not call.
HOSTILE_URLS = (
    "http://127.0.0.1",
    "http://127.0.0.1:8080/prefix",
    "http://127.1",
    "http://127.0.1",
    "http://2130706433",
    "http://0x7f000001",
    "http://0x7f.1",
    "http://0177.0.0.1",
    "http://017700000001",
    "http://0x7F.0x0.0x0.0x1",
    "http://127.0.0.1.",
    "http://\uff11\uff12\uff17.0.0.1",
    "http://127\u30020\u30020\u30021",
    "http://\u2460\u2461\u2466.0.0.1",
    "http://localhost",
    "http://LOCALHOST:9000",
    "http://localhost.",
    "http://printer.localhost",
    "http://[::1]",
    "http://[0:0:0:0:0:0:0:1]",
    "http://[::127.0.0.1]",
    "http://[::ffff:127.0.0.1]",
    "http://[::ffff:7f00:1]",
    "http://[::ffff:0:127.0.0.1]",
    "http://[64:ff9b::127.0.0.1]",
    "http://[64:ff9b::7f00:1]",
    "http://[64:ff9b:1::10.0.0.1]",
    "http://[64:ff9b:1:7f00:0:100::]",
    "http://[2002:7f00:1::]",
    "http://[2002:a9fe:a9fe::1]",
    "http://[2001:0:7f00:1::]",
    "http://[2001:0:808:808::80ff:fffe]",
    "http://[2606:4700::5efe:10.0.0.1]",
    "http://10.0.0.5",
    "http://172.16.0.1",
    "http://192.168.1.1",
    "http://100.64.0.1",
    "http://[fc00::1]",
    "http://[fe80::1]",
    "http://[fe80::1%25eth0]",
    "http://[fec0::1]",
    "http://169.254.169.254",
    "http://169.254.169.254/latest/meta-data",
    "http://2852039166",
    "http://[::ffff:169.254.169.254]",
    "http://[fd00:ec2::254]",
    "http://100.100.100.200",
    "http://168.63.129.16",
    "http://metadata.google.internal",
    "http://METADATA.google.internal.",
    "http://0.0.0.0",
    "http://0",
    "http://0.1.2.3",
    "http://[::]",
    "http://224.0.0.1",
    "http://[ff02::1]",
    "http://255.255.255.255",
    "http://240.0.0.1",
    "http://192.0.2.1",
    "http://[2001:db8::1]",
    "http://user@example.org",
    "http://user:secret@example.org",
    "http://example.org@127.0.0.1",
    "http://example.org%40127.0.0.1",
    "http://example.org\\@127.0.0.1",
    "http://127.0.0.1\\.example.org",
    "http:\\\\127.0.0.1",
    "http:127.0.0.1",
    "http:///127.0.0.1",
    "//127.0.0.1",
    "127.0.0.1:80",
    "http://127.0.0.1\t",
    "http://exa\nmple.org",
    "http://example.org#@127.0.0.1",
    "http://example.org?@127.0.0.1",
    "http://example.org:80:80",
    "http://[::1",
    "http://::1",
    "http://127.0.0.1.5",
    "http://256.1.1.1",
    "http://08.0.0.1",
    "file:///etc/passwd",
    "gopher://127.0.0.1:6379/_INFO",
    "ftp://example.org",
    "javascript:alert(1)",
    "",
)


@pytest.mark.parametrize("url", HOSTILE_URLS)
def test_a_hostile_url_is_refused(url: str) -> None:
    with pytest.raises(ProviderAddressRefused):
        PUBLIC_ONLY.check_url(url)


def test_there_are_many_hostile_urls_and_no_two_are_the_same() -> None:
    assert len(set(HOSTILE_URLS)) == len(HOSTILE_URLS) >= 40


@pytest.mark.parametrize(
    ("url", "normalised"),
    [
        ("https://example.org", "https://example.org"),
        ("  https://example.org/ \n", "https://example.org"),
        ("HTTPS://Example.ORG:443/", "https://example.org"),
        ("http://example.org:80", "http://example.org"),
        ("http://example.org:", "http://example.org"),
        ("http://example.org:8080//", "http://example.org:8080"),
        ("http://example.org./kolibri/", "http://example.org/kolibri"),
        ("http://kolibri_web:8080", "http://kolibri_web:8080"),
        ("http://1e100.net", "http://1e100.net"),
        ("https://münchen.example/schüler", "https://xn--mnchen-3ya.example/sch%C3%BCler"),
        ("https://faß.example", "https://xn--fa-hia.example"),
        ("http://8.8.8.8", "http://8.8.8.8"),
        ("http://134744072", "http://8.8.8.8"),
        ("http://[2606:4700:0::1111]:8080", "http://[2606:4700::1111]:8080"),
        ("http://[64:ff9b::8.8.8.8]", "http://[64:ff9b::808:808]"),
    ],
)
def test_a_public_url_is_normalised(url: str, normalised: str) -> None:
    assert PUBLIC_ONLY.check_url(url) == normalised


@pytest.mark.parametrize(
    ("url", "normalised"),
    [
        ("http://127.0.0.1:8080/", "http://127.0.0.1:8080"),
        ("http://2130706433", "http://127.0.0.1"),
        ("http://localhost:8080", "http://localhost:8080"),
        ("http://192.168.1.20/kolibri", "http://192.168.1.20/kolibri"),
        ("http://[::1]:8080", "http://[::1]:8080"),
        ("http://[fd12::1]", "http://[fd12::1]"),
        ("http://100.64.0.1", "http://100.64.0.1"),
    ],
)
def test_local_networks_may_be_allowed(url: str, normalised: str) -> None:
    assert LOCAL_TOO.check_url(url) == normalised


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254",
        "http://[::ffff:169.254.169.254]",
        "http://[fe80::1]",
        "http://[fd00:ec2::254]",
        "http://100.100.100.200",
        "http://metadata.google.internal",
        "http://0.0.0.0",
        "http://224.0.0.1",
        "http://255.255.255.255",
        "http://240.0.0.1",
        "http://[::]",
    ],
)
def test_some_addresses_are_refused_whatever_the_operator_allows(url: str) -> None:
    everything = AddressPolicy(allowed_networks=["0.0.0.0/0", "::/0"])

    with pytest.raises(ProviderAddressRefused):
        everything.check_url(url)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://example.org", "The URL must start with http:// or https:// and name a host"),
        (
            "http://admin:hunter2@example.org",
            (
                "The URL contains credentials: leave out everything up to the @ and give user name "
                "and password in their own fields"
            ),
        ),
        (
            "http://example.org?token=1",
            "The URL has a query: leave out the ? and what follows",
        ),
        (
            "http://example.org#top",
            "The URL has a fragment: leave out the # and what follows",
        ),
        ("http://:8080", "The URL names no host"),
        ("http://[]", "The URL names no host"),
        ("http://example.org:0", "The URL's port must be between 1 and 65535"),
        ("http://example.org:65536", "The URL's port must be between 1 and 65535"),
        ("http://example.org:http", "The URL's host and port are not readable: write host:port"),
        ("http://a..example.org", "The URL's host is not a valid name"),
        ("http://-a.example.org", "The URL's host is not a valid name"),
        ("http://" + "a." * 127 + "org", "The URL's host is not a valid name"),
        ("http://1.2.3.4.5", "The URL's host is neither a name nor an IPv4 address"),
        ("http://[::g]", "The URL's IPv6 address is not valid"),
        ("http://[fe80::1%eth0]", "The URL's IPv6 address has a zone: leave out the % part"),
        ("http://\u00ad", "The URL's host is not a valid international name"),
        ("http://example.org/a/../b", "The URL's path contains . or .. as a segment"),
        ("http://example.org/a/%2E%2e/b", "The URL's path contains . or .. as a segment"),
        ("http://example.org/" + "a" * 2048, "The URL is longer than 2048 characters"),
        (
            "http://example.org/a b",
            "The URL holds a space, a backslash or another character that must be percent-encoded",
        ),
        (
            "http://10.0.0.5",
            (
                "10.0.0.5 is in a private network, which this gateway may not call: have the "
                "operator add its network to GATEWAY_ALLOWED_NETWORKS"
            ),
        ),
        (
            "http://127.1",
            (
                "127.0.0.1 is this machine itself, which this gateway may not call: have the "
                "operator add its network to GATEWAY_ALLOWED_NETWORKS"
            ),
        ),
        (
            "http://169.254.169.254",
            "169.254.169.254 is a link-local or metadata address, which is never a provider",
        ),
    ],
)
def test_a_refusal_says_what_is_wrong_and_what_to_do(url: str, message: str) -> None:
    with pytest.raises(ProviderAddressRefused) as refusal:
        PUBLIC_ONLY.check_url(url)

    assert refusal.value.message == message
    assert refusal.value.code == "BAD_INPUT"


def test_only_allowed_ports_may_be_called() -> None:
    policy = AddressPolicy(allowed_ports={80, 443, 8080})

    assert policy.check_url("https://example.org") == "https://example.org"
    assert policy.check_url("https://example.org:8080") == "https://example.org:8080"
    with pytest.raises(ProviderAddressRefused) as refusal:
        policy.check_url("http://example.org:22")

    assert refusal.value.message == (
        "Port 22 may not be called: use one of 80, 443, 8080, "
        "or have the operator add it to GATEWAY_ALLOWED_PORTS"
    )


def test_what_is_no_address_is_no_allowed_address() -> None:
    with pytest.raises(ProviderAddressRefused):
        LOCAL_TOO.check_address("example.org", 80)


def test_a_network_that_is_none_is_a_mistake_of_the_operator() -> None:
    with pytest.raises(ValueError, match="has host bits set"):
        AddressPolicy(allowed_networks=["10.0.0.1/8"])


def test_equal_origins_compare_equal() -> None:
    one, rest = split_url("HTTP://Example.org:80/a?b#c")
    other, _ = split_url("http://example.org.")

    assert one == other == Origin(scheme="http", host="example.org", port=80)
    assert rest == "/a?b#c"


@given(st.ip_addresses(v=4))
def test_an_ipv6_address_is_judged_by_the_ipv4_address_it_carries(address: IPv4Address) -> None:
    number = int(address)
    carriers = [
        IPv6Address(0xFFFF << 32 | number),
        IPv6Address(0x64FF9B << 96 | number),
        IPv6Address(0x2002 << 112 | number << 80),
    ]

    verdicts = {_is_allowed(PUBLIC_ONLY, carrier) for carrier in carriers}

    assert verdicts == {_is_allowed(PUBLIC_ONLY, address)}


@given(st.ip_addresses())
def test_what_is_allowed_is_public(address: IPv4Address | IPv6Address) -> None:
    if _is_allowed(PUBLIC_ONLY, address):
        assert not address.is_loopback
        assert not address.is_link_local
        assert not address.is_multicast
        assert not address.is_unspecified


@given(st.one_of(st.text(max_size=40), st.text(max_size=40).map("http://{}".format)))
def test_any_text_is_either_normalised_for_good_or_refused(text: str) -> None:
    try:
        normalised = LOCAL_TOO.check_url(text)
    except ProviderAddressRefused:
        return

    assert LOCAL_TOO.check_url(normalised) == normalised
    assert normalised.isascii()


def _is_allowed(policy: AddressPolicy, address: IPv4Address | IPv6Address) -> bool:
    try:
        policy.check_address(str(address), 80)
    except ProviderAddressRefused:
        return False
    return True
