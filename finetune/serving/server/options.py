"""What a server is told at its start; every limit of it stands here."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

from finetune.errors import FinetuneError


@dataclass(frozen=True)
class Options:
    """Keys, sizes in bytes, times in seconds."""

    api_key: str | None = field(default=None, repr=False)  # None: whoever reaches the port may ask
    admin_key: str | None = field(default=None, repr=False)  # None: nobody loads or unloads at run time
    hosts: frozenset[str] | None = None  # names by which the server may be called; None: any
    grace: float = 30.0  # for answers in flight when the server is told to stop
    max_body: int = 1 << 20
    header_timeout: float = 10.0  # from the connection to the end of a request's head
    body_timeout: float = 30.0  # for the whole body
    write_timeout: float = 60.0  # for a client to take what was written
    answer_timeout: float = 600.0  # for one answer, waiting included
    keep_alive: int = 15  # an idle connection is kept this long
    max_connections: int = 512


def loopback(host: str) -> bool:
    """Tell whether an address can be reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_exposure(host: str, api_key: str | None, *, insecure: bool) -> None:
    """Raise FinetuneError for an address that others can reach, without a key and without --insecure."""
    if loopback(host) or api_key or insecure:
        return
    raise FinetuneError(
        f"--host {host} can be reached by other machines, and there is no API key",
        fix="set FINETUNE_API_KEY, or say --insecure if something in front of the server checks who is asking",
    )


def host_names(host: str) -> frozenset[str] | None:
    """Names a loopback server answers to: a page elsewhere may point its own name at 127.0.0.1."""
    return frozenset({"localhost", "127.0.0.1", "::1", host.lower()}) if loopback(host) else None
