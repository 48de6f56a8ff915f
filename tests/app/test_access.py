"""Who may use a dashboard: loopback is open, any other address needs a login and roles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from app import access
from engine.errors import AccessError

OpenApp = Callable[..., AppTest]


@pytest.mark.parametrize("address", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback(address: str) -> None:
    assert access.is_loopback(address)


@pytest.mark.parametrize(
    "address", [None, "", "0.0.0.0", "::", "192.168.1.5", "example.org", "127.0.0.1.example.org"]
)
def test_everything_else_is_reached_by_others(address: str | None) -> None:
    assert not access.is_loopback(address)


class _User(dict[str, Any]):
    @property
    def is_logged_in(self) -> bool:
        return bool(self)


@pytest.fixture
def public(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A server that other machines reach, its secrets, and who looks at the page."""

    def on(secrets: dict[str, Any], email: str | None = None) -> None:
        monkeypatch.setattr(access.st, "get_option", lambda name: "0.0.0.0")
        monkeypatch.setattr(access, "_secrets", lambda: secrets)
        monkeypatch.setattr(access.st, "user", _User({} if email is None else {"email": email}))

    return on


def test_a_public_server_without_a_login_shows_nothing_of_the_study(
    planted: Path, open_app: OpenApp, public: Callable[..., None]
) -> None:
    public({})
    app = open_app(planted)
    text = " ".join(m.value for m in app.markdown)
    assert "listens for other machines, and nobody would have to log in" in text
    assert not app.dataframe
    assert not [b for b in app.button if b.key and b.key.startswith("run")]


def test_somebody_who_is_not_logged_in_gets_the_login_alone(
    planted: Path, open_app: OpenApp, public: Callable[..., None]
) -> None:
    public({"auth": {}})
    app = open_app(planted)
    assert [b.label for b in app.button] == ["Log in"]
    public({"auth": {}}, "ada@example.org")
    assert "Log in" not in [b.label for b in open_app(planted).button]


def test_roles(public: Callable[..., None]) -> None:
    secrets = {"auth": {}, "roles": {"run": ["ada@example.org"], "import": ["*"]}}
    public(secrets, "ada@example.org")
    assert access.may("run")
    public(secrets, "eve@example.org")
    assert access.may("import")
    with pytest.raises(
        AccessError,
        match=r"Starting or cancelling experiments or writing notes is not open.*eve@example\.org",
    ):
        access.require("run")
    public({"auth": {}}, "ada@example.org")
    assert not access.may("run")
