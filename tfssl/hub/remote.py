"""Modules at https addresses: downloaded once, verified, and cached in the user's folder."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from typing import IO

from tfssl.errors import UserError, one_line
from tfssl.storage import caches as cache
from tfssl.storage import files

TIMEOUT = 30.0  # seconds without a response, or without a byte of it
_ARCHIVES = (".tar.gz", ".tgz", ".tar")


def fetch(handle: str) -> str:
    """The local archive of a module at an https address, downloaded unless it is cached.

    It is cached as CACHE/modules/ADDRESS-CONTENT.tgz (SHA-256 digests, that of the address
    truncated), where CACHE is the environment's TFSSL_CACHE or ~/.cache/tfssl. The folder is
    accessible to the user only; a cached file whose content does not match its name is downloaded
    again.

    Args:
      handle: https://HOST/PATH of an archive (.tar.gz, .tgz, .tar), or a handle of TensorFlow Hub's
        protocol, whose server makes one (requested by ?tf-hub-format=compressed); with #sha256=HEX
        at its end, of that content only.

    Raises:
      UserError: the address is not https, now or after a redirection; there is no response in
        TIMEOUT seconds; the response is no archive, incomplete or of another digest; the folder
        cannot be written, or belongs to another user.
    """
    address, _, fragment = handle.partition("#")
    digest = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)
    if fragment and not digest:
        raise UserError(
            f"module {handle!r}: after # there may stand sha256= and 64 hexadecimal digits"
        )
    sha256 = digest[1].lower() if digest else None
    if not address.startswith("https://"):
        raise UserError(
            f"module {handle!r}: http:// is not encrypted: anybody on the way can put another "
            "program in its place. Use https://, or "
            "download it yourself, check it, and give the file"
        )
    try:
        folder = _private_folder()
        path = _kept(folder, address, sha256)
        return path or _download(handle, address, sha256, folder)
    except (OSError, http.client.HTTPException, ValueError) as e:
        if isinstance(e, UserError):
            raise
        raise UserError(
            f"module {handle!r} cannot be downloaded: {one_line(e) or type(e).__name__}"
        ) from e


def _private_folder() -> str:
    folder = os.path.join(cache.cache_dir(), "modules")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    if hasattr(os, "getuid") and os.stat(folder).st_uid != os.getuid():
        raise UserError(
            f"{folder} belongs to another user, who could put programs there: set TFSSL_CACHE to a "
            "folder of your own"
        )
    os.chmod(folder, 0o700)
    return folder


def _key(address: str) -> str:
    return hashlib.sha256(address.encode()).hexdigest()[:16]


def _kept(folder: str, address: str, sha256: str | None) -> str | None:
    """The newest undamaged archive of an address, with digest `sha256` if given; None: there is
    none."""
    paths = [os.path.join(folder, name) for name in files.listdir(folder)]
    for path in sorted(paths, key=_modified, reverse=True):
        name = re.fullmatch(_key(address) + r"-([0-9a-f]{64})\.tgz", os.path.basename(path))
        if name and sha256 in (None, name[1]):
            with open(path, "rb") as f:
                if _copy(f)[1] == name[1]:
                    return path
        elif path.endswith(".part") and _modified(path) < time.time() - 86_400:
            files.remove(path)  # of a process that was killed
    return None


def _modified(path: str) -> float:
    try:
        return os.path.getmtime(path)
    except FileNotFoundError:  # another process has finished its own
        return 0.0


def _download(handle: str, address: str, sha256: str | None, folder: str) -> str:
    url = address
    if not address.partition("?")[0].endswith(_ARCHIVES):
        url += ("&" if "?" in address else "?") + "tf-hub-format=compressed"
    descriptor, unfinished = tempfile.mkstemp(".part", dir=folder)
    try:
        with os.fdopen(descriptor, "wb") as f, _open(url) as response:
            size, digest = _copy(response, f)
            announced = response.headers.get("Content-Length")
            f.flush()
            os.fsync(f.fileno())
        if announced and int(announced) != size:
            raise UserError(
                f"module {handle!r}: the download ended after {size} of {announced} bytes; try "
                "again"
            )
        if sha256 and sha256 != digest:
            raise UserError(
                f"module {handle!r}: what came has another digest, sha256={digest}: it was "
                "changed, or damaged on the way"
            )
        if not tarfile.is_tarfile(unfinished):
            raise UserError(
                f"module {handle!r}: what came is no archive (.tar.gz, .tgz, .tar), but a file of "
                f"{size} bytes"
            )
        path = os.path.join(folder, f"{_key(address)}-{digest}.tgz")
        os.replace(unfinished, path)
        files.sync(folder)
        return path
    except BaseException:
        files.remove(unfinished)
        raise


def _open(address: str) -> http.client.HTTPResponse:
    """The server's response, for `with`."""
    return urllib.request.build_opener(_EncryptedOnly()).open(address, timeout=TIMEOUT)


class _EncryptedOnly(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self,
        request: urllib.request.Request,
        response: IO[bytes],
        code: int,
        message: str,
        headers: http.client.HTTPMessage,
        address: str,
    ) -> urllib.request.Request | None:
        if not address.startswith("https://"):
            raise urllib.error.URLError(
                f"the server redirects to {address}, which is not encrypted"
            )
        return super().redirect_request(request, response, code, message, headers, address)


def _copy(source: IO[bytes], target: IO[bytes] | None = None) -> tuple[int, str]:
    """Copy a file to `target`, if given: (bytes, SHA-256 in hexadecimal)."""
    digest, size = hashlib.sha256(), 0
    while block := source.read(1 << 20):
        digest.update(block)
        size += len(block)
        if target:
            target.write(block)
    return size, digest.hexdigest()
