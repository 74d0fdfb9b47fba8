"""Names the packages; everything else about the distribution is in setup.cfg.

The folder data_tools is installed as ``mmldm_data_tools``: another project may have a top-level ``data_tools``, too.
"""

from setuptools import find_packages, setup

tools = [name.replace("data_tools", "mmldm_data_tools", 1) for name in find_packages(include=["data_tools*"])]
setup(
    packages=[*find_packages(include=["mmldm_scale*"]), *tools],
    package_dir={"mmldm_data_tools": "data_tools"},
)
