"""Which addresses the gateway may call: the guard against server-side request forgery.

The same rules judge a URL when a provider is registered and every IP address when a connection
is made, so that neither an odd spelling nor a name that later resolves elsewhere gets through.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from urllib.parse import quote

import idna

from sessions.errors import ProviderAddressRefused

LOCAL_NETWORKS = (
    "127.0.0.0/8",
    "::1/128",
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",
    "fc00::/7",
)
"""Loopback, private and carrier-grade networks: where a school's own servers usually are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Scheme, host and port of a URL, normalised so that equal origins compare equal.

    Attributes:
        scheme: ``http`` or ``https``.
        host: Lower-case ASCII name, dotted IPv4 address, or IPv6 address without brackets.
        port: Always given, also where it is the scheme's own.
    """

    scheme: str
    host: str
    port: int

    @property
    def netloc(self) -> str:
        """Host, and port unless it is the scheme's own, as they stand in a URL."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc}"


class AddressPolicy:
    """The operator's rules about where providers may be.

    Link-local, metadata, multicast, unspecified, broadcast and reserved addresses are always
    refused, also inside IPv6 addresses that carry an IPv4 one.

    Args:
        allowed_networks: Networks that are not public but may be called, in CIDR form;
            ``LOCAL_NETWORKS`` for an installation in a local network.
        allowed_ports: The only ports that may be called; ``None`` for any.

    Raises:
        ValueError: A network is not written as one.
    """

    def __init__(
        self,
        *,
        allowed_networks: Iterable[str | IPv4Network | IPv6Network] = (),
        allowed_ports: Collection[int] | None = None,
    ) -> None:
        self.allowed_networks = tuple(ip_network(network) for network in allowed_networks)
        self.allowed_ports = None if allowed_ports is None else frozenset(allowed_ports)

    def check_url(self, url: str) -> str:
        """Return the base URL normalised: lower-case host, no default port, no trailing slash.

        An address written in the URL is judged here; what a name resolves to is judged when the
        connection is made.

        Raises:
            ProviderAddressRefused: It is not an http or https URL of an allowed place; the message
                says what is wrong and what would be right.
        """
        origin, rest = split_url(url.strip(" \t\r\n"))
        if "#" in rest:
            raise ProviderAddressRefused("The URL has a fragment: leave out the # and what follows")
        if "?" in rest:
            raise ProviderAddressRefused("The URL has a query: leave out the ? and what follows")
        self._check_name(origin)
        return str(origin) + checked_path(rest).rstrip("/")

    def check_file_url(self, url: str) -> str:
        """Return the URL of a file normalised: its query stays, a fragment is dropped.

        Raises:
            ProviderAddressRefused: As for ``check_url``.
        """
        origin, rest = split_url(url.strip(" \t\r\n"))
        self._check_name(origin)
        bare, mark, query = rest.partition("#")[0].partition("?")
        return str(origin) + (checked_path(bare) or "/") + mark + query

    def check_address(self, address: str, port: int) -> None:
        """Let an IP address pass that may be called.

        Raises:
            ProviderAddressRefused: It may not, or it is no IP address.
        """
        self._check_port(port)
        try:
            judged = ip_address(address)
        except ValueError as error:
            raise ProviderAddressRefused("The host's address is not an IP address") from error
        self._check_ip(judged)

    def _check_name(self, origin: Origin) -> None:
        self._check_port(origin.port)
        if origin.host in _METADATA_NAMES:
            raise ProviderAddressRefused(
                f"{origin.host} is a cloud metadata service, which is never a provider"
            )
        if origin.host == "localhost" or origin.host.endswith(".localhost"):
            self._check_ip(IPv4Address("127.0.0.1"))
            return
        try:
            address = ip_address(origin.host)
        except ValueError:
            return
        self._check_ip(address)

    def _check_port(self, port: int) -> None:
        if self.allowed_ports is not None and port not in self.allowed_ports:
            ports = ", ".join(str(allowed) for allowed in sorted(self.allowed_ports))
            raise ProviderAddressRefused(
                f"Port {port} may not be called: use one of {ports}, "
                "or have the operator add it to GATEWAY_ALLOWED_PORTS"
            )

    def _check_ip(self, address: IPv4Address | IPv6Address) -> None:
        for carried in _carried(address):
            self._check_plain_ip(carried, shown=address)

    def _check_plain_ip(
        self, address: IPv4Address | IPv6Address, *, shown: IPv4Address | IPv6Address
    ) -> None:
        for network, kind in _NEVER:
            if address.version == network.version and address in network:
                raise ProviderAddressRefused(f"{shown} is {kind}, which is never a provider")
        if any(
            address.version == network.version and address in network
            for network in self.allowed_networks
        ):
            return
        if address.is_loopback or not address.is_global:
            kind = "this machine itself" if address.is_loopback else "in a private network"
            raise ProviderAddressRefused(
                f"{shown} is {kind}, which this gateway may not call: have the operator add "
                "its network to GATEWAY_ALLOWED_NETWORKS"
            )


def split_url(url: str) -> tuple[Origin, str]:
    """Return a URL's origin, and its path, query and fragment as they stand.

    A host is normalised the way a resolver would read it: full-width digits, decimal, octal,
    hexadecimal and shortened IPv4 forms become dotted ones.

    Raises:
        ProviderAddressRefused: It is not an http or https URL with a host and nothing but a host.
    """
    if len(url) > _MAX_URL_LENGTH:
        raise ProviderAddressRefused(f"The URL is longer than {_MAX_URL_LENGTH} characters")
    if _FORBIDDEN.search(url):
        raise ProviderAddressRefused(
            "The URL holds a space, a backslash or another character that must be percent-encoded"
        )
    found = _URL.fullmatch(url)
    if found is None:
        raise ProviderAddressRefused("The URL must start with http:// or https:// and name a host")
    scheme, authority, rest = found["scheme"].lower(), found["authority"], found["rest"]
    if "@" in authority:
        raise ProviderAddressRefused(
            "The URL contains credentials: leave out everything up to the @ and give user name "
            "and password in their own fields"
        )
    host, port = _split_authority(authority)
    origin = Origin(scheme=scheme, host=_normalised_host(host), port=port or _DEFAULT_PORTS[scheme])
    return origin, rest


def checked_path(path: str) -> str:
    """Return the path with everything but ASCII percent-encoded.

    Raises:
        ProviderAddressRefused: It climbs with dot segments, which servers read differently.
    """
    if _DOT_SEGMENT.search(path):
        raise ProviderAddressRefused("The URL's path contains . or .. as a segment")
    return path if path.isascii() else quote(path, safe="/%:@!$&'()*+,;=-._~")


_DEFAULT_PORTS = {"http": 80, "https": 443}
_MAX_URL_LENGTH = 2048
_MAX_PORT = 65535
_MAX_HOST_LENGTH = 253

_URL = re.compile(r"(?P<scheme>https?)://(?P<authority>[^/?#]*)(?P<rest>.*)", re.IGNORECASE)
_FORBIDDEN = re.compile(r'[\x00-\x20\x7f-\xa0\u2028\u2029\\<>"{}|^`]')
_AUTHORITY = re.compile(r"(?P<host>\[[^\[\]]*\]|[^:\[\]]*)(?::(?P<port>[0-9]{0,5}))?")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_DOT_SEGMENT = re.compile(r"(?:^|/)(?:\.|%2e){1,2}(?=$|[/?#])", re.IGNORECASE)

_METADATA_NAMES = frozenset(
    {
        "instance-data",
        "instance-data.ec2.internal",
        "metadata",
        "metadata.goog",
        "metadata.google.internal",
        "metadata.tencentyun.com",
    }
)

# Ranges: the IANA special-purpose address registries for IPv4 and IPv6. Metadata addresses that
# lie in ranges an operator may allow are listed one by one.
_NEVER = tuple(
    (ip_network(network), kind)
    for network, kind in (
        ("169.254.0.0/16", "a link-local or metadata address"),
        ("fe80::/10", "a link-local address"),
        ("100.100.100.200/32", "a cloud metadata address"),
        ("168.63.129.16/32", "a cloud metadata address"),
        ("fd00:ec2::/32", "a cloud metadata address"),
        ("fd20:ce::254/128", "a cloud metadata address"),
        ("0.0.0.0/8", "an unspecified address"),
        ("::/128", "an unspecified address"),
        ("224.0.0.0/4", "a multicast address"),
        ("ff00::/8", "a multicast address"),
        ("255.255.255.255/32", "the broadcast address"),
        ("240.0.0.0/4", "a reserved address"),
        ("192.0.0.0/24", "a reserved address"),
        ("192.0.2.0/24", "a documentation address"),
        ("198.51.100.0/24", "a documentation address"),
        ("203.0.113.0/24", "a documentation address"),
        ("192.88.99.0/24", "a reserved address"),
        ("198.18.0.0/15", "a benchmarking address"),
        ("100::/64", "a discard address"),
        ("2001:db8::/32", "a documentation address"),
        ("3fff::/20", "a documentation address"),
        ("5f00::/16", "a reserved address"),
        ("fec0::/10", "a reserved address"),
    )
)


def _low(number: int) -> int:
    return number & 0xFFFFFFFF


# IPv6 ranges that carry IPv4 addresses, and the addresses a connection there may end at.
_CARRIERS: tuple[tuple[IPv4Network | IPv6Network, Callable[[int], tuple[int, ...]]], ...] = (
    # IPv4-mapped, IPv4-translated (RFC 2765), NAT64 (RFC 6052)
    (ip_network("::ffff:0:0/96"), lambda number: (_low(number),)),
    (ip_network("::ffff:0:0:0/96"), lambda number: (_low(number),)),
    (ip_network("64:ff9b::/96"), lambda number: (_low(number),)),
    # Local-use NAT64 (RFC 8215): the translator's prefix may be 48 or 96 bits long
    (
        ip_network("64:ff9b:1::/48"),
        lambda number: (
            _low(number),
            (number >> 64 & 0xFFFF) << 16 | (number >> 40 & 0xFFFF),
        ),
    ),
    # 6to4 (RFC 3056); Teredo (RFC 4380): its server, and the client's address inverted
    (ip_network("2002::/16"), lambda number: (_low(number >> 80),)),
    (ip_network("2001::/32"), lambda number: (_low(number >> 64), _low(~number))),
)
_COMPATIBLE = ip_network("::/96")
_ISATAP_MARKS = frozenset({0x00005EFE, 0x02005EFE})


def _carried(address: IPv4Address | IPv6Address) -> tuple[IPv4Address | IPv6Address, ...]:
    """Return the addresses a connection would really go to: those carried inside, or itself."""
    number = int(address)
    if isinstance(address, IPv4Address) or number <= 1:
        return (address,)
    for network, numbers in _CARRIERS:
        if address in network:
            return tuple(IPv4Address(carried) for carried in numbers(number))
    if address in _COMPATIBLE:
        return (IPv4Address(_low(number)),)
    if _low(number >> 32) in _ISATAP_MARKS:
        return (address, IPv4Address(_low(number)))
    return (address,)


def _split_authority(authority: str) -> tuple[str, int | None]:
    found = _AUTHORITY.fullmatch(authority)
    if found is None:
        raise ProviderAddressRefused("The URL's host and port are not readable: write host:port")
    if not found["host"] or found["host"] == "[]":
        raise ProviderAddressRefused("The URL names no host")
    if not found["port"]:
        return found["host"], None
    port = int(found["port"])
    if not 0 < port <= _MAX_PORT:
        raise ProviderAddressRefused(f"The URL's port must be between 1 and {_MAX_PORT}")
    return found["host"], port


def _normalised_host(host: str) -> str:
    if host.startswith("["):
        return _normalised_ipv6(host[1:-1])
    name = _ascii_name(host).removesuffix(".")
    labels = name.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        return _dotted_ipv4(name)
    if len(name) > _MAX_HOST_LENGTH or not all(_LABEL.fullmatch(label) for label in labels):
        raise ProviderAddressRefused("The URL's host is not a valid name")
    return name


def _normalised_ipv6(text: str) -> str:
    if "%" in text:
        raise ProviderAddressRefused("The URL's IPv6 address has a zone: leave out the % part")
    try:
        return str(IPv6Address(text))
    except ValueError as error:
        raise ProviderAddressRefused("The URL's IPv6 address is not valid") from error


def _ascii_name(host: str) -> str:
    if host.isascii():
        return host.lower()
    try:
        return idna.encode(host, uts46=True).decode("ascii").lower()
    except (idna.IDNAError, UnicodeError) as error:
        raise ProviderAddressRefused("The URL's host is not a valid international name") from error


def _dotted_ipv4(text: str) -> str:
    """Read decimal, octal, hexadecimal and shortened forms as the system's resolver does."""
    try:
        return str(IPv4Address(socket.inet_aton(text)))
    except (OSError, ValueError) as error:
        raise ProviderAddressRefused(
            "The URL's host is neither a name nor an IPv4 address"
        ) from error
