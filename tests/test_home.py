"""Where state lives, and that no password gets into an address that others read."""

from __future__ import annotations

from pathlib import Path

import pytest

from openba.errors import UserError
from openba.home import Home


@pytest.mark.parametrize(
    "url", ["s3://key:hidden@bucket/store", "sftp://me:hidden@host/store", "memory://hidden@x"]
)
def test_a_store_with_credentials_in_its_address_is_refused(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENBA_STORE", url)
    with pytest.raises(UserError, match=r"OPENBA_STORE=.*AWS_ACCESS_KEY_ID") as refused:
        _ = Home(tmp_path).store
    assert "hidden" not in str(refused.value)


@pytest.mark.parametrize("url", ["memory://bucket/store", "/a/folder@2x/store", "relative@home/store"])
def test_an_address_without_any_is_taken(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBA_STORE", url)
    assert Home(tmp_path).store.root == url
