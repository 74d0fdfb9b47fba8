"""The check of what listens: the ports that this rank, and torchrun if it started the rank, have open."""

import ipaddress
import os
from collections.abc import Iterator

from mmldm_scale.common.sockets import listening
from mmldm_scale.doctor.findings import Finding


def open_ports() -> Iterator[Finding]:
    """Name the addresses on which this rank can be reached; call it when the ranks have joined."""
    launcher = [os.getppid()] if "TORCHELASTIC_RUN_ID" in os.environ else []
    addresses: dict[str, set[int]] = {}
    for pid in (os.getpid(), *launcher):
        for address, port in listening(pid):
            addresses.setdefault(address, set()).add(port)
    yield from check_addresses(addresses)


def check_addresses(addresses: dict[str, set[int]]) -> Iterator[Finding]:
    """Check the open ports of each of ``addresses``."""
    parsed = {ipaddress.ip_address(address): sorted(ports) for address, ports in addresses.items()}
    everywhere = [str(port) for address, ports in parsed.items() if address.is_unspecified for port in ports]
    network = [str(address) for address in parsed if not address.is_unspecified and not address.is_loopback]
    if everywhere:
        text = f"port {', '.join(everywhere)} can be reached on all interfaces, without authentication"
        remedy = "on one machine use --processes or srun; else close the network of the nodes to others"
        yield Finding("warning", "ports", text, remedy)
    elif network:
        text = f"open on {', '.join(network)}, without authentication: only the nodes of the job may reach it"
        yield Finding("ok", "ports", text)
    else:
        yield Finding("ok", "ports", "open on the loopback interface only" if parsed else "none is open")
