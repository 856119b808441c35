"""Modules over the network: encrypted, checked, kept in private; on a server of this machine with a
certificate of its own."""

import functools
import hashlib
import http.server
import os
import shutil
import socket
import ssl
import stat
import subprocess
import threading
import time

import pytest
import tiny_modules

from tfssl.errors import UserError
from tfssl.hub import handles, remote
from tfssl.hub import load as modules


@pytest.fixture(scope="module")
def server(modules_dir, tmp_path_factory):
    """(https address of a folder, that folder, paths that were asked for)."""
    if not shutil.which("openssl"):
        pytest.skip("no openssl, which makes the server's certificate")
    folder, keys = tmp_path_factory.mktemp("served"), tmp_path_factory.mktemp("keys")
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext "
        "subjectAltName=DNS:localhost"
    )
    subprocess.run(
        [*command.split(), "-keyout", keys / "key", "-out", keys / "cert"],
        check=True,
        capture_output=True,
    )
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            if self.path.startswith("/redirect"):
                self.send_response(302)
                self.send_header("Location", self.path.partition("?to=")[2])
                self.end_headers()
            elif self.path.startswith("/short"):
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b"x" * 10)
                self.close_connection = True
            elif self.path.startswith("/hub/1"):  # TensorFlow Hub's protocol
                self.path = (
                    "/module.tar.gz" if "tf-hub-format=compressed" in self.path else "/page.html"
                )
                super().do_GET()
            else:
                super().do_GET()

        def log_message(self, *args):
            pass

    tiny_modules.pack(modules_dir / "ours" / "1", folder / "module.tar.gz")
    (folder / "page.tar.gz").write_text("<html>sign in</html>")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(keys / "cert", keys / "key")
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))
    ) as https:
        https.socket = context.wrap_socket(https.socket, server_side=True)
        threading.Thread(target=https.serve_forever, daemon=True).start()
        yield f"https://localhost:{https.server_address[1]}", folder, asked, keys / "cert"
        https.shutdown()


@pytest.fixture
def site(server, tmp_path, monkeypatch):
    """(address, folder, paths asked for, where archives are kept), with a certificate that is
    trusted, and nothing kept."""
    address, folder, asked, certificate = server
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("TFSSL_CACHE", str(tmp_path / "cache"))
    asked.clear()
    return address, folder, asked, tmp_path / "cache" / "modules"


def digest_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_an_archive_is_fetched_once_and_kept_in_private(site):
    address, folder, asked, kept = site
    module = modules.load(f"{address}/module.tar.gz")
    assert module.sizes() == (16, 20)
    modules.load(f"{address}/module.tar.gz")
    assert asked == ["/module.tar.gz"]
    assert stat.S_IMODE(kept.stat().st_mode) == 0o700
    (file,) = kept.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert (
        file.name.endswith(f"-{digest_of(folder / 'module.tar.gz')}.tgz")
        and digest_of(file) in file.name
    )
    # Damaged, it is fetched again; what a killed process left goes after a day.
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    (kept / "old.part").touch()
    os.utime(kept / "old.part", (0, 0))
    (kept / "young.part").touch()
    modules.load(f"{address}/module.tar.gz")
    assert len(asked) == 2 and {p.name for p in kept.iterdir()} == {file.name, "young.part"}


def test_a_handle_of_the_hub(site):
    address, _, asked, _ = site
    assert modules.load(f"{address}/hub/1").sizes() == (16, 20)
    assert asked == ["/hub/1?tf-hub-format=compressed"]


def test_a_digest_is_demanded(site):
    address, folder, asked, kept = site
    right = digest_of(folder / "module.tar.gz")
    handle = f"{address}/module.tar.gz#sha256={right.upper()}"
    assert list(handles.named([f"a={handle}", handle])) == ["a", "module"]
    assert modules.load(handle).sizes() == (16, 20)
    with pytest.raises(UserError, match=f"another digest, sha256={right}"):
        modules.load(f"{address}/module.tar.gz#sha256={'0' * 64}")
    with pytest.raises(UserError, match="64 hexadecimal digits"):
        modules.load(f"{address}/module.tar.gz#sha256=12")
    assert len(asked) == 2 and len(list(kept.iterdir())) == 1


def test_what_is_not_encrypted_is_refused_with_a_remedy(site):
    address, _, asked, _ = site
    plain = address.replace("https", "http")
    with pytest.raises(UserError, match="http:// is not encrypted.*Use https://"):
        modules.load(f"{plain}/module.tar.gz")
    assert asked == []
    with pytest.raises(UserError, match=f"redirects to {plain}.*, which is not encrypted"):
        modules.load(f"{address}/redirect.tar.gz?to={plain}/module.tar.gz")
    assert modules.load(f"{address}/redirect.tar.gz?to={address}/module.tar.gz").sizes() == (16, 20)


@pytest.mark.parametrize(
    "path, reason",
    [
        ("absent.tar.gz", "404"),
        ("page.tar.gz", "is no archive"),
        ("short.tar.gz", "ended after 10 of 1000 bytes"),
    ],
)
def test_what_does_not_come_whole(site, path, reason):
    address, _, _, kept = site
    with pytest.raises(UserError, match=reason) as raised:
        modules.load(f"{address}/{path}")
    assert (
        address in str(raised.value) and "\n" not in str(raised.value) and not list(kept.iterdir())
    )


def test_a_stranger_certificate_and_a_bad_address(site, monkeypatch):
    address = site[0]
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(UserError, match="cannot be downloaded.*certificate"):
        modules.load(f"{address}/module.tar.gz")
    for bad in ("https://", "https://[", "https://localhost:99999/m.tar.gz", "https:///m.tar.gz"):
        with pytest.raises(UserError, match="cannot be downloaded"):
            modules.load(bad)


def test_a_server_that_is_silent(tmp_path, monkeypatch):
    monkeypatch.setenv("TFSSL_CACHE", str(tmp_path))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(remote, "TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begun = time.monotonic()
        with pytest.raises(UserError, match="timed out"):
            modules.load(f"https://127.0.0.1:{silent.getsockname()[1]}/m.tar.gz")
    assert time.monotonic() - begun < 10


def test_a_folder_of_somebody_else(site, monkeypatch):
    address, _, asked, kept = site
    kept.mkdir(parents=True, mode=0o777)
    kept.chmod(0o777)
    modules.load(f"{address}/module.tar.gz")
    assert stat.S_IMODE(kept.stat().st_mode) == 0o700
    monkeypatch.setattr(os, "getuid", lambda: kept.stat().st_uid + 1)
    with pytest.raises(UserError, match="belongs to another user.*TFSSL_CACHE"):
        modules.load(f"{address}/module.tar.gz")
    monkeypatch.setenv("TFSSL_CACHE", "/proc/no/such")
    with pytest.raises(UserError, match="cannot be downloaded.*/proc/no"):
        modules.load(f"{address}/module.tar.gz")
