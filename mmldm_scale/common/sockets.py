"""The TCP ports on which a process listens, as Linux shows them in /proc.

for address, port in listening(os.getpid()):
    print(address, port)
"""

import ipaddress
import os
import re
from pathlib import Path

_LISTEN = "0A"  # state of a listening socket, of <net/tcp_states.h>


def listening(pid: int) -> list[tuple[str, int]]:
    """Return the (address, port) pairs on which process ``pid`` of this user listens; [] if it has ended.

    The address is "0.0.0.0" or "::" for all interfaces.
    """
    own = _socket_inodes(pid)
    found = set()
    for table in ("tcp", "tcp6"):
        file = Path(f"/proc/{pid}/net/{table}")
        for line in file.read_text().splitlines()[1:] if file.exists() else []:
            _, local, _, state, *rest = line.split()
            if state == _LISTEN and rest[5] in own:
                address, port = local.split(":")
                found.add((_address(address), int(port, 16)))
    return sorted(found)


def _socket_inodes(pid: int) -> set[str]:
    """Return the numbers of the open sockets of process ``pid``."""
    inodes = set()
    try:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            try:
                match = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(descriptor))
            except FileNotFoundError:
                continue  # closed meanwhile
            if match:
                inodes.add(match[1])
    except FileNotFoundError:
        pass  # the process has ended
    return inodes


def _address(text: str) -> str:
    """Return the address for /proc's hexadecimal words, each in the machine's byte order."""
    words = [int(text[at : at + 8], 16).to_bytes(4, "little") for at in range(0, len(text), 8)]
    address = ipaddress.ip_address(b"".join(words))
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)
