"""Where state lives, and that no password gets into an address that others read."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openba.errors import UserError
from openba.home import Home, without_credentials

NAMES = st.text("abcXYZ019-._~%:!$&", min_size=1)


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


@given(user=NAMES, password=NAMES, host=st.text("abc019.-", min_size=1), path=st.text("abc/@", max_size=5))
def test_nothing_of_user_and_password_is_left(user: str, password: str, host: str, path: str) -> None:
    told = f"no answer from http://{user}:{password}@{host}:5000/{path} after 2 tries"
    assert without_credentials(told) == f"no answer from http://{host}:5000/{path} after 2 tries"
    assert without_credentials(without_credentials(told)) == without_credentials(told)
