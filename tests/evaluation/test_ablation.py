"""``mmldm ablation``: the shipped variants differ in one thing each, and the real command trains and resumes them."""

import itertools
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import yaml

from mmldm_scale import cli
from mmldm_scale.common.errors import UserError
from mmldm_scale.config import load
from mmldm_scale.evaluation import ablation
from mmldm_scale.evaluation.ablation import Ablation, Result, Variant, table
from mmldm_scale.evaluation.distances.frechet import frechet_distance
from mmldm_scale.shards.clips import decode_clip
from mmldm_scale.shards.reader import ShardSet
from mmldm_scale.trainables.autoencoder.config import AutoencoderTraining
from tests.support import toy_evaluation
from tests.support.tiny_models.autoencoder_trainable import MODEL, write_data

CONFIGS = Path(__file__).parents[2] / "configs"
REQUIRED = ["shards=x", "kl_vae=y", "unet=z"]
TRAINING = """
training: {global_batch: 4, micro_batch: 4, total_samples: 8, precision: fp32, log_every: 4, checkpoint_every: 4,
           preview_every: 8, workers: 0}
"""
AUTOENCODER = MODEL + "preview: {steps: 1}\n"
TOY = "tests.support.toy_evaluation:ablation_command"
STEP = "reconstruction/step-000000000008"  # results of the only checkpoint
PROTOCOL = """
title: a trial
samples: {count: 4}
reference: {split: training set}
resamples: 20
floor_repeats: 2
frames: {count: 0}
metrics: {fd: {title: FD-toy, distance: frechet, extractor: toy_frames}}
"""
TABLE = """
title: variants
protocols: ["{folder}/trial.yaml"]
sets: {{sea: {{title: Sea}}}}
ablation: {{variants: "{folder}/variants.yaml", preset: "{folder}/autoencoder.yaml"}}
published:
  - {{label: theirs, row: first, protocol: trial.yaml, values: {{sea: {{fd: 7.5}}}}, source: paper}}
"""
VARIANTS = """
variants:
  - {name: first, title: the first, set: [adversarial.weight=0]}
  - {name: second, title: the second, finetuned: true}
"""


def settings(variant: Variant) -> dict:
    flat = {}

    def walk(tree: dict, prefix: str) -> None:
        for key, value in tree.items():
            walk(value, f"{prefix}{key}.") if isinstance(value, dict) else flat.update({prefix + key: value})

    walk(asdict(load(AutoencoderTraining, [CONFIGS / "autoencoder/landscape.yaml"], [*REQUIRED, *variant.set])), "")
    return flat | {"finetuned": variant.finetuned}


def test_the_steps_of_table_5_lead_to_the_papers_autoencoder_one_thing_at_a_time():
    variants = [settings(variant) for variant in load(Ablation, [CONFIGS / "ablation/table5.yaml"]).variants]
    changes = [{key for key in a if a[key] != b[key]} for a, b in itertools.pairwise(variants)]
    assert changes == [
        {"model.shared_decoder", "unet"},  # shared, and so begun from Stable Diffusion's, in one step of the paper
        {"model.pooled_latent"},
        {"model.semantics"},
        {"finetuned"},
        {"adversarial.weight"},
    ]
    complete = load(AutoencoderTraining, [CONFIGS / "autoencoder/landscape.yaml"], REQUIRED)
    assert {key for key, value in settings(Variant("a", "a")).items() if variants[-1][key] != value} == {"finetuned"}
    assert complete.adversarial.weight == 0.1


def test_table_6_varies_the_weights_alone():
    variants = [settings(variant) for variant in load(Ablation, [CONFIGS / "ablation/table6.yaml"]).variants]
    changed = {key for variant in variants for key in variant if variant[key] != variants[0][key]}
    assert len(variants) == 4
    assert changed == {"kl_weight", "contrastive_weight", "classification_weight"}


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ([], "at least one"),
        ([{"name": "a", "title": ""}] * 2, "two have the same name"),
        ([{"name": "../a", "title": ""}], "valid as a folder's name"),
        ([{"name": "kl_vae", "title": ""}], "not 'kl_vae'"),
        ([{"name": "a", "title": "", "sets": []}], "unknown key"),
    ],
)
def test_an_ablation_that_is_not_valid_is_one_line(tmp_path, variants, message):
    (tmp_path / "variants.yaml").write_text(yaml.safe_dump({"variants": variants}))
    with pytest.raises(UserError, match=message):
        load(Ablation, [tmp_path / "variants.yaml"])


def test_the_table_has_a_row_for_each_variant_and_a_column_for_each_metric():
    rows = [
        Result(Variant("a", "first"), {"psnr": 20.0, "ssim": 0.5}, {}),
        Result(Variant("b", "second"), {"psnr": 21.25}, {}),
    ]
    assert table(rows).splitlines() == [
        "| | psnr | ssim |",
        "|---|---:|---:|",
        "| first | 20.000 | 0.500 |",
        "| second | 21.250 |  |",
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_data(tmp_path_factory.mktemp("ablation"))
    (folder / "variants.yaml").write_text(VARIANTS)
    (folder / "autoencoder.yaml").write_text(AUTOENCODER + TRAINING)
    (folder / "finetune.yaml").write_text("discriminator: {width: 4, layers: 1}" + TRAINING)
    (folder / "reconstruct.yaml").write_text("decoding: {steps: 1}")
    (folder / "trial.yaml").write_text(PROTOCOL)
    (folder / "evaluate.yaml").write_text(f"weights: {{toy_frames: {folder / 'trial.yaml'}}}")
    (folder / "table.yaml").write_text(TABLE.format(folder=folder))
    return folder


def arguments(data: Path, samples: int = 4, launch: str = "env") -> list[str]:
    names = {"variants": "variants", "config": "autoencoder", "finetune": "finetune", "reconstruct": "reconstruct"}
    files = [part for option, name in names.items() for part in (f"--{option}", str(data / f"{name}.yaml"))]
    files += ["--protocol", str(data / "trial.yaml"), "--evaluate", str(data / "evaluate.yaml")]
    paths = ["--input", str(data / "clips"), "--output", str(data / "out/ablation"), f"shards={data / 'clips'}"]
    under = ["--under", launch]  # in the place of srun
    return ["ablation", *files, "--num-samples", str(samples), *paths, *under, f"kl_vae={data / 'kl_vae'}"]


@pytest.mark.timeout(600)
def test_the_real_command_resumes_after_a_variant_that_failed(data, forks, capsys, monkeypatch):
    toy_evaluation.register(monkeypatch)
    assert cli.main([*arguments(data), "--check"]) == 0
    told = f"{data / 'out/ablation'}: 2 variants can be trained, and measured on {data / 'clips'}\n"
    assert capsys.readouterr().out == told
    assert cli.main([*arguments(data), "--check", "unet=nowhere"]) == 2
    assert "unet=nowhere: no such file or folder" in capsys.readouterr().err
    assert not (data / "out").exists()

    status, output = forks(1, "call", TOY, str(data), *arguments(data, launch="sh -c 'exit 3'"))
    assert status == 3
    assert "variant first ended with status 3" in output

    status, output = forks(1, "call", TOY, str(data), *arguments(data))
    assert status == 0, output
    lines = (data / "out/ablation/ablation.md").read_text().splitlines()
    assert "\n".join(lines) in output
    assert lines[0].startswith("| | psnr | ssim |")
    variants = json.loads((data / "out/ablation/ablation.json").read_text())
    assert [variant["name"] for variant in variants] == ["first", "second"]
    results = data / "out/ablation/second/reconstruction/step-000000000008/reconstruction.json"
    assert lines[3].startswith(f"| the second | {json.loads(results.read_text())['metrics']['psnr']:.3f} |")
    finetuned = yaml.safe_load((data / "out/ablation/second/config.yaml").read_text())["kl_vae"]
    check_figures(data, variants, lines)
    check_table(data, capsys, monkeypatch)
    assert finetuned == str(data / "out/ablation/kl_vae")

    assert cli.main(arguments(data, samples=5)) == 2
    message = "reconstruction.json: measured with other clips or settings than now; remove its folder"
    assert message in capsys.readouterr().err


def check_figures(data: Path, variants: list[dict], lines: list[str]) -> None:
    """Reconstructions were measured as sets against their originals: the figures of what lies in the tars."""
    for variant in variants:
        kept = ShardSet(data / "out/ablation" / variant["name"] / STEP / "lossless/reconstructed", "samples")
        assert [kept.key(i) for i in range(4)] == ["clip_0", "clip_1", "clip_3", "clip_4"]
        originals = ShardSet(data / "clips", "clips")
        sets = [
            [decode_clip(shards[i].members) for i in which]
            for shards, which in ((kept, range(4)), (originals, (0, 1, 3, 4)))
        ]
        features = [
            np.array([clip.frames.astype(np.float32).mean(axis=(0, 1, 2)) / 255 for clip in clips]) for clips in sets
        ]
        figure = variant["reports"]["trial.yaml"]["figures"]["fd"]
        assert figure["value"] == pytest.approx(frechet_distance(*features), rel=1e-3)
        assert f"{figure['value']:.5g} [" in "".join(lines)
    assert "| rFD-toy ↓ |" in lines[0]
    request = variants[0]["reports"]["trial.yaml"]["request"]
    assert (
        request["not_protocol"]
        == "protocol trial.yaml, but for the reference; each sample is compared with the clip of its name"
    )


def check_table(data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """``mmldm table`` finds the ablation in its output folder and puts the published figures beside it."""
    monkeypatch.setattr(ablation, "_train", lambda *words: None)  # it would find in seconds that nothing is left to do
    words = [f"clips.sea={data / 'clips'}", f"held_out.sea={data / 'clips'}", f"train.kl_vae={data / 'kl_vae'}"]
    words += [f"weights.toy_frames={data / 'trial.yaml'}", "reconstruct.decoding.steps=1"]
    capsys.readouterr()
    assert cli.main(["table", str(data / "table.yaml"), "--output", str(data / "out"), *words]) == 0
    printed = capsys.readouterr().out
    made = json.loads((data / "out/table.json").read_text())
    report = json.loads((data / "out/ablation/second" / STEP / "trial.yaml/report.json").read_text())
    (section,) = made["sections"]
    assert section["rows"][1]["values"]["sea"]["fd"]["value"] == report["figures"]["fd"]["value"]
    assert (section["not_protocol"], section["columns"][0]["title"]) == ("", "rFD-toy")
    titles = [line.split("  ")[1] for line in printed[printed.index("protocol trial.yaml\n") :].splitlines()[2:6]]
    assert titles == ["the first", "theirs", "the second", "floor: real clips, half against half"]


@pytest.mark.parametrize(
    ("preset", "message"),
    [
        ("landscape", "kl_vae, shards: not set"),  # all other settings are known
        ("nowhere", "preset 'nowhere': must be one of aist, audioset, demo, landscape, "),
    ],
)
def test_the_data_sets_settings_may_come_from_a_preset(tmp_path, capsys, preset, message):
    paths = ["--input", str(tmp_path), "--output", str(tmp_path / "out"), "--num-samples", "1"]
    assert cli.main(["ablation", "--preset", preset, *paths]) == 2
    assert message in capsys.readouterr().err
