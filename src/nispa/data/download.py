"""Downloads through pooch: resumable, limited in size, and verified before use."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nispa.data.catalog import Remote
from nispa.data.dataset import Progress
from nispa.errors import DataError, either, needs

CONNECT_S = 10.0
READ_S = 30.0
CHUNK_BYTES = 1 << 18


def cache_folder() -> Path:
    """The folder for downloads: ``$NISPA_CACHE``, or the system's cache.

    Raises:
        MissingPackageError: Neither is known.
    """
    if named := os.environ.get("NISPA_CACHE"):
        return Path(named)
    with needs("data", "finding downloaded data"):
        import pooch
    return Path(pooch.os_cache("nispa"))


def fetch(
    remotes: Sequence[Remote],
    folder: Path,
    *,
    progress: Progress | None = None,
    timeout_s: tuple[float, float] = (CONNECT_S, READ_S),
) -> None:
    """Downloads missing files of ``remotes`` into ``folder``, trying each address in turn.

    An interrupted download continues where it stopped, in this call or a later one.

    Args:
        remotes: The files.
        folder: Where to put them; it is created if missing.
        progress: Called with the file's name, bytes done and total bytes.
        timeout_s: Seconds to wait for a connection, and for the next bytes.

    Raises:
        DataError: No address gave a file with the right checksum.
    """
    for remote in remotes:
        reasons: list[str] = []
        for url in remote.urls:
            try:
                _fetch_one(remote, url, folder, progress, timeout_s)
                break
            except DataError as error:
                reasons.append(f"{url}: {error}")
        else:
            part = folder / f"{remote.file}.part"
            kept = (
                f"; {part.stat().st_size} bytes are kept, run again to go on from there"
                if part.exists()
                else ""
            )
            raise DataError(
                f"{remote.file} could not be downloaded ({'; '.join(reasons)}){kept}. Without a "
                "network place the files in a folder and pass it as "
                f"{either('folder=DIR', '--data DIR')}"
            )


def _fetch_one(
    remote: Remote,
    url: str,
    folder: Path,
    progress: Progress | None,
    timeout_s: tuple[float, float],
) -> None:
    """Downloads one file from one address; pooch verifies it and moves it into place."""
    with needs("data", "downloading data"):
        import pooch
    downloader = Resuming(
        folder / f"{remote.file}.part", remote.most_bytes, progress=progress, timeout_s=timeout_s
    )
    try:
        with _quiet(pooch.get_logger()):
            pooch.retrieve(
                url,
                known_hash=f"md5:{remote.md5}",
                fname=remote.file,
                path=folder,
                downloader=downloader,
            )
    except DataError:
        raise
    except ValueError:  # from pooch: the hash is wrong, and it has removed the file
        raise DataError("wrong checksum, the file was removed") from None
    except OSError as error:
        raise DataError(f"{folder} cannot be written ({error.strerror or error})") from None


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """Silences pooch's messages, since ``progress`` reports instead."""
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class Resuming:
    """A downloader for pooch that keeps partial content in ``NAME.part`` and resumes from it."""

    def __init__(
        self,
        part: Path,
        most_bytes: int,
        *,
        progress: Progress | None = None,
        timeout_s: tuple[float, float] = (CONNECT_S, READ_S),
    ) -> None:
        self._part = part
        self._most = most_bytes
        self._progress = progress
        self._timeout_s = timeout_s

    def __call__(
        self, url: str, output_file: Any, pooch: Any, check_only: bool | None = False
    ) -> bool | None:
        """Downloads ``url`` and moves it to ``output_file``, whole.

        Raises:
            DataError: The server does not have it, or the connection broke; partial data is kept.
        """
        with needs("data", "downloading data"):
            import requests
            import urllib3
        try:
            self._download(url)
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise DataError(_reason(error)) from None
        shutil.move(self._part, output_file)
        return None

    def _download(self, url: str) -> None:
        with needs("data", "downloading data"):
            import requests
        there = os.path.lexists(self._part)
        if there and (self._part.is_symlink() or not self._part.is_file()):
            raise DataError(f"{self._part} is a link, or no regular file; delete it")
        have = self._part.stat().st_size if there else 0
        # Ask for the bytes unchanged: some servers would otherwise unpack .gz files on the way.
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        with requests.get(url, headers=headers, stream=True, timeout=self._timeout_s) as answer:
            if answer.status_code == 416 and have:
                self._part.unlink()  # the part is longer than the file: start again
                return self._download(url)
            if answer.status_code not in (200, 206):
                raise DataError(f"the server answered {answer.status_code}")
            length = answer.headers.get("Content-Length", "")
            total = int(length) if re.fullmatch("[0-9]{1,18}", length) else 0  # 0: not known
            if answer.status_code == 206:
                match = re.fullmatch(
                    r"bytes ([0-9]{1,18})-[0-9]+/([0-9]{1,18}|\*)",
                    answer.headers.get("Content-Range", ""),
                )
                if not match or int(match[1]) != have:
                    self._part.unlink(missing_ok=True)
                    raise DataError("the server sent another part than was asked for")
                total = int(match[2]) if match[2] != "*" else have + total
            else:
                have = 0  # the server ignores ranges and sends the file from its start
            if total > self._most:
                raise DataError(f"{total} bytes are more than the {self._most} expected")
            with self._part.open("ab" if have else "wb") as file:
                for chunk in answer.raw.stream(CHUNK_BYTES, decode_content=False):
                    have += len(chunk)
                    if have > self._most:
                        break
                    file.write(chunk)
                    if self._progress:
                        self._progress(self._part.stem, have, total)
        if have > self._most:
            self._part.unlink()
            raise DataError(f"more than the {self._most} bytes expected")
        if have < total:
            raise DataError(f"the connection was cut after {have} of {total} bytes")
        return None


def _reason(error: Exception) -> str:
    """A network error in plain words."""
    text = str(error)
    if "imed out" in text:
        return "timed out"
    if "IncompleteRead" in text or "Connection broken" in text:
        return "the connection was cut"
    if "NameResolution" in text or "getaddrinfo" in text:
        return "the address cannot be found (no network?)"
    if "refused" in text:
        return "the connection was refused"
    return f"no connection ({type(error).__name__})"
