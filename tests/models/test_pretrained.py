"""Weights folders: found from a run, a checkpoint or themselves; refused in one line where they do not fit."""

import functools
import subprocess
from pathlib import Path

import pytest
import torch

from mmldm_scale.common.errors import UserError
from mmldm_scale.models import pretrained
from mmldm_scale.models.autoencoder import kl_vae
from tests.support.tiny_models import tiny_autoencoder


def weights(folder: Path, value: float = 1.0) -> Path:
    pretrained.save(folder, "dit", {"width": 2}, {"weight": torch.full((2, 2), value), "bias": torch.zeros(2)})
    return folder


def test_newest_checkpoint_of_a_run_is_found_and_loads(tmp_path) -> None:
    for step in (16, 32):
        weights(tmp_path / f"checkpoints/step-{step:012d}/weights", value=float(step))
    (tmp_path / "checkpoints/step-000000000048.tmp/weights").mkdir(parents=True)
    newest = tmp_path / "checkpoints/step-000000000032"
    for path in (tmp_path, newest, newest / "weights"):
        assert pretrained.find(path, "dit") == newest / "weights"
    module = torch.nn.Linear(2, 2)
    pretrained.load_into(module, newest / "weights")
    assert torch.equal(module.weight, torch.full((2, 2), 32.0))
    assert pretrained.read_config(newest / "weights", "dit") == {"width": 2}


def test_weights_are_for_all_who_may_read_their_configuration(tmp_path) -> None:
    folder = weights(tmp_path / "weights")
    assert (folder / pretrained.WEIGHTS).stat().st_mode == (folder / pretrained.CONFIG).stat().st_mode


def test_a_kind_is_any_name(tmp_path) -> None:
    folder = tmp_path / "weights"
    pretrained.save(folder, "toy", {"width": 2}, {"weight": torch.zeros(2)})
    assert pretrained.read_kind(folder) == "toy"
    assert pretrained.find(folder, "toy") == folder
    (folder / pretrained.CONFIG).write_text('{"width": 2}')
    pretrained.seal(folder)
    with pytest.raises(UserError, match=r"config\.json: kind must be the name of a trainable, not None"):
        pretrained.read_kind(folder)


def test_errors_are_one_line(tmp_path) -> None:
    folder, empty = weights(tmp_path / "weights"), tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="no such folder"):
        pretrained.find(tmp_path / "nowhere", "dit")
    with pytest.raises(UserError, match="holds no weights of kind 'dit'; must have config.json"):
        pretrained.find(empty, "dit")
    with pytest.raises(UserError, match="'dit', but 'autoencoder' is needed"):
        pretrained.find(folder, "autoencoder")
    with pytest.raises(UserError, match=r"does not match its config\.json"):
        pretrained.load_into(torch.nn.Linear(3, 2), folder)
    (folder / pretrained.WEIGHTS).write_bytes(b"cut")
    with pytest.raises(UserError, match="damaged"):
        pretrained.load_into(torch.nn.Linear(2, 2), folder)


@pytest.mark.parametrize("kind", ["dit", "kl_vae", "exported part"])
def test_a_flipped_bit_is_found_in_every_file_before_it_is_used(tmp_path: Path, kind: str) -> None:
    vae = kl_vae.build(tiny_autoencoder.KL_VAE)
    if kind == "dit":
        root, part = weights(tmp_path / "weights"), "."
        load = functools.partial(pretrained.load_into, torch.nn.Linear(2, 2), root)
    elif kind == "kl_vae":
        root, part = tmp_path / "weights", "vae"
        kl_vae.save(root, vae)
        load = functools.partial(kl_vae.load, root)
    else:  # diffusers' layout, whose parts have their sums in the folder above them
        root, part = tmp_path / "exported", "decoder"
        vae.save_pretrained(root / part)
        pretrained.seal(root)
        load = functools.partial(kl_vae.load, root / part)
    load()
    files = [file for file in (root / part).iterdir() if file.suffix in (".json", ".safetensors")]
    assert len(files) == 2
    for file in files:
        content = file.read_bytes()
        file.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
        with pytest.raises(UserError, match=f"^{root}/"):
            load()
        file.write_bytes(content)
    load()


def test_sums_are_those_of_sha256sum_and_name_nothing_outside(tmp_path: Path) -> None:
    folder = weights(tmp_path / "weights")
    assert subprocess.run(["sha256sum", "-c", pretrained.SUMS], cwd=folder, capture_output=True).returncode == 0
    for sums in ("", "".join((folder / pretrained.SUMS).read_text().splitlines(True)[:1])):
        (folder / "some").write_text(sums)
        (folder / "some").rename(folder / pretrained.SUMS)
        with pytest.raises(UserError, match=rf"{pretrained.SUMS}: does not name (config|model)\."):
            pretrained.verify(folder)
    pretrained.seal(folder)
    with (folder / pretrained.SUMS).open("a") as file:
        file.write(f"{'0' * 64}  ../outside\n")
    with pytest.raises(UserError, match="outside its folder"):
        pretrained.verify(folder)


def test_fingerprint_is_of_the_content(tmp_path) -> None:
    first, same, changed = weights(tmp_path / "a"), weights(tmp_path / "b"), weights(tmp_path / "c", 2.0)
    assert pretrained.fingerprint(first) == pretrained.fingerprint(same) != pretrained.fingerprint(changed)
    (first / pretrained.SUMS).unlink()  # as in folders that older versions wrote
    assert pretrained.fingerprint(first) == pretrained.fingerprint(same)
