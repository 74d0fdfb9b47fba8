"""How the tests are spread over processes (`pytest -n 2`): a file stays together, and so do all that need SLURM."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        together = "slurm" if item.get_closest_marker("slurm") else str(item.path)
        item.add_marker(pytest.mark.xdist_group(together))
