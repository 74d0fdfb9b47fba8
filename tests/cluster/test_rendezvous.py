"""Where ranks meet and listen: what is open to whom, on one machine and on several."""

import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from mmldm_scale.cluster import rendezvous
from mmldm_scale.cluster.local_launcher import STORE
from mmldm_scale.cluster.slurm import Rendezvous
from mmldm_scale.common.errors import Outage
from mmldm_scale.common.sockets import listening

LIMIT = timedelta(seconds=30)


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (STORE, "LOCAL_WORLD_SIZE", "TORCHELASTIC_USE_AGENT_STORE", *rendezvous.LOOPBACK_INTERFACE):
        monkeypatch.setenv(name, "")  # so that it is as before afterwards
        monkeypatch.delenv(name)


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def resolving(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Name service that knows "node" by a loopback address and "far" by one that no interface here has."""
    known = {"node": "127.0.1.1", "far": "192.0.2.77"}
    original = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **how: original(known.get(host, host), *rest, **how))


def test_ranks_of_one_machine_meet_on_its_loopback(port: int) -> None:
    with ThreadPoolExecutor() as threads:
        places = [Rendezvous(rank, rank, 2, "127.0.0.1", port) for rank in (0, 1)]
        first, second = threads.map(rendezvous.open_store, places, [LIMIT, LIMIT])
    first.set("key", "value")
    assert second.get("key") == b"value"
    assert [address for address, number in listening(os.getpid()) if number == port] == ["127.0.0.1"]
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"


def test_ranks_of_our_launcher_meet_in_a_file_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    file = os.memfd_create("ranks")
    monkeypatch.setenv(STORE, str(file))
    before = listening(os.getpid())
    first, second = (rendezvous.open_store(Rendezvous(rank, rank, 2, "127.0.0.1", 0), LIMIT) for rank in (0, 1))
    first.set("key", "value")
    assert second.get("key") == b"value"
    assert listening(os.getpid()) == before
    del first, second
    os.close(file)


def test_a_single_process_opens_no_port() -> None:
    before = listening(os.getpid())
    rendezvous.open_store(Rendezvous(0, 0, 1, "127.0.0.1", 0), LIMIT)
    assert listening(os.getpid()) == before


@pytest.mark.parametrize(
    ("address", "listens_on"),
    [("127.0.0.1", "127.0.0.1"), ("localhost", "127.0.0.1"), ("node", "::"), ("far", "::")],
)
def test_the_port_is_open_on_the_nodes_own_address(resolving, port: int, address: str, listens_on: str) -> None:
    """On all addresses only where the name is of no use: of the node itself, or of none of its interfaces."""
    with rendezvous._listen(address, port):
        assert (listens_on, port) in listening(os.getpid())


def test_a_port_in_use_is_one_line(port: int) -> None:
    with rendezvous._listen("127.0.0.1", port), pytest.raises(Outage, match=f"port {port} of 127.0.0.1 is in use"):
        rendezvous._listen("127.0.0.1", port)


def test_nodes_keep_the_network_that_the_user_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth0")
    rendezvous.open_store(Rendezvous(0, 0, 1, "127.0.0.1", 0), LIMIT)
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth0"
    assert not rendezvous.is_one_machine(Rendezvous(0, 0, 16, "gpu01", 20_000), {"LOCAL_WORLD_SIZE": "8"})
