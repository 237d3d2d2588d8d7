"""Read web pages of WARC archives, and the plain text of WET archives, as Common Crawl publishes them.

warcio reads the archives, one gzip member per record; bs4 finds a page's encoding by its headers and content.
Requests, metadata and everything that is neither HTML nor plain text are skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from openba.data import files, opening
from openba.data.quarantine import Unreadable, UnreadableHandler
from openba.errors import UserError

_DOCUMENTS = ("response", "resource", "conversion")
_HTML = ("text/html", "application/xhtml+xml")


def records(
    path: Path, on_unreadable: UnreadableHandler, encoding: str = "utf-8"
) -> Iterator[tuple[int, files.Fields]]:
    """Yield (row, record) of an archive, rows counted from 1 over all of its records.

    A record has `url`, `date`, `content_type` and `text`, a page's HTML or plain text. Each page states its
    own encoding, so `encoding` is not used. An archive is unreadable from its first damaged record on.

    Raises:
        UserError: warcio is not installed.
    """
    try:
        from warcio.archiveiterator import ArchiveIterator
        from warcio.exceptions import ArchiveLoadFailed
    except ImportError:
        raise UserError("adapter warc: warcio is not installed; run pip install 'openba[web]'") from None
    row_number = 0
    reason = ""
    # warcio decompresses gzip itself, since every record is a separate member.
    is_gzip = opening.compression(path) in (None, "gzip")
    try:
        reason = "" if _is_complete(path) else "cut off"
        with path.open("rb") if is_gzip else opening.decompressed(path) as archive_file:
            for row_number, record in enumerate(ArchiveIterator(archive_file), 1):
                content_type = _content_type(record)
                payload = record.content_stream().read()
                if record.raw_stream.limit > 0:  # bytes that its header states and the file lacks
                    break
                if record.rec_type in _DOCUMENTS and content_type in (*_HTML, "text/plain"):
                    yield (
                        row_number,
                        {
                            "url": record.rec_headers.get_header("WARC-Target-URI") or "",
                            "date": record.rec_headers.get_header("WARC-Date") or "",
                            "content_type": content_type,
                            "text": _text(payload, content_type, _charset(record)),
                        },
                    )
    except (ArchiveLoadFailed, EOFError, *opening.BROKEN) as error:
        reason = files.one_line(error)
    if reason:
        on_unreadable(
            Unreadable(
                str(path), row_number, f"the archive is damaged from here on ({reason}); download it again"
            )
        )


def _is_complete(path: Path) -> bool:
    """Return whether an archive ends with the end of a record; warcio does not notice a truncated one."""
    last_bytes = b""
    try:
        with opening.decompressed(path) as archive_file:
            while chunk := archive_file.read(2**20):
                last_bytes = (last_bytes + chunk)[-4:]
    except EOFError:
        return False
    return last_bytes == b"\r\n\r\n"


def _header(record: object) -> str:
    """Return the content type of a record: HTTP's for a response, else the record's own."""
    headers = getattr(record, "http_headers", None) or getattr(record, "rec_headers", None)
    return (headers.get_header("Content-Type") if headers else None) or ""


def _content_type(record: object) -> str:
    return _header(record).partition(";")[0].strip().lower()


def _charset(record: object) -> str | None:
    parameters = _header(record).partition("charset=")
    return parameters[2].strip().strip("\"'").lower() or None


def _text(payload: bytes, content_type: str, charset: str | None) -> str:
    if content_type == "text/plain" and charset is None:
        return payload.decode("utf-8", "replace")
    from bs4.dammit import UnicodeDammit

    return UnicodeDammit(payload, [charset] if charset else [], is_html=True).unicode_markup or ""
