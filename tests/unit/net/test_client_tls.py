"""The HTTP client over TLS: whom it trusts, by which name, and that nothing else differs."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.support.raw import raw_server, request_head
from toolway.net.client import ClientCertificate, HttpClient, Origin
from toolway.net.errors import Fault, HttpError, connect_error

Key = ec.EllipticCurvePrivateKey


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def certificate(
    subject: str,
    key: Key,
    issuer: str,
    issuer_key: Key,
    *names: x509.GeneralName,
    until: timedelta = timedelta(hours=1),
) -> x509.Certificate:
    """For a server of these names, or for an authority if there are none."""
    now = datetime.now(UTC)
    public = issuer_key.public_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=2))
        .not_valid_after(now + until)
        .add_extension(x509.BasicConstraints(ca=not names, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    else:
        usage = dict.fromkeys(
            (
                "digital_signature",
                "content_commitment",
                "key_encipherment",
                "data_encipherment",
                "key_agreement",
                "encipher_only",
                "decipher_only",
            ),
            False,
        )
        builder = builder.add_extension(
            x509.KeyUsage(key_cert_sign=True, crl_sign=True, **usage), critical=True
        )
    return builder.sign(issuer_key, hashes.SHA256())


def pem(*things: x509.Certificate | Key) -> bytes:
    encoding = serialization.Encoding.PEM
    return b"".join(
        thing.public_bytes(encoding)
        if isinstance(thing, x509.Certificate)
        else thing.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        for thing in things
    )


class Authority:
    """Signs certificates; `bundle` is the file of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.bundle = folder / "ca.pem"
        self.bundle.write_bytes(pem(certificate("ca", self._key, "ca", self._key)))

    def identity(self, *names: x509.GeneralName, until: timedelta = timedelta(hours=1)) -> Path:
        """A file with a key and its certificate."""
        key = ec.generate_private_key(ec.SECP256R1())
        path = self._folder / f"{len(list(self._folder.iterdir()))}.pem"
        path.write_bytes(pem(key, certificate("server", key, "ca", self._key, *names, until=until)))
        return path

    def server(self, *names: x509.GeneralName, until: timedelta = timedelta(hours=1)) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.identity(*names, until=until))
        context.set_alpn_protocols(["h2", "http/1.1"])
        return context


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param}


LOCALHOST = x509.DNSName("localhost")
LOOPBACK = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    made = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(made.bundle))
    return made


@asynccontextmanager
async def client_of(
    port: int, host: str, certificate: ClientCertificate | None = None, scheme: str = "https"
) -> AsyncIterator[HttpClient]:
    origin = Origin.of(f"{scheme}://{host}:{port}/v1")
    client = HttpClient(origin, connect=20, silence=20, certificate=certificate)
    try:
        yield client
    finally:
        client.close()


async def post(client: HttpClient) -> bytes:
    async with client.request("POST", b"/x", body=b"{}") as connection:
        body = b""
        while part := await connection.receive():
            body += part
        return body


class Secured:
    """Answers with what it was asked for; notes the protocol and the name that the client wanted."""

    def __init__(
        self, answer: bytes = b"HTTP/1.1 200 OK\r\ncontent-length: 3000000\r\n\r\n" + bytes(3_000_000)
    ):
        self.answer = answer
        self.protocols: list[str | None] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.protocols.append(writer.get_extra_info("ssl_object").selected_alpn_protocol())
        while await request_head(reader) and await reader.readexactly(2):
            writer.write(self.answer)
            await writer.drain()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_a_server_that_the_system_trusts_is_asked(authority: Authority, host: str):
    pending_approvals: list[str | None] = []
    context, serve = authority.server(LOCALHOST, LOOPBACK), Secured()
    context.sni_callback = lambda _socket, wanted, _context: pending_approvals.append(wanted)
    async with raw_server(serve, tls=context) as port, client_of(port, host) as client:
        for _ in range(2):
            assert await post(client) == bytes(3_000_000)
    assert serve.protocols == ["http/1.1"]
    assert pending_approvals == (["localhost"] if host == "localhost" else [None])


async def test_a_server_of_another_name_is_not_asked(authority: Authority):
    context = authority.server(x509.DNSName("elsewhere.example"))
    async with raw_server(Secured(), tls=context) as port, client_of(port, "localhost") as client:
        with pytest.raises(HttpError) as raised:
            await post(client)
    assert raised.value.fault is Fault.UNTRUSTED
    assert "its certificate is for another host name" in raised.value.words


async def test_a_server_of_an_unknown_authority_is_not_asked(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "other").mkdir()
    monkeypatch.setenv("SSL_CERT_FILE", str(Authority(tmp_path / "other").bundle))
    context = authority.server(LOCALHOST)
    async with raw_server(Secured(), tls=context) as port, client_of(port, "localhost") as client:
        with pytest.raises(HttpError) as raised:
            await post(client)
    assert raised.value.fault is Fault.UNTRUSTED
    assert "nobody known here has signed its certificate" in raised.value.words


async def test_a_server_without_tls_is_not_asked(authority: Authority):
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert b"POST" not in await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with raw_server(serve) as port, client_of(port, "localhost") as client:
        with pytest.raises(HttpError) as raised:
            await post(client)
    assert raised.value.fault is Fault.UNTRUSTED
    assert "does not speak TLS at this port; try http://" in raised.value.words


async def test_an_answer_that_is_cut_is_an_error_over_tls_too(authority: Authority):
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\npart")
        await writer.drain()

    context = authority.server(LOCALHOST)
    async with raw_server(serve, tls=context) as port, client_of(port, "localhost") as client:
        with pytest.raises(HttpError) as raised:
            await post(client)
    assert raised.value.fault is Fault.CUT_BODY


async def test_a_certificate_that_has_expired_is_said_to_have(authority: Authority):
    context = authority.server(LOCALHOST, until=timedelta(hours=-1))
    async with raw_server(Secured(), tls=context) as port, client_of(port, "localhost") as client:
        with pytest.raises(HttpError) as raised:
            await post(client)
    assert raised.value.words == "cannot be trusted: its certificate has expired"


async def test_a_server_that_speaks_tls_is_told_to_one_who_does_not(authority: Authority):
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_head(reader)
        writer.write(b"\x15\x03\x01\x00\x02\x02\x46")

    async with raw_server(serve) as port, client_of(port, "localhost", scheme="http") as client:
        with pytest.raises(HttpError) as raised:
            await post(client)
    assert raised.value.words == "speaks TLS at this port; try https:// in place of http://"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_server_that_asks_for_a_certificate_gets_it(authority: Authority, version: ssl.TLSVersion):
    context = authority.server(LOCALHOST)
    context.maximum_version = version
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(authority.bundle)
    mine = ClientCertificate(cert=str(authority.identity(x509.DNSName("me"))))
    async with raw_server(Secured(), tls=context) as port:
        async with client_of(port, "localhost", mine) as client:
            assert await post(client) == bytes(3_000_000)
        async with client_of(port, "localhost") as client:
            with pytest.raises(HttpError):
                await post(client)


def test_a_process_without_free_files_says_so_and_not_that_the_server_is_away():
    told = connect_error(OSError(errno.EMFILE, "Too many open files"))
    assert told is not None
    assert (told.fault, "ulimit -n" in told.words) == (Fault.NO_FILES, True)


@pytest.mark.parametrize("reason", ["TLSV13_ALERT_CERTIFICATE_REQUIRED", "SSLV3_ALERT_HANDSHAKE_FAILURE"])
def test_a_server_that_refuses_the_handshake_may_want_a_certificate(reason: str):
    alert = ssl.SSLError(1, "alert")
    alert.reason = reason
    told = connect_error(alert)
    assert told is not None
    assert (told.fault, "perhaps it asks for a client certificate" in told.words) == (Fault.UNTRUSTED, True)
