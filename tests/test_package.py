"""The names that ``import mmldm_scale`` offers."""

import subprocess
import sys

import pytest

import mmldm_scale

NAMES = {
    *("PRESETS", "Autoencoder", "Clip", "DiT", "MMLDMPipeline", "Pipeline", "Sampling", "ShardSet"),
    *("write_video", "__version__"),
}


def test_dir_lists_every_exported_name() -> None:
    assert set(mmldm_scale.__all__) == NAMES
    assert set(dir(mmldm_scale)) >= NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_exported_name_can_be_imported(name: str) -> None:
    assert getattr(mmldm_scale, name)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Pipelines'"):
        _ = mmldm_scale.Pipelines


def test_the_import_loads_no_model_and_no_torch() -> None:
    script = "import sys, mmldm_scale; print('torch' in sys.modules, mmldm_scale.__version__)"
    output = subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.PIPE, text=True).stdout
    assert output.split() == ["False", mmldm_scale.__version__]


def test_a_clone_that_is_not_installed_has_a_version() -> None:
    script = (
        "from importlib import metadata\n"
        "def missing(name): raise metadata.PackageNotFoundError(name)\n"
        "metadata.version = missing\n"
        "import mmldm_scale; print(mmldm_scale.__version__)"
    )
    output = subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.PIPE, text=True).stdout
    assert output.strip() == "0+unknown"
