"""Redirects, addresses and credentials: where a request may go, and what it may carry there."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miyabi_llm.errors import NetworkError, Unsafe
from miyabi_llm.sources.dial import Reach, proxy_for, reach
from miyabi_llm.sources.net import Credential, Hiccup, Session, Wire, shown
from tests.faultd import Fault, Faultd
from tests.sources.wires import Elsewhere, settings

TOKEN = "hf_canary_0123456789"


@pytest.fixture
def server() -> Iterator[Faultd]:
    with Faultd() as server:
        server.put("/f", b"here")
        yield server


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    with Session(settings(tmp_path), wire=Wire(stall=2, connect=2)) as session:
        yield session


def body(session: Session, url: str, credential: Credential | None = None) -> bytes:
    with session.open(url, credential=credential) as response:
        return response.read(1000)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1", Reach.LOOPBACK),
        ("127.9.9.9", Reach.LOOPBACK),
        ("::1", Reach.LOOPBACK),
        ("::ffff:127.0.0.1", Reach.LOOPBACK),
        ("10.0.0.1", Reach.PRIVATE),
        ("192.168.1.1", Reach.PRIVATE),
        ("100.64.0.1", Reach.PRIVATE),
        ("fd00::1", Reach.PRIVATE),
        ("64:ff9b::7f00:1", Reach.LOOPBACK),
        ("64:ff9b::a9fe:a9fe", Reach.NOWHERE),
        ("2002:7f00:1::", Reach.LOOPBACK),
        ("0.0.0.0", Reach.NOWHERE),
        ("::", Reach.NOWHERE),
        ("169.254.169.254", Reach.NOWHERE),
        ("::ffff:169.254.169.254", Reach.NOWHERE),
        ("fe80::1%eth0", Reach.NOWHERE),
        ("224.0.0.1", Reach.NOWHERE),
        ("255.255.255.255", Reach.NOWHERE),
        ("93.184.215.14", Reach.PUBLIC),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", Reach.PUBLIC),
        ("huggingface.co", Reach.NOWHERE),
    ],
)
def test_how_public_an_address_is(address: str, expected: Reach) -> None:
    assert reach(address) is expected


@given(st.ip_addresses())
def test_every_address_has_a_place(address: object) -> None:
    assert reach(str(address)) in Reach


@pytest.mark.parametrize(
    "target",
    [
        "http://0.0.0.0:{port}/f",
        "http://[::]:{port}/f",
        "http://169.254.169.254/latest/meta-data",
        "http://[::ffff:169.254.169.254]/",
        "http://[fe80::1]/",
        "http://10.0.0.1/f",
        "http://0/f",
        "http://user@127.0.0.1:{port}/f",
        "http://a:b@127.0.0.1:{port}/f",
        "file:///etc/passwd",
        "ftp://127.0.0.1/f",
        "gopher://127.0.0.1:{port}/_x",
    ],
)
def test_s27_redirects_inwards_or_to_other_schemes(server: Faultd, session: Session, target: str) -> None:
    server.always("/go", Fault(redirect=target.format(port=server.port)))
    with pytest.raises((Unsafe, NetworkError)):
        body(session, server.url + "/go")
    assert server.asked("/f") == []


def test_s27_loops_and_long_chains_end(server: Faultd, session: Session) -> None:
    server.always("/loop", Fault(redirect="/loop"))
    with pytest.raises(NetworkError, match="more than 5 redirects"):
        body(session, server.url + "/loop")
    assert len(server.requests) == 6
    for i in range(5):
        server.always(f"/{i}", Fault(redirect=f"/{i + 1}" if i < 4 else "/f", status=307))
    assert body(session, server.url + "/0") == b"here"


@pytest.mark.parametrize("location", ["", "http://[bad", "http://", "//", "http://127.0.0.1:99999/"])
def test_redirects_to_nowhere(server: Faultd, session: Session, location: str) -> None:
    server.always("/go", Fault(status=302, headers={"Location": location} if location else {}))
    with pytest.raises((Unsafe, NetworkError, Hiccup)):
        body(session, server.url + "/go")


def test_the_token_stays_with_its_origin(server: Faultd, session: Session) -> None:
    with Faultd() as other:
        other.put("/f", b"there")
        other.always("/back", Fault(redirect=server.url + "/f"))
        server.always("/same", Fault(redirect="/f"))
        server.always("/away", Fault(redirect=other.url + "/f"))
        server.always("/round", Fault(redirect=other.url + "/back"))
        mine = Credential.bearer(server.url, TOKEN)
        assert body(session, server.url + "/same", mine) == b"here"
        assert [r.headers.get("authorization") for r in server.requests] == [f"Bearer {TOKEN}"] * 2
        assert body(session, server.url + "/away", mine) == b"there"
        server.requests.clear()
        assert body(session, server.url + "/round", mine) == b"here"
        assert "authorization" in server.requests[0].headers
        assert "authorization" not in server.requests[1].headers  # once it left, it is gone
        assert not any("authorization" in r.headers for r in other.requests)
        assert body(session, other.url + "/f", mine) == b"there"
        assert not any("authorization" in r.headers for r in other.requests)


def test_a_token_shows_in_no_text() -> None:
    credential = Credential.bearer("https://huggingface.co", TOKEN)
    assert TOKEN not in repr(credential)
    assert shown(httpx.URL(f"https://cdn/x.gguf?sig={TOKEN}#y")) == "https://cdn/x.gguf"


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate for the story names, made for this run."""
    if not shutil.which("openssl"):
        pytest.skip("the openssl program makes the certificate of this test and is not here")
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    names = "subjectAltName=DNS:public.example,DNS:inward.example,DNS:lan.example,IP:127.0.0.1"
    subprocess.run(
        [
            *[
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
                "-days",
                "2",
            ],
            *("-subj", "/CN=public.example", "-addext", names, "-keyout", str(path), "-out", f"{path}.crt"),
        ],
        check=True,
        capture_output=True,
    )
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())
    return path


Stories = dict[str, list[str]]


class Far:
    """An https server that public names lead to, as a resolver of stories says."""

    def __init__(self, certificate: Path, tmp_path: Path) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        self.certificate = certificate
        self.server = Faultd(tls=context)
        self.stories: Stories = {"public.example": ["93.184.215.14"], "127.0.0.1": ["127.0.0.1"]}
        self.asked: list[str] = []
        self.wires = Elsewhere()
        trust = ssl.create_default_context(cafile=str(certificate))
        wire = Wire(stall=2, connect=2, resolve=self.resolve, backend=self.wires, tls=trust)
        self.settings = settings(tmp_path)
        self.open: Callable[[], Session] = lambda: Session(self.settings, wire=wire)

    def resolve(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        return self.stories[host]

    def url(self, host: str, path: str) -> str:
        return f"https://{host}:{self.server.port}{path}"


@pytest.fixture
def far(certificate: Path, tmp_path: Path) -> Iterator[Far]:
    far = Far(certificate, tmp_path)
    with far.server as server:
        server.put("/f", b"secret of the house")
        yield far


def test_a_public_place_may_not_send_us_inwards(far: Far) -> None:
    """The redirect goes by name, by address, and to a name with one public and one inner address."""
    for story in (["10.1.2.3"], ["127.0.0.1"], ["169.254.169.254"], ["93.184.215.14", "127.0.0.1"]):
        far.stories["inward.example"] = story
        far.server.always("/go", Fault(redirect=far.url("inward.example", "/f")))
        with far.open() as session, pytest.raises(Unsafe):
            body(session, far.url("public.example", "/go"))
    far.server.always("/go", Fault(redirect=far.url("127.0.0.1", "/f")))
    with far.open() as session, pytest.raises(Unsafe):
        body(session, far.url("public.example", "/go"))
    assert far.server.asked("/f") == []
    assert set(far.wires.dialled) == {"93.184.215.14"}


def test_a_private_mirror_that_the_user_named_is_fine_but_not_further_in(far: Far) -> None:
    far.stories["lan.example"] = ["192.168.7.7"]
    far.stories["inward.example"] = ["127.0.0.1"]
    with far.open() as session:
        assert body(session, far.url("lan.example", "/f")).startswith(b"secret")
        far.server.always("/out", Fault(redirect=far.url("public.example", "/f")))
        assert body(session, far.url("lan.example", "/out")).startswith(b"secret")
        far.server.always("/in", Fault(redirect=far.url("inward.example", "/f")))
        with pytest.raises(Unsafe):
            body(session, far.url("lan.example", "/in"))


def test_rebinding_every_connection_is_judged_by_the_addresses_it_uses(far: Far) -> None:
    """A name that is public at first and inside a moment later: the hop resolves again and is judged again."""
    answers = iter([["93.184.215.14"], ["127.0.0.1"]])
    tls = ssl.create_default_context(cafile=str(far.certificate))
    wire = Wire(stall=2, connect=2, resolve=lambda host, port: next(answers), backend=far.wires, tls=tls)
    far.server.always("/go", Fault(redirect=far.url("public.example", "/f")))
    with Session(far.settings, wire=wire) as session, pytest.raises(Unsafe):
        body(session, far.url("public.example", "/go"))
    assert far.wires.dialled == ["93.184.215.14"]


def test_no_way_down_from_https(far: Far) -> None:
    with Faultd() as plain:
        plain.put("/f", b"plain")
        far.server.always("/go", Fault(redirect=plain.url + "/f"))
        with far.open() as session, pytest.raises(Unsafe, match="from https to http"):
            body(session, far.url("public.example", "/go"))
        assert plain.requests == []


def test_plain_http_only_on_this_machine(far: Far, tmp_path: Path) -> None:
    wire = Wire(resolve=lambda h, p: ["93.184.215.14"], backend=far.wires)
    with Session(settings(tmp_path), wire=wire) as session, pytest.raises(Unsafe, match="only https"):
        body(session, "http://public.example/f")
    assert far.wires.dialled == []


def test_an_untrusted_certificate_is_not_tried_again(far: Far, tmp_path: Path) -> None:
    wire = Wire(stall=2, resolve=far.resolve, backend=far.wires)
    with Session(settings(tmp_path), wire=wire) as session, pytest.raises(NetworkError, match="certificate") as e:
        body(session, far.url("public.example", "/f"))
    assert "SSL_CERT_FILE" in (e.value.hint or "")


@pytest.mark.parametrize(
    ("url", "env", "expected"),
    [
        ("https://hub.example/f", {}, None),
        ("https://hub.example/f", {"HTTPS_PROXY": "http://proxy:3128"}, "http://proxy:3128"),
        ("https://hub.example/f", {"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "x, .example"}, None),
        ("https://hub.example/f", {"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "*"}, None),
        ("https://notexample/f", {"https_proxy": "http://proxy:3128", "no_proxy": "example"}, "http://proxy:3128"),
        ("https://127.0.0.1/f", {"HTTPS_PROXY": "http://proxy:3128"}, None),
        ("http://localhost/f", {"ALL_PROXY": "http://proxy:3128"}, None),
        ("https://hub.example/f", {"ALL_PROXY": "socks5://proxy:1080"}, None),
    ],
)
def test_which_proxy(url: str, env: dict[str, str], expected: str | None) -> None:
    assert proxy_for(httpx.URL(url), env) == expected


def test_a_body_has_a_limit(server: Faultd, session: Session) -> None:
    server.put("/big", bytes(5000))
    with pytest.raises(NetworkError, match="longer than 1000"):
        body(session, server.url + "/big")
