"""Reads the address in `[prometheus] listen`."""

from __future__ import annotations

from typing import NamedTuple

from gpuqueue.plugins import Table

EXAMPLE = 'listen = "127.0.0.1:9464"'
HIGHEST_PORT = 65535


class Address(NamedTuple):
    """A host's name or address, and a port; port 0 takes any free port."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def read_address(table: Table) -> Address | None:
    """Read where to listen. None if it is not set: the plugin opens no port just because it is installed.

    Raises: ConfigurationError.
    """
    setting = table.get("listen")
    if setting is None:
        return None
    text = table.text("listen", "", example=EXAMPLE)
    host, colon, port = text.rpartition(":")
    is_bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not port.isascii() or not port.isdecimal() or (":" in host and not is_bracketed):
        raise setting.error(f'must be an address and a port, for example {EXAMPLE} or, for IPv6, listen = "[::1]:9464"')
    if int(port) > HIGHEST_PORT:
        raise setting.error(f"the port must be at most {HIGHEST_PORT}, for example {EXAMPLE}")
    if not host.strip("[]"):
        raise setting.error(f'the address is missing; use {EXAMPLE}, or listen = "0.0.0.0:{port}" for every network')
    return Address(host.strip("[]"), int(port))
