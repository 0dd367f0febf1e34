"""Files from the web: progress, resumed where they were cut off, one line for whatever goes wrong."""

import errno
import http.client
import re
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from tqdm import tqdm

from utils.core.errors import UserError
from utils.core.files import make_folder

CHUNK = 1 << 18  # bytes
PATIENCE = 30  # seconds without a byte
RETRIES = 3  # in a row that bring nothing new


def download(url: str, part: Path) -> None:
    """Fetch `url` into `part`, going on behind what is there already, however often the connection breaks.

    Raises UserError when the server hasn't got the file, or can't be reached; what has arrived stays in `part`.
    """
    make_folder(part.parent)
    best, fruitless = _size(part), 0
    while True:
        try:
            if _receive(url, part):
                return
            reason = "the connection broke off"
        except urllib.error.HTTPError as error:
            raise UserError.at(url, f"the server answers {error.code} {error.reason}") from None
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, PermissionError) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                raise UserError.at(part, f"cannot be written ({getattr(error, 'strerror', error)})") from None
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        fruitless = 0 if _size(part) > best else fruitless + 1
        best = max(best, _size(part))
        if fruitless == (RETRIES if best else 1):
            raise UserError(_unreachable(url, part, reason))


def _receive(url: str, part: Path) -> bool:
    """One request; True when `part` is complete. Asks for the rest only, which servers may ignore."""
    have = _size(part)
    headers = {"User-Agent": "darkedge"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=PATIENCE)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        if error.headers.get("Content-Range", "").endswith(f"/{have}"):
            return True  # nothing is left to send
        part.unlink()  # longer than the file itself: another file's
        return False
    with response:
        goes_on = response.status == 206 and re.match(rf"bytes {have}-", response.headers.get("Content-Range", ""))
        start = have if goes_on else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        bar = tqdm(total=total, initial=start, desc=Path(url).name, unit="B", unit_scale=True, leave=False, disable=None)
        with bar, open(part, "ab" if goes_on else "wb") as file:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    return total is None or _size(part) == total


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _unreachable(url: str, part: Path, reason: str) -> str:
    host = urllib.parse.urlsplit(url).hostname
    kept = f" ({_size(part) / 1e6:.1f} MB are kept: the same command goes on from there)" if _size(part) else ""
    return f"{url}: no connection to {host}: {reason}; check the network, or its proxy in https_proxy{kept}"
