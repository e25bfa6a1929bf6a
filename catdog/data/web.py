"""Images from the web: one GET request with limits on address, size and time, safe for addresses that strangers give.

The name is resolved once, every address is judged, and the connection goes to a judged address; so a name that leads
elsewhere the next time (DNS rebinding) gains nothing. Redirects are judged likewise. Proxies of the environment are not
used: a proxy would choose the address itself.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import queue
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from catdog import __version__
from catdog.data import formats
from catdog.errors import CatdogError, UsageError, first_line

MAX_BYTES = 32 << 20
SECONDS = 20.0
MAX_REDIRECTS = 4
_REDIRECTS = (301, 302, 303, 307, 308)
_PIECE = 1 << 16

# Beyond what `ipaddress` counts as not global in every supported version of Python: IETF protocol assignments, relays
# and tunnels to IPv4 (RFC 7526, 4380, 3056), reserved space, and Azure's metadata service, whose address is public.
_REFUSED = tuple(
    ipaddress.ip_network(network)
    for network in (
        *("192.0.0.0/24", "192.88.99.0/24", "198.18.0.0/15", "240.0.0.0/4", "168.63.129.16/32"),
        *("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),
    )
)
_GLOBAL_IPV6 = ipaddress.ip_network("2000::/3")
# RFC 6052: where a network has IPv6 only, its resolver writes public IPv4 addresses so.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

# What `socket.getaddrinfo` answers.
_Answer = tuple[int, int, int, str, Any]


def is_url(place: str) -> bool:
    """Tells whether a text is the URL of something on the web rather than a path or a bucket."""
    return place.lower().startswith(("http://", "https://"))


def is_public(address: str) -> bool:
    """Tells whether an IP address is one of the public internet.

    Not public are private, loopback, link-local, shared (CGNAT), multicast, unspecified, reserved and documentation
    addresses, those of metadata services of clouds, and IPv6 addresses that stand for such an IPv4 address.

    Args:
        address: IPv4 or IPv6, as `socket.getaddrinfo` gives it.
    """
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return is_public(str(found.ipv4_mapped))
        if found in _NAT64:
            return is_public(str(ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)))
        if found not in _GLOBAL_IPV6:
            return False
    return found.is_global and not found.is_multicast and not any(found in network for network in _REFUSED)


def fetch_url(
    url: str,
    *,
    allow_private: bool = False,
    max_bytes: int = MAX_BYTES,
    seconds: float = SECONDS,
) -> bytes:
    """Downloads an image.

    Whether it is an image is told from its first bytes, not from what the server calls it. Nothing is decompressed.

    Args:
        url: http or https, without a user name.
        allow_private: also from addresses that are not public; never for URLs of other people.
        max_bytes: the largest file taken.
        seconds: the longest time for everything, redirects included.

    Returns:
        The bytes of a file that begins as an image of a supported format.

    Raises:
        UsageError: the URL, or one that it redirects to, is none that may be fetched.
        CatdogError: there is no answer, another one than an image, or a limit is exceeded.
    """
    deadline = time.monotonic() + seconds
    place = url
    for _ in range(MAX_REDIRECTS + 1):
        parts = _checked(place, url)
        try:
            answer = _get(parts, url, allow_private, max_bytes, deadline)
        except (OSError, http.client.HTTPException, ValueError) as error:
            if time.monotonic() >= deadline or isinstance(error, TimeoutError):
                raise CatdogError(f"{_shown(url)} was not complete within {seconds:g} s") from error
            raise CatdogError(f"could not fetch {_shown(url)}: {_reason(error)}") from error
        if isinstance(answer, bytes):
            return answer
        place = urljoin(place, answer.target)
    raise CatdogError(f"{_shown(url)} redirects more than {MAX_REDIRECTS} times")


class _Redirect:
    def __init__(self, target: str) -> None:
        self.target = target


def _get(parts: SplitResult, url: str, allow_private: bool, max_bytes: int, deadline: float) -> bytes | _Redirect:
    """One request, to one of the addresses of the URL's host."""
    host = parts.hostname or ""
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    raw = _connect(_resolve(host, port, url, allow_private, deadline), deadline)
    with contextlib.closing(raw), _ended_at(raw, deadline):
        stream = ssl.create_default_context().wrap_socket(raw, server_hostname=host) if secure else raw
        with contextlib.closing(stream):
            # A connection that is open already: `http.client` then resolves and connects nothing by itself.
            connection = http.client.HTTPConnection(host, port)
            connection.default_port = 443 if secure else 80  # which the Host header then leaves out
            connection.sock = stream
            target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._") + (
                "?" + quote(parts.query, safe="/?%:@!$&'()*+,;=~-._[]") if parts.query else ""
            )
            headers = {
                "User-Agent": f"catdog/{__version__}",
                "Accept": "image/*",
                "Accept-Encoding": "identity",
                "Connection": "close",
            }
            connection.request("GET", target, headers=headers)
            return _read(connection.getresponse(), url, max_bytes, deadline)


def _read(response: http.client.HTTPResponse, url: str, max_bytes: int, deadline: float) -> bytes | _Redirect:
    location = response.getheader("Location")
    if response.status in _REDIRECTS and location:
        # Headers are decoded as Latin-1, but paths are usually UTF-8.
        return _Redirect(location.encode("latin-1").decode("utf-8", "replace"))
    if response.status != HTTPStatus.OK:
        known = {status.value: status.phrase for status in HTTPStatus}
        raise CatdogError(f"{_shown(url)} answered {response.status} {known.get(response.status, '')}".rstrip())
    if (response.length or 0) > max_bytes:
        raise _too_large(url, max_bytes)
    data = bytearray()
    judged = False
    while piece := response.read1(_PIECE):
        data += piece
        if len(data) > max_bytes:
            raise _too_large(url, max_bytes)
        if not judged and len(data) >= formats.HEAD_BYTES:
            _require_image(data, url)
            judged = True
        if time.monotonic() >= deadline:
            break
    if time.monotonic() >= deadline:
        raise TimeoutError
    if response.length:
        raise CatdogError(f"{_shown(url)} ended early: {response.length:,} bytes are missing")
    _require_image(data, url)
    return bytes(data)


def _require_image(data: bytearray, url: str) -> None:
    head = bytes(data[: formats.HEAD_BYTES])
    if not head:
        raise CatdogError(f"{_shown(url)} is empty (0 bytes)")
    if formats.sniff(head) is None:
        what = "a web page" if head.lstrip()[:1] == b"<" else "something else"
        raise CatdogError(f"{_shown(url)} is {what}, expected the address of an image itself")


def _too_large(url: str, max_bytes: int) -> CatdogError:
    return CatdogError(f"{_shown(url)} has more than {max_bytes:,} bytes, the most that is taken")


def _checked(place: str, url: str) -> SplitResult:
    """Splits a URL that may be fetched; whether its host may be connected to is judged later."""
    try:
        parts = urlsplit(place)
        port_is_valid = parts.port != 0
    except ValueError:  # such as a port that is no number
        parts, port_is_valid = urlsplit(""), False
    if parts.scheme in ("http", "https") and parts.hostname and port_is_valid and "@" not in parts.netloc:
        return parts
    through = "" if place == url else f", which redirects to {_shown(place)}"
    raise UsageError(f"received {_shown(url)}{through}; expected an http or https URL without a user name")


def _resolve(host: str, port: int, url: str, allow_private: bool, deadline: float) -> Sequence[_Answer]:
    """All addresses of a host, every one of which may be connected to."""
    answers: queue.SimpleQueue[Sequence[_Answer] | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            answers.put(error)

    # In a thread, because a name server that is silent blocks for minutes and cannot be interrupted.
    threading.Thread(target=ask, daemon=True).start()
    try:
        found = answers.get(timeout=max(0.0, deadline - time.monotonic()))
    except queue.Empty as error:
        raise TimeoutError from error
    if isinstance(found, Exception):
        raise found
    if not allow_private and not all(is_public(str(answer[4][0])) for answer in found):
        raise UsageError(f"{_shown(url)} leads to {host}, which is not a public address; only those are fetched")
    return found


def _connect(answers: Sequence[_Answer], deadline: float) -> socket.socket:
    """Connects to the first address that answers; names are not resolved again."""
    failure: OSError = OSError("the name has no address")
    for number, (family, kind, protocol, _, address) in enumerate(answers):
        connection = socket.socket(family, kind, protocol)
        try:
            # A share of the time for each, so that one that is silent leaves some for the next.
            connection.settimeout(max(0.001, (deadline - time.monotonic()) / (len(answers) - number)))
            connection.connect(address)
            connection.settimeout(max(0.001, deadline - time.monotonic()))
            return connection
        except OSError as error:
            connection.close()
            failure = error
    raise failure


@contextlib.contextmanager
def _ended_at(connection: socket.socket, deadline: float) -> Iterator[None]:
    """Shuts a connection at a time: a time limit for each read alone lets a byte now and then go on for ever."""
    same = connection.dup()  # TLS takes the first one's descriptor away

    def end() -> None:
        with contextlib.suppress(OSError):
            same.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(max(0.0, deadline - time.monotonic()), end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        same.close()


def _reason(error: Exception) -> str:
    if isinstance(error, socket.gaierror):
        return "its name cannot be resolved"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message})"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, http.client.IncompleteRead):
        return "the connection ended early"
    if isinstance(error, http.client.HTTPException):
        return f"its answer is not valid HTTP ({type(error).__name__})"
    return first_line(error)


def _shown(url: str) -> str:
    """A URL for a message: one line of plain characters, without a password."""
    scheme, mark, rest = url.partition("://")
    netloc, slash, path = rest.partition("/")
    text = scheme + mark + netloc.rpartition("@")[2] + slash + path
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return text if len(text) <= 200 else text[:197] + "..."
