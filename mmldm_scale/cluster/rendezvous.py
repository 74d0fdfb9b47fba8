"""Where the ranks of a run meet: the store of torch's process groups, and the addresses on which ranks listen.

    place = slurm.export_rendezvous()
    store = open_store(place, timedelta(seconds=60))
    dist.init_process_group("gloo", store=store, rank=place.rank, world_size=place.world_size)

On one machine everything listens on the loopback interface. On several nodes rank 0 opens the store's port on the
address of the first node, and gloo and NCCL listen on every node. None of these connections is authenticated or
encrypted, so the network between the nodes must be closed to others. The store holds addresses and counters, no
pickles; ranks send pickles to one another, over their connections.
"""

import errno
import os
import socket
from collections.abc import Mapping
from datetime import timedelta

from torch.distributed import FileStore, HashStore, Store, TCPStore  # type: ignore[attr-defined]  # public, untyped

from mmldm_scale.cluster.local_launcher import STORE
from mmldm_scale.cluster.slurm import Rendezvous
from mmldm_scale.common.errors import Outage

LOOPBACK = ("127.0.0.1", "localhost", "::1")
LOOPBACK_INTERFACE = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "=lo"}  # environment variables
BACKLOG = 2048  # ranks that may be connecting at the same time


def open_store(place: Rendezvous, timeout: timedelta) -> Store:
    """Return the store of the ranks' process groups, each rank once; keep gloo and NCCL on loopback on one machine.

    Args:
        timeout: for all ranks to come, and for each answer of the store.

    Raises:
        Outage: the port is in use.
    """
    if is_one_machine(place, os.environ):
        os.environ.update({name: value for name, value in LOOPBACK_INTERFACE.items() if name not in os.environ})
    if STORE in os.environ:
        return FileStore(f"/proc/self/fd/{os.environ[STORE]}", place.world_size)
    if place.world_size == 1:
        return HashStore()
    is_server = place.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"  # torchrun has opened it
    return TCPStore(
        place.address,
        place.port,
        place.world_size,
        is_server,
        timeout,
        master_listen_fd=_listen(place.address, place.port).detach() if is_server else None,
    )


def is_one_machine(place: Rendezvous, env: Mapping[str, str]) -> bool:
    """Return whether all ranks are known to run on this machine."""
    return env.get("LOCAL_WORLD_SIZE") == str(place.world_size) or place.world_size == 1 or place.address in LOOPBACK


def _listen(address: str, port: int) -> socket.socket:
    """Return a socket that listens on this node's ``address`` only, or on all of its addresses if that cannot be.

    A node may know its own name as a loopback address, which the other nodes cannot reach, or none of its interfaces
    has the address, which is translated on the way.

    Raises:
        Outage: the port is in use.
    """
    family, *_, (host, *_) = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    try:
        if address not in LOOPBACK and str(host).startswith(("127.", "::1")):
            return _listen_everywhere(port)
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            return _listen_everywhere(port)
        if error.errno == errno.EADDRINUSE:
            raise Outage(
                f"port {port} of {address} is in use by another process; a requeued job uses another"
            ) from None
        raise


def _listen_everywhere(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=BACKLOG)
    return socket.create_server(("", port), backlog=BACKLOG)
