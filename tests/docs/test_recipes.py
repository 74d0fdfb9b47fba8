"""The recipes' commands work as they stand on their pages, one after the other, in small.

Those of Landscape are in tests/slurm/test_recipe.py, some as jobs; here each job's own command runs, in two processes.
"""

import json
from pathlib import Path

import pytest

from mmldm_scale import cli
from tests.support.recipes import ROOT, carry_out, commands, costs, put_videos, small_world

PAGES = sorted((ROOT / "docs/recipes").glob("*.md"))
AIST = [  # no dance is in both
    *("train/gBR_sBM_cAll_d04_mBR0_ch01.mp4", "train/gPO_sBM_cAll_d10_mPO1_ch02.mp4"),
    *("test/gBR_sBM_cAll_d05_mBR1_ch01.mp4", "test/gPO_sBM_cAll_d11_mPO2_ch02.mp4"),
]
IDS = [f"{letter * 11}" for letter in "abcdef"]
LISTS = {
    "unbalanced_train_segments.csv": "# Segments csv\n# num_ytids=6\n"
    "# YTID, start_seconds, end_seconds, positive_labels\n"
    + "".join(f'{name}, 0.000, 1.200, "/m/{"dog" if name < "d" * 11 else "rain"}"\n' for name in IDS),
    "class_labels_indices.csv": 'index,mid,display_name\n0,/m/dog,"Dog"\n1,/m/rain,"Rain"\n',
    "ontology.json": json.dumps(
        [{"id": f"/m/{name.lower()}", "name": name, "child_ids": []} for name in ("Dog", "Rain")]
    ),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A project in small, with what the recipes say is needed."""
    folder = small_world(tmp_path_factory.mktemp("project"))
    put_videos(folder / "data/aist/videos", AIST)
    put_videos(folder / "data/audioset/videos", [f"{name}.mp4" for name in IDS])
    (folder / "data/audioset/lists").mkdir()
    for name, text in LISTS.items():
        (folder / "data/audioset/lists" / name).write_text(text)
    return folder


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["aist", "audioset"])
def test_every_command_works_as_it_stands_on_the_page(forks, world, name):
    for words in commands(ROOT / f"docs/recipes/{name}.md"):
        carry_out(forks, world, words)
    runs = world / "runs" / name
    for model in ("kl_vae", "autoencoder", "dit_S", "dit_B", "dit_L"):
        assert (runs / model / "checkpoints/step-000000000016/manifest.json").is_file()
    assert len(list((runs / "samples").glob("svg_*.mp4"))) == 3


COSTS = {words: hours for page in PAGES for words, hours in costs(page)}
QUICK = "--model S"  # the planner takes ten seconds and more for the others


@pytest.mark.parametrize("words", sorted(words for words in COSTS if QUICK in words))
def test_costs_are_the_planners(words, capsys):
    assert cli.main(["plan", *words.split()]) == 0
    assert f", {COSTS[words]} GPU-hours" in capsys.readouterr().out
