"""The ladder: each rung differs from the one before in one thing, and the real command climbs it."""

import itertools
import json
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from mmldm_scale import cli
from mmldm_scale.common.errors import UserError
from mmldm_scale.config import load
from mmldm_scale.evaluation.ablation import Ladder, Rung, table
from mmldm_scale.trainables.autoencoder.config import AutoencoderTraining
from tests.support.tiny_models.autoencoder_trainable import MODEL, write_data

CONFIGS = Path(__file__).parents[2] / "configs"
GIVEN = ["shards=x", "kl_vae=y", "unet=z"]
TRAINING = """
training: {global_batch: 4, micro_batch: 4, total_samples: 8, precision: fp32, log_every: 4, checkpoint_every: 4,
           preview_every: 8, workers: 0}
"""
AUTOENCODER = MODEL + "preview: {steps: 1}\n"
RUNGS = """
rungs:
  - {name: first, title: the first, set: [adversarial.weight=0]}
  - {name: second, title: the second, finetuned: true}
"""


def settings(rung: Rung) -> dict:
    flat = {}

    def walk(tree: dict, prefix: str) -> None:
        for key, value in tree.items():
            walk(value, f"{prefix}{key}.") if isinstance(value, dict) else flat.update({prefix + key: value})

    walk(asdict(load(AutoencoderTraining, [CONFIGS / "autoencoder/landscape.yaml"], [*GIVEN, *rung.set])), "")
    return flat | {"finetuned": rung.finetuned}


def test_the_steps_of_table_5_lead_to_the_papers_autoencoder_one_thing_at_a_time():
    rungs = [settings(rung) for rung in load(Ladder, [CONFIGS / "ablation/table5.yaml"]).rungs]
    changes = [{key for key in a if a[key] != b[key]} for a, b in itertools.pairwise(rungs)]
    assert changes == [
        {"model.shared_decoder", "unet"},  # shared, and so begun from Stable Diffusion's, in one step of the paper
        {"model.pooled_latent"},
        {"model.semantics"},
        {"finetuned"},
        {"adversarial.weight"},
    ]
    whole = load(AutoencoderTraining, [CONFIGS / "autoencoder/landscape.yaml"], GIVEN)
    assert {key for key, value in settings(Rung("a", "a")).items() if rungs[-1][key] != value} == {"finetuned"}
    assert whole.adversarial.weight == 0.1


def test_table_6_varies_the_weights_alone():
    rungs = [settings(rung) for rung in load(Ladder, [CONFIGS / "ablation/table6.yaml"]).rungs]
    changed = {key for rung in rungs for key in rung if rung[key] != rungs[0][key]}
    assert len(rungs) == 4
    assert changed == {"kl_weight", "contrastive_weight", "classification_weight"}


@pytest.mark.parametrize(
    ("rungs", "says"),
    [
        ([], "at least one"),
        ([{"name": "a", "title": ""}] * 2, "two have the same name"),
        ([{"name": "../a", "title": ""}], "that of a folder"),
        ([{"name": "kl_vae", "title": ""}], "not 'kl_vae'"),
        ([{"name": "a", "title": "", "sets": []}], "unknown key"),
    ],
)
def test_a_ladder_that_cannot_be_climbed_is_one_line(tmp_path, rungs, says):
    (tmp_path / "ladder.yaml").write_text(yaml.safe_dump({"rungs": rungs}))
    with pytest.raises(UserError, match=says):
        load(Ladder, [tmp_path / "ladder.yaml"])


def test_the_table_has_a_line_a_rung_and_a_column_a_metric():
    rows = [(Rung("a", "first"), {"psnr": 20.0, "ssim": 0.5}), (Rung("b", "second"), {"psnr": 21.25, "ssim": 0.6})]
    assert table(rows).splitlines() == [
        "| | psnr | ssim |",
        "|---|---:|---:|",
        "| first | 20.000 | 0.500 |",
        "| second | 21.250 | 0.600 |",
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_data(tmp_path_factory.mktemp("ladder"))
    (folder / "ladder.yaml").write_text(RUNGS)
    (folder / "autoencoder.yaml").write_text(AUTOENCODER + TRAINING)
    (folder / "finetune.yaml").write_text("discriminator: {width: 4, layers: 1}" + TRAINING)
    (folder / "reconstruct.yaml").write_text("decoding: {steps: 1}")
    return folder


def words(data: Path, samples: int = 2, launch: str = "env") -> list[str]:
    names = {"ladder": "ladder", "config": "autoencoder", "finetune": "finetune", "reconstruct": "reconstruct"}
    files = [part for option, name in names.items() for part in (f"--{option}", str(data / f"{name}.yaml"))]
    paths = ["--input", str(data / "clips"), "--output", str(data / "out"), f"shards={data / 'clips'}"]
    under = ["--launch", launch]  # in the place of srun
    return ["ladder", *files, "--num-samples", str(samples), *paths, *under, f"kl_vae={data / 'kl_vae'}"]


@pytest.mark.timeout(600)
def test_the_real_command_climbs_and_goes_on_after_a_rung_that_failed(data, forks, capsys):
    status, said = forks(1, "command", str(data), "mmldm", *words(data, launch="sh -c 'exit 3'"))
    assert status == 3
    assert "rung first ended with status 3" in said

    status, said = forks(1, "command", str(data), "mmldm", *words(data))
    assert status == 0, said
    lines = (data / "out/ladder.md").read_text().splitlines()
    assert "\n".join(lines) in said
    assert lines[0].startswith("| | psnr | ssim |")
    rungs = json.loads((data / "out/ladder.json").read_text())
    assert [rung["name"] for rung in rungs] == ["first", "second"]
    results = data / "out/second/reconstruction/step-000000000008/reconstruction.json"
    assert lines[3].startswith(f"| the second | {json.loads(results.read_text())['metrics']['psnr']:.3f} |")
    finetuned = yaml.safe_load((data / "out/second/config.yaml").read_text())["kl_vae"]
    assert finetuned == str(data / "out/kl_vae")

    assert cli.main(words(data, samples=1)) == 2
    said = "reconstruction.json: measured with other clips or settings than now; remove its folder"
    assert said in capsys.readouterr().err
