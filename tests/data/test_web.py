"""Images from the web, against servers on this machine that are slow, endless, deceitful or honest."""

from __future__ import annotations

import datetime
import gzip
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from helpers import jpeg

from catdog.data import web
from catdog.errors import CatdogError, UsageError

IMAGE = jpeg(1, (120, 90))
Respond = Callable[[socket.socket, str], None]


class Server:
    """A server that answers each path by a function, and remembers the requests."""

    def __init__(self, wrap: Callable[[socket.socket], socket.socket] = lambda stream: stream) -> None:
        self.answers: dict[str, Respond] = {}
        self.requests: list[str] = []
        self._wrap = wrap
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def url(self, path: str, host: str = "127.0.0.1", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}{path}"

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                stream, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(stream,), daemon=True).start()

    def _serve(self, stream: socket.socket) -> None:
        with suppress(OSError), self._wrap(stream) as connection:
            request = b""
            while b"\r\n\r\n" not in request:
                if not (piece := connection.recv(4096)):
                    return
                request += piece
            self.requests.append(request.decode("latin-1"))
            path = self.requests[-1].split()[1]
            self.answers[path](connection, path)


def whole(body: bytes, status: str = "200 OK", **headers: str) -> Respond:
    """Answers at once."""
    lines = [f"HTTP/1.1 {status}", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    if "Content_Length" not in headers:
        lines.append(f"Content-Length: {len(body)}")
    head = "\r\n".join(lines).encode() + b"\r\n\r\n"
    return lambda stream, _: stream.sendall(head + body)


def redirect(target: str, status: str = "302 Found") -> Respond:
    return whole(b"", status, Location=target)


def trickle(head: bytes, piece: bytes, pause: float) -> Respond:
    """Sends a byte string, and then another one again and again for up to half a minute."""

    def respond(stream: socket.socket, _: str) -> None:
        stream.sendall(head)
        end = time.monotonic() + 30
        while time.monotonic() < end:
            stream.sendall(piece)
            time.sleep(pause)

    return respond


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


def names_lead(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> list[str]:
    """Every name leads to the first address when it is asked for the first time, and so on; returns what was asked."""
    asked: list[str] = []

    def answer(host: str, port: int, *_: object, **__: object) -> list[tuple]:
        asked.append(host)
        address = addresses[min(len(asked), len(addresses)) - 1]
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return [(family, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    return asked


def test_an_image_is_fetched_whatever_the_server_calls_it(server: Server) -> None:
    server.answers["/a%20b.txt?x=%C3%A4&y=1"] = whole(IMAGE, Content_Type="text/plain")
    assert web.fetch_url(server.url("/a b.txt?x=ä&y=1#part"), allow_private=True) == IMAGE
    assert f"Host: 127.0.0.1:{server.port}\r\n" in server.requests[0]
    assert "Accept-Encoding: identity\r\n" in server.requests[0]


def test_bodies_in_chunks_and_until_the_end_of_the_connection(server: Server) -> None:
    half = len(IMAGE) // 2
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (IMAGE[:half], IMAGE[half:], b""))
    server.answers["/chunks"] = lambda stream, _: stream.sendall(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks
    )
    server.answers["/rest"] = lambda stream, _: stream.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + IMAGE)
    for path in ("/chunks", "/rest"):
        assert web.fetch_url(server.url(path), allow_private=True) == IMAGE


def test_redirects_are_followed_a_few_times(server: Server) -> None:
    server.answers["/1"] = redirect("2")
    server.answers["/2"] = redirect(f"//127.0.0.1:{server.port}/3", "301 Moved Permanently")
    server.answers["/3"] = redirect(server.url("/bär"), "308 Permanent Redirect")
    server.answers["/b%C3%A4r"] = whole(IMAGE)
    server.answers["/loop"] = redirect("/loop")
    assert web.fetch_url(server.url("/1"), allow_private=True) == IMAGE
    with pytest.raises(CatdogError, match="redirects more than 4 times"):
        web.fetch_url(server.url("/loop"), allow_private=True)
    assert len(server.requests) == 4 + 5


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.9.9.9", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1"),
        *("100.100.100.200", "0.0.0.0", "0.1.2.3", "224.0.0.1", "224.0.1.1", "239.1.1.1", "255.255.255.255"),
        *("240.0.0.1", "192.0.0.192", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "192.88.99.1"),
        "168.63.129.16",
        *("::1", "::", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "fe80::1", "fe80::1%eth0", "fc00::1"),
        *("fd00:ec2::254", "fec0::1", "ff02::1", "ff0e::1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1"),
        *("2002:7f00:1::", "2002:808:808::", "2001::1", "2001:db8::1", "3fff::1", "100::1", "5f00::1"),
    ],
)
def test_addresses_that_are_not_public(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not web.is_public(address)
    names_lead(monkeypatch, address)
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("connected"))
    with pytest.raises(UsageError, match=r"leads to pets\.test, which is not a public address"):
        web.fetch_url("http://pets.test/cat.jpg")


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "1.1.1.1", "100.128.0.1", "172.32.0.1", "2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"],
)
def test_addresses_that_are_public(address: str) -> None:
    assert web.is_public(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "0177.0.0.1", "[::1]", "127.1"])
def test_names_of_this_machine_are_refused_by_default(server: Server, host: str) -> None:
    server.answers["/"] = whole(IMAGE)
    with pytest.raises(UsageError, match="is not a public address"):
        web.fetch_url(server.url("/", host))
    assert server.requests == []


@pytest.mark.parametrize(
    "target", ["http://127.0.0.1:PORT/x", "http://169.254.169.254/latest/meta-data/", "//localhost:PORT/x"]
)
def test_a_redirect_to_an_address_that_is_not_public(
    server: Server, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answers["/cat.jpg"] = redirect(target.replace("PORT", str(server.port)))
    server.answers["/x"] = whole(IMAGE)
    public_stand_in(monkeypatch, server)
    with pytest.raises(UsageError, match=r"pets\.test.* leads to .*, which is not a public address"):
        web.fetch_url("http://pets.test/cat.jpg")
    assert len(server.requests) == 1


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://pets.test/x", "gopher://pets.test", "http://u:p@x/"])
def test_a_redirect_to_another_scheme(server: Server, target: str) -> None:
    server.answers["/"] = redirect(target)
    with pytest.raises(UsageError, match="which redirects to .*; expected an http or https URL without a user name"):
        web.fetch_url(server.url("/"), allow_private=True)


def public_stand_in(monkeypatch: pytest.MonkeyPatch, server: Server) -> list[object]:
    """The server stands for the public address 93.184.216.34, which pets.test has; returns what is connected to."""
    resolve, connect = socket.getaddrinfo, socket.socket.connect
    connected: list[object] = []

    def answer(host: str, port: int, *rest: object, **named: object) -> list:
        if host == "pets.test":
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", port))]
        return resolve(host, port, *rest, **named)

    def reach(stream: socket.socket, address: tuple) -> None:
        connected.append(address)
        connect(stream, ("127.0.0.1", server.port) if address[0] == "93.184.216.34" else address)

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    monkeypatch.setattr(socket.socket, "connect", reach)
    return connected


def test_a_name_that_leads_elsewhere_the_second_time_gains_nothing(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: the address that was judged is the one that is connected to, and the name is asked for once."""
    server.answers["/cat.jpg"] = whole(IMAGE)
    connected = public_stand_in(monkeypatch, server)
    asked = names_lead(monkeypatch, "93.184.216.34", "127.0.0.1")
    assert web.fetch_url("http://pets.test/cat.jpg") == IMAGE
    assert asked == ["pets.test"]
    assert connected == [("93.184.216.34", 80)]
    assert "Host: pets.test\r\n" in server.requests[0]


def test_one_address_of_several_is_enough_to_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    both = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in ("8.8.8.8", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    with pytest.raises(UsageError, match="is not a public address"):
        web.fetch_url("http://pets.test/")


def test_the_environment_names_no_proxy(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.answers["/"] = whole(IMAGE)
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert web.fetch_url(server.url("/"), allow_private=True) == IMAGE


@pytest.mark.parametrize("length", ["known", "unknown", "chunks"])
def test_a_body_without_end_is_left(server: Server, length: str) -> None:
    head = b"HTTP/1.1 200 OK\r\n"
    body = IMAGE
    if length == "known":
        head += b"Content-Length: 999999999999\r\n"
    if length == "chunks":
        head += b"Transfer-Encoding: chunked\r\n"
        body = b"%x\r\n%s\r\n" % (len(IMAGE), IMAGE)
    server.answers["/"] = trickle(head + b"\r\n", body, 0)
    with pytest.raises(CatdogError, match="has more than 100,000 bytes, the most that is taken"):
        web.fetch_url(server.url("/"), allow_private=True, max_bytes=100_000)


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"", b""),
        (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"),
        (b"HTTP/1.1 200 OK\r\nX: ", b"y"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + IMAGE, b"x"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n" % (len(IMAGE), IMAGE), b"T: x\r\n"),
    ],
)
def test_what_is_slow_ends_at_the_time_limit(server: Server, head: bytes, piece: bytes) -> None:
    """A server that sends something now and then never lets a limit for each read run out."""
    server.answers["/"] = trickle(head, piece, 0.05)
    started = time.monotonic()
    with pytest.raises(CatdogError, match="was not complete within 0.3 s|not valid HTTP"):
        web.fetch_url(server.url("/"), allow_private=True, seconds=0.3)
    assert time.monotonic() - started < 2


def test_a_name_server_that_is_silent_and_a_name_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(5))
    with pytest.raises(CatdogError, match="was not complete within 0.2 s"):
        web.fetch_url("http://pets.test/", seconds=0.2)

    def absent(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", absent)
    with pytest.raises(CatdogError, match="its name cannot be resolved"):
        web.fetch_url("http://pets.test/")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (whole(b"<html>" * 99), "is a web page, expected the address of an image itself"),
        (whole(b"just text", Content_Type="image/jpeg"), "is something else, expected the address of an image itself"),
        (whole(gzip.compress(b"\0" * 9_000_000), Content_Encoding="gzip"), "is something else"),
        (whole(b""), r"is empty \(0 bytes\)"),
        (whole(IMAGE, "404 <Nothing>"), "answered 404 Not Found$"),
        (whole(IMAGE, "599 x"), "answered 599$"),
        (whole(IMAGE, "302 Found"), "answered 302 Found"),
        (whole(IMAGE, Content_Length="99999"), "ended early: .* bytes are missing"),
        (lambda stream, _: stream.sendall(b"SSH-2.0-OpenSSH\r\n"), r"not valid HTTP \(BadStatusLine\)"),
        (
            lambda stream, _: stream.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfff\r\n" + IMAGE),
            "ended early",
        ),
        (lambda stream, _: stream.sendall(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200), "not valid HTTP"),
        (lambda *_: None, "not valid HTTP|reset"),
    ],
)
def test_other_answers_are_said_in_one_line(server: Server, answer: Respond, message: str) -> None:
    server.answers["/"] = answer
    with pytest.raises(CatdogError, match=message) as failure:
        web.fetch_url(server.url("/"), allow_private=True)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(
    "url",
    [
        *("ftp://pets.test/a.jpg", "file:///etc/passwd", "http://", "http:///a.jpg", "http://user@pets.test/"),
        *("http://pets.test:99999/", "http://pets.test:0/", "http://[::1", "https://me:secret@pets.test/", "data:,x"),
    ],
)
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(UsageError, match="expected an http or https URL without a user name") as failure:
        web.fetch_url(url)
    assert "secret" not in str(failure.value)


def test_a_long_or_strange_url_makes_a_short_plain_message() -> None:
    with pytest.raises(UsageError) as failure:
        web.fetch_url("ftp://pets.test/\x1b[31m" + "x" * 5000)
    assert len(str(failure.value)) < 400
    assert str(failure.value).isprintable()


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(CatdogError, match="could not fetch .*: Connection refused"):
        web.fetch_url(f"http://127.0.0.1:{port}/", allow_private=True)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of pets.test and its key, which nobody trusts yet."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "pets.test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("pets.test")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "pets.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path


def test_tls_is_verified_against_the_name_in_the_url(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = Server(lambda stream: context.wrap_socket(stream, server_side=True))
    server.answers["/"] = whole(IMAGE)
    server.answers["/slow"] = trickle(b"HTTP/1.1 200 OK\r\n\r\n" + IMAGE, b"x", 0.05)
    names_lead(monkeypatch, "127.0.0.1")
    with pytest.raises(CatdogError, match="its certificate is not trusted"):
        web.fetch_url(server.url("/", "pets.test", "https"), allow_private=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert web.fetch_url(server.url("/", "pets.test", "https"), allow_private=True) == IMAGE
    with pytest.raises(CatdogError, match="its certificate is not trusted .*Hostname mismatch"):
        web.fetch_url(server.url("/", "cats.test", "https"), allow_private=True)
    with pytest.raises(CatdogError, match="was not complete within 0.4 s"):
        web.fetch_url(server.url("/slow", "pets.test", "https"), allow_private=True, seconds=0.4)
    with pytest.raises(CatdogError, match="could not fetch"):
        web.fetch_url(server.url("/", "pets.test", "http"), allow_private=True)
    server.close()
