"""Weights files of others are read tensor by tensor, and nothing in them is ever run."""

import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mmldm_scale.common.errors import UserError
from mmldm_scale.common.safe_tensors import read_tensors

STATE = {"vae.a": torch.arange(3.0), "vae.b": torch.ones(2, dtype=torch.float16), "unet.a": torch.zeros(1)}


def written(path: Path, content: object = STATE, old: bool = False) -> Path:
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=not old)
    return path


@pytest.mark.parametrize(
    ("name", "content", "old"),
    [
        ("a.safetensors", STATE, False),
        ("a.ckpt", STATE, False),
        ("a.pth", STATE, True),
        ("a.ckpt", {"state_dict": STATE, "epoch": 3}, False),
        ("g_02500000", {"generator": STATE}, True),
    ],
    ids=["safetensors", "torch", "old torch", "lightning", "hifi-gan"],
)
def test_every_container_gives_the_same(tmp_path, name, content, old):
    file = written(tmp_path / name, content, old)
    found = read_tensors(file)
    assert found.keys() == STATE.keys()
    assert all(found[key].equal(tensor) and found[key].dtype == tensor.dtype for key, tensor in STATE.items())
    assert list(read_tensors(file, "vae.")) == ["vae.a", "vae.b"]
    assert read_tensors(file, "x") == {}


def test_lightnings_callback_is_passed_over(tmp_path, monkeypatch):
    """The class that Stable Diffusion's own .ckpt files name is not installed here, nor needed."""
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": module.__name__})
    with monkeypatch.context() as installed:
        for name in ("pytorch_lightning", "pytorch_lightning.callbacks"):
            installed.setitem(sys.modules, name, types.ModuleType(name))
        installed.setitem(sys.modules, module.__name__, module)
        callbacks = {module.ModelCheckpoint: {"best_model_path": "x"}, "instance": module.ModelCheckpoint()}
        file = written(tmp_path / "sd.ckpt", {"callbacks": callbacks, "state_dict": STATE})
    assert read_tensors(file).keys() == STATE.keys()


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("core", [b"numpy._core.multiarray", b"numpy.core.multiarray"])
def test_numpys_arrays_beside_the_weights_are_passed_over(tmp_path, core, old):
    """PANNs' files have the state of a data loader; numpy's modules have other names since version 2."""
    file = written(tmp_path / "panns.pth", {"model": STATE, "sampler": [np.arange(3), np.float64(1)]}, old)
    if old:  # an uncompressed file without checksums
        file.write_bytes(file.read_bytes().replace(b"numpy._core.multiarray", core))
    assert read_tensors(file).keys() == STATE.keys()


class Code:
    """What runs ``touch`` when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return Path.touch, (self.trace,)


def refusal(file: Path) -> str:
    with pytest.raises(UserError) as error:
        read_tensors(file)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)
    assert "weights_only" not in str(error.value)  # torch's advice is to switch the protection off
    return str(error.value)


@pytest.mark.parametrize("old", [False, True])
def test_code_is_not_run(tmp_path, old):
    trace = tmp_path / "trace"
    file = written(tmp_path / "code.ckpt", {"state_dict": {**STATE, "c": Code(trace)}}, old)
    assert "is not a weight" in refusal(file)
    assert not trace.exists()
    torch.load(file, weights_only=False)
    assert trace.exists()  # so it would have


def test_a_module_is_no_weights_file(tmp_path):
    assert "torch.nn.modules.linear.Linear" in refusal(written(tmp_path / "whole.pth", torch.nn.Linear(2, 2)))
    assert "contains a list" in refusal(written(tmp_path / "list.pth", [torch.ones(2)]))


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("content", [b"", b"<html>404 Not Found</html>", b"\x80\x02", b"PK\x03\x04", b"\xff" * 200])
def test_what_is_no_weights_file_is_refused(tmp_path, suffix, content):
    file = tmp_path / f"a{suffix}"
    file.write_bytes(content)
    refusal(file)


@pytest.mark.parametrize("name", ["a.safetensors", "a.ckpt"])
def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path, name):
    whole = written(tmp_path / name).read_bytes()
    file = tmp_path / f"cut-{name}"
    for length in range(0, len(whole) - 1, 97):
        file.write_bytes(whole[:length])
        refusal(file)


def test_a_pointer_in_place_of_the_file_is_named(tmp_path):
    file = tmp_path / "a.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4265146304\n")
    assert "git lfs pull" in refusal(file)
    assert "No such file" in refusal(tmp_path / "absent.safetensors")
    assert "No such file" in refusal(tmp_path / "absent.ckpt")
