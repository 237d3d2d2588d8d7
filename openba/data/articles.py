"""Extract the article of a web page with trafilatura, without navigation, advertising and comments."""

from __future__ import annotations

from openba.errors import UserError


def article(html: str) -> str | None:
    """Return the main text of a page; None if there is none.

    Raises:
        UserError: trafilatura is not installed.
    """
    try:
        from trafilatura import extract
    except ImportError:
        raise UserError("extract: trafilatura is not installed; run pip install 'openba[web]'") from None
    # Not the fast mode: the fallbacks cost time only on pages where the first attempt finds little.
    return extract(html, include_comments=False)
