"""Unix sockets of a process whose folder for temporary files has a long path."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
from multiprocessing import connection, get_context
from mmldm_scale.common.processes import shorten_socket_paths

def serve(pipe):
    pipe.send(connection.Listener(family="AF_UNIX").address)

if __name__ == "__main__":
    shorten_socket_paths()
    print(connection.Listener(family="AF_UNIX").address)
    ours, theirs = get_context("fork").Pipe()
    child = get_context("fork").Process(target=serve, args=(theirs,))
    child.start()
    print(ours.recv())
    child.join()
"""


def test_sockets_have_short_paths_in_a_process_and_its_children_and_nothing_remains(tmp_path: Path) -> None:
    program, long = tmp_path / "program.py", tmp_path / ("x" * 100)
    program.write_text(PROGRAM)
    long.mkdir()
    environment = {**os.environ, "TMPDIR": str(long), "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, program], env=environment, capture_output=True, text=True, check=True)
    addresses = [Path(line) for line in done.stdout.split()]
    assert len(addresses) == 2
    for address in addresses:
        assert len(os.fsencode(address)) <= 107
        assert not address.parent.exists()
