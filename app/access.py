"""Who may use a dashboard that other machines reach.

On a loopback address everybody who can open the page works on this machine and may do everything. Any other
address is refused unless Streamlit's own login (OIDC, `[auth]` in secrets.toml) is set up; then people log
in, and `[roles]` in the same file says who may do more than look:

    [roles]
    run = ["ada@example.org"]     # start and cancel experiments
    import = ["*"]                # save, delete and bring in maps; "*" is everybody who is logged in
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any, Literal

import streamlit as st
from streamlit.errors import StreamlitSecretNotFoundError

from app import screen
from engine.errors import AccessError

__all__ = ["admit", "is_loopback", "may", "require"]

Role = Literal["run", "import"]
DOING: dict[Role, str] = {
    "run": "Starting or cancelling experiments or writing notes",
    "import": "Saving, deleting and bringing in maps",
}


def is_loopback(address: str | None) -> bool:
    """Whether only this machine reaches a server that listens on an address; None is every interface."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address or "").is_loopback
    except ValueError:
        return False


def admit() -> bool:
    """Whether the page may be drawn: on loopback, or for somebody who is logged in; else offers the login.

    Raises:
        AccessError: the server listens for other machines, and nobody would have to log in.
    """
    if is_loopback(st.get_option("server.address")):
        return True
    if "auth" not in _secrets():
        raise AccessError(
            "This dashboard listens for other machines, and nobody would have to log in.",
            expected="a loopback address, or a login ([auth] in .streamlit/secrets.toml)",
            given=f"server.address = {st.get_option('server.address')}",
            next_step="leave --server.address out and forward the port (ssh -L), or set up the login.",
        )
    if st.user.is_logged_in:
        return True
    screen.title("Patchbay")
    screen.button("Log in", on_click=st.login, type="primary", key="login")
    return False


def may(role: Role) -> bool:
    """Whether who looks at the page has a role."""
    if is_loopback(st.get_option("server.address")):
        return True
    people = _secrets().get("roles", {}).get(role, [])
    return "*" in people or st.user.get("email") in people


def require(role: Role) -> None:
    """Raises AccessError for somebody without the role."""
    if not may(role):
        raise AccessError(
            f"{DOING[role]} is not open to you here.",
            expected=f"your address among roles.{role} of the server's secrets.toml",
            given=str(st.user.get("email")),
            next_step="ask whoever runs this server.",
        )


def _secrets() -> Mapping[str, Any]:
    try:
        return dict(st.secrets)
    except StreamlitSecretNotFoundError:
        return {}
