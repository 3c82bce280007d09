"""Where a server may listen: loopback or a Unix socket, nothing else."""

from __future__ import annotations

import ipaddress

UNIX = "unix:"
MAX_UNIX_PATH_BYTES = 107


def check_address(address: str) -> str:
    """Return `address` if only this machine can reach it. Raises `ValueError` with the reason otherwise."""
    if address.startswith(UNIX):
        return _check_unix(address)
    host, _, port = address.rpartition(":")
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{address!r} is not HOST:PORT with a port from 0 to 65535, nor unix:PATH")
    if not _is_loopback(host):
        raise ValueError(
            f"{address!r} can be reached from other machines, and this server has no TLS and no authentication: "
            "use 127.0.0.1:PORT, [::1]:PORT, localhost:PORT or unix:PATH"
        )
    return address


def with_port(address: str, port: int) -> str:
    """The address that was bound: port 0 becomes the port that the system chose."""
    return address if address.startswith(UNIX) else f"{address.rpartition(':')[0]}:{port}"


def _check_unix(address: str) -> str:
    path = address.removeprefix(UNIX)
    if not path or len(path.encode()) > MAX_UNIX_PATH_BYTES:
        raise ValueError(f"a Unix socket's path has 1 to {MAX_UNIX_PATH_BYTES} bytes, this one {len(path.encode())}")
    return address


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False
