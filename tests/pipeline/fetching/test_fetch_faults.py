"""Contents are complete in spite of faults, or the fetch fails with a reason."""

import datetime
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import fsspec
import numpy as np
import pytest

from mediamill.pipeline.fetching import content, transfer
from mediamill.pipeline.fetching.addresses import AddressRules
from mediamill.pipeline.fetching.budget import Reservation
from mediamill.pipeline.fetching.fetcher import Fetcher
from mediamill.pipeline.fetching.http_source import HttpClient
from mediamill.pipeline.stages.fetch import fetch
from mediamill.pipeline.storage import storage
from mediamill.schemas.errors import RowError
from tests.pipeline.fetching.rules import fetch_rules
from tests.servers.faulty_http import KINDS, faulty_http
from tests.servers.s3 import faulty_s3

SIZES = {"tiny": 10, "small": 5_000, "large": 300_000, "huge": 700_000}
RANGE = 64 * 1024


@pytest.fixture(autouse=True)
def _small_ranges(monkeypatch):
    """A few hundred kilobytes are fetched the way gigabytes would be."""
    monkeypatch.setattr(transfer, "RANGE_BYTES", RANGE)
    monkeypatch.setattr(content, "MEMORY_BYTES", 400_000)


@pytest.fixture(scope="module")
def files():
    rng = np.random.default_rng(7)
    return {name: rng.bytes(size) for name, size in SIZES.items()}


@pytest.fixture
def folder(tmp_path, files):
    folder = tmp_path / "site"
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def rules(**changes):
    settings = {"private_addresses": True, "tries": 12, "pause_s": 0.001, **changes}
    return fetch_rules(10**6, 60.0, "/", **settings)


@pytest.fixture(scope="module")
def s3_faults(files):
    """A bucket behind a faulty proxy, which this process's environment names."""
    with faulty_s3(seed=3, rate=0.0) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        fsspec.filesystem("s3").clear_instance_cache()
        fs = fsspec.filesystem("s3", use_listings_cache=False)
        fs.mkdir("faults")
        for name, data in files.items():
            fs.pipe_file(f"faults/{name}", data)
        yield server
    fsspec.filesystem("s3").clear_instance_cache()


@pytest.fixture
def s3_server(s3_faults):
    yield s3_faults
    s3_faults.faults.rate = 0.0


# Any faults


def test_http_contents_are_complete_in_spite_of_faults(folder, files):
    with faulty_http(folder, seed=1, rate=0.3) as site:
        fetcher = Fetcher(rules())
        for _ in range(12):
            for name, data in files.items():
                medium = fetcher.fetch(f"{site.url}/{name}", Reservation(fetcher.budget))
                received = medium.path.read_bytes() if medium.path else medium.data.tobytes()
                assert received == data
                del medium
    assert set(KINDS) <= set(site.faults.counts)
    assert fetcher.budget.held == 0


def test_s3_contents_are_complete_in_spite_of_faults(s3_server, files):
    s3_server.faults.rate = 0.3
    for _ in range(3):
        for name, data in files.items():
            assert fetch(f"s3://faults/{name}", rules()) == data
    assert s3_server.faults.total > 10


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("slow", "redirect")])
def test_a_server_that_never_recovers_is_an_error(folder, kind):
    """Wrong bytes are never returned, whatever the server does."""
    with faulty_http(folder, rate=1.0, kinds=[kind]) as site:
        if kind in ("short_range", "no_range", "understated"):  # not fatal
            assert fetch(f"{site.url}/large", rules()) == (folder / "large").read_bytes()
            return
        with pytest.raises(RowError) as error:
            fetch(f"{site.url}/tiny", rules(tries=3))
        assert error.value.code == "fetch_failed"
        assert site.requests <= 12


# Single faults


def test_an_interrupted_response_is_resumed(folder, files):
    with faulty_http(folder) as site:
        site.faults.plan("/small", ["cut"])
        assert fetch(f"{site.url}/small", rules()) == files["small"]
        first, second = (requested for _, requested in site.ranges)
    assert first == f"bytes=0-{RANGE - 1}"
    assert 0 < int(second.removeprefix("bytes=").partition("-")[0]) <= 2_500
    assert site.headers["/small"]["If-Range"].startswith('"')


def test_each_byte_is_requested_once(folder, files):
    with faulty_http(folder) as site:
        assert fetch(f"{site.url}/huge", rules()) == files["huge"]
        starts = sorted(
            int(header.removeprefix("bytes=").partition("-")[0]) for _, header in site.ranges
        )
    assert starts == list(range(0, SIZES["huge"], RANGE))


def test_ranges_of_one_file_are_fetched_in_parallel(folder, files):
    """The server delays each range until another one is requested too."""
    together = threading.Barrier(2, timeout=30)
    with faulty_http(folder) as site:
        site.hold = lambda path, requested: (
            requested and not requested.startswith("bytes=0-") and together.wait()
        )
        even = RANGE * 5  # the first, and two pairs
        (folder / "even").write_bytes(files["large"][:even])
        assert fetch(f"{site.url}/even", rules()) == files["large"][:even]


def test_a_file_that_changes_between_ranges_is_restarted(folder, files):
    with faulty_http(folder, digests=False) as site:
        site.faults.plan("/huge", [None, None, "changed"])
        assert fetch(f"{site.url}/huge", rules()) == files["huge"][::-1]


def test_a_file_that_always_changes_is_fetched_in_one_response(folder, files):
    with faulty_http(folder, rate=1.0, kinds=["changed"], digests=False) as site:
        assert fetch(f"{site.url}/huge", rules()) in (files["huge"], files["huge"][::-1])
        assert site.ranges[-1] == ("/huge", None)


def test_interim_responses_are_passed_over(folder, files):
    with faulty_http(folder) as site:
        site.hints = 7
        for name in files:
            assert fetch(f"{site.url}/{name}", rules()) == files[name]
        with pytest.raises(RowError, match="no such file"):
            fetch(f"{site.url}/missing", rules())


def test_a_server_without_lengths_or_ranges(folder, files):
    with faulty_http(folder) as site:
        site.answers["/plain"] = (
            200,
            {"Content-Length": None, "Connection": "close"},
            files["huge"],
        )
        assert fetch(f"{site.url}/plain", rules()) == files["huge"]
        site.answers["/plain"] = (
            200,
            {"Content-Length": None, "Connection": "close"},
            bytes(10**6 + 1),
        )
        with pytest.raises(RowError) as error:
            fetch(f"{site.url}/plain", rules())
        assert error.value.code == "fetch_too_large"


def test_retries_wait_as_long_as_retry_after(folder, monkeypatch):
    waited = []
    monkeypatch.setattr(transfer._Transfer, "_sleep", lambda self, seconds: waited.append(seconds))
    with faulty_http(folder, retry_after="3") as site:
        site.faults.plan("/tiny", ["503", "429", "500"])
        fetch(f"{site.url}/tiny", rules())
    assert [seconds >= 3 for seconds in waited] == [True, True, False]


def test_expired_credentials_are_renewed_once(s3_server, files):
    s3_server.faults.plan("/faults/small", ["expired"])
    assert fetch("s3://faults/small", rules()) == files["small"]
    s3_server.faults.plan("/faults/small", ["expired"] * 2)
    with pytest.raises(RowError) as error:
        fetch("s3://faults/small", rules())
    assert error.value.code == "fetch_denied"


def test_an_object_that_changes_between_ranges_is_restarted(s3_server, files):
    fs = fsspec.filesystem("s3", use_listings_cache=False)
    fs.pipe_file("faults/changing", files["huge"])

    def change(path, method):
        s3_server.hooks.clear()
        fs.pipe_file("faults/changing", files["huge"][::-1])

    s3_server.hooks["/faults/changing"] = [None, change]
    assert fetch("s3://faults/changing", rules()) == files["huge"][::-1]


def test_an_etag_that_is_no_checksum_costs_one_extra_transfer(s3_server, files):
    """With encryption or other vendors, an ETag may be 32 digits and no MD5."""
    s3_server.etag = f'"{"0" * 32}"'
    try:
        fetcher = Fetcher(rules())
        for _ in range(2):
            medium = fetcher.fetch("s3://faults/small", Reservation(fetcher.budget))
            assert medium.data.tobytes() == files["small"]
    finally:
        s3_server.etag = None
    assert fetcher._object_stores.distrusted == {"faults"}


def test_https_is_verified(folder, files, tmp_path, monkeypatch):
    certificate, context = _certificate(tmp_path, "good.test")
    with faulty_http(folder, context=context) as site:
        port = site.url.rpartition(":")[2]

        def client():
            return HttpClient(AddressRules(private=True), lambda name, port: ["127.0.0.1"])

        with pytest.raises(RowError, match="certificate is not valid"):
            fetch(f"https://good.test:{port}/small", rules(), client())
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert fetch(f"https://good.test:{port}/huge", rules(), client()) == files["huge"]
        with pytest.raises(RowError, match="certificate is not valid"):
            fetch(f"https://other.test:{port}/small", rules(), client())


def _certificate(folder, name):
    """The path of a certificate for `name`, and a server's context with it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    public = folder / "certificate.pem"
    public.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    both = folder / "both.pem"
    both.write_bytes(public.read_bytes() + private)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(both)
    return public, context


# Other stores, through the operations of every fsspec file system


def test_other_stores(monkeypatch, files):
    """A memory file system with the checksums and versions of Google's and Azure's."""
    import base64
    import hashlib

    from fsspec.implementations.memory import MemoryFileSystem

    class Store(MemoryFileSystem):
        protocol = "az"
        store: ClassVar = {}
        broken: ClassVar = []

        @classmethod
        def _strip_protocol(cls, path):
            return super()._strip_protocol(path.replace("az://", "memory://"))

        def info(self, path, **options):
            facts = super().info(path)
            data = self.store[facts["name"]].getvalue()
            digest = hashlib.md5(data, usedforsecurity=False).digest()
            return {**facts, "md5Hash": base64.b64encode(digest).decode()}

        def cat_file(self, path, start=None, end=None, **options):
            if self.broken:
                self.broken.pop()(self, path)
            return super().cat_file(path, start, end)

    def refuse(store, path):
        raise ConnectionResetError

    def change(store, path):
        store.pipe_file("/b/huge", files["huge"][::-1])

    fsspec.register_implementation("az", Store, clobber=True)
    try:
        store = Store()
        for name, data in files.items():
            store.pipe_file(f"/b/{name}", data)
        for name, data in files.items():
            Store.broken = [refuse, refuse]
            assert fetch(f"az://b/{name}", rules()) == data
        Store.broken = [change, refuse]
        assert fetch("az://b/huge", rules()) == files["huge"][::-1]
        with pytest.raises(RowError, match="no such file"):
            fetch("az://b/none", rules())
    finally:
        fsspec.register_implementation("az", "adlfs.AzureBlobFileSystem", clobber=True)


# The storage of manifests and results


@pytest.mark.parametrize("operation", ["put_if_absent", "put", "move", "remove", "list", "read"])
def test_storage_operations_survive_each_fault(s3_server, operation):
    root = storage.resolve(f"s3://faults/ops-{operation}")
    for kind in ("500", "503", "reset", "lost", "cut", "slow", "expired"):
        place, other = root / f"{kind}-1", root / f"{kind}-2"
        before = s3_server.faults.counts[kind]
        if operation not in ("put_if_absent", "put"):
            storage.put(place, b"content")
        s3_server.faults.plan(f"/faults/ops-{operation}/{kind}-1", [kind])
        s3_server.faults.plan(f"/faults/ops-{operation}/{kind}-2", [kind])
        if operation == "list":
            s3_server.faults.plan("/faults", [kind])
        if operation == "put_if_absent":
            assert storage.put_if_absent(place, b"mine")
            assert not storage.put_if_absent(place, b"another's")
            assert storage.read(place) == b"mine"
        elif operation == "put":
            storage.put(place, b"mine")
            assert storage.read(place) == b"mine"
        elif operation == "move":
            storage.move(place, other)
            assert storage.read(other) == b"content"
            assert not storage.exists(place)
        elif operation == "remove":
            storage.remove(place)
            assert not storage.exists(place)
        elif operation == "list":
            assert f"{kind}-1" in storage.list_files(root)
        else:
            assert storage.read(place) == b"content"
        assert s3_server.faults.counts[kind] > before


def test_of_many_writers_behind_faults_exactly_one_creates_the_file(s3_server):
    s3_server.faults.rate = 0.2
    contents = [f"writer {number}".encode() for number in range(6)]
    with ThreadPoolExecutor(6) as writers:
        for number in range(4):
            place = storage.resolve(f"s3://faults/writers/{number}")
            won = list(writers.map(storage.put_if_absent, [place] * 6, contents))
            winners = [data for new, data in zip(won, contents, strict=True) if new]
            assert winners == [storage.read(place)]
