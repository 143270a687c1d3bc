"""Which machine a URL leads to: names are resolved first, and private networks are refused."""

from __future__ import annotations

import ipaddress
import socket
import threading
import time

from embedx.corpora.errors import ReadError

REMEMBERED_S = 300.0

_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, also where it is an IPv4 one in IPv6 clothes."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo[1] if found.teredo else None)
        if inner is None and found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return found.is_global and not (found.is_multicast or found.is_reserved or found.is_unspecified)


class Resolver:
    """Names to addresses; the connection is then made to the address, so that a second answer changes nothing.

    Args:
        allow_private: take private addresses, too.
    """

    def __init__(self, allow_private: bool) -> None:
        self._allow_private = allow_private
        self._known: dict[tuple[str, int], tuple[float, str]] = {}
        self._lock = threading.Lock()

    def resolve(self, host: str, port: int) -> str:
        """Return the address to connect to.

        Raises:
            ReadError: the name is unknown, or leads to a private network.
        """
        with self._lock:
            kept = self._known.get((host, port))
        if kept and time.monotonic() - kept[0] < REMEMBERED_S:
            return kept[1]
        try:
            answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ReadError(f"the host {host} is not known ({reason})", "UnknownHost") from None
        addresses = [str(answer[4][0]) for answer in answers]
        private = [address for address in addresses if not is_public(address)]
        if private and not self._allow_private:
            # One is enough: whoever answers with both hopes for the other.
            raise ReadError(
                f"the host {host} leads to the private address {private[0]}, which is refused "
                "without --allow-private-networks (and --retry-failed)",
                "PrivateAddress",
                False,
            )
        with self._lock:
            self._known[host, port] = (time.monotonic(), addresses[0])
        return addresses[0]
