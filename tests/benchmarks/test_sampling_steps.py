import json
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks import sampling_steps
from mmldm_scale.config import DecodingConfig, Sampling
from mmldm_scale.models import pretrained
from mmldm_scale.sampling.pipeline import Pipeline
from tests.support.tiny_models.weights_folders import save_model


def test_each_setting_is_held_against_many_steps_and_what_exists_is_not_made_again(tmp_path, monkeypatch):
    for name, value in {"STEPS": (2, 5), "MANY": 20, "DECODED": (5,)}.items():
        monkeypatch.setattr(sampling_steps, name, value)
    model = save_model(tmp_path / "model")
    pipeline = Pipeline.from_pretrained(model.dit, Sampling(decoding=DecodingConfig("dpm++", 1)))
    found = sampling_steps.measure(pipeline, tmp_path / "work", 2)
    rows = found["by_sampler"]
    assert found["reference"] == "ddim 20"
    assert list(rows) == ["ddim 20", *(f"{name} {n}" for name in ("ddim", "dpm++", "unipc") for n in (2, 5))]
    assert rows["ddim 20"]["distance"] == {"audio": 0, "video": 0}
    assert [title for title, row in rows.items() if "synthetic" in row] == ["ddim 20", "ddim 5", "dpm++ 5", "unipc 5"]
    few, many = (
        Pipeline.from_pretrained(model.dit, Sampling(steps=n)).latents("svg", range(2)).video.double().numpy()
        for n in (5, 20)
    )
    ratios = [np.sqrt(((a - b) ** 2).sum() / (b**2).sum()) for a, b in zip(few, many, strict=True)]
    assert rows["ddim 5"]["distance"]["video"] == pytest.approx(np.mean(ratios), abs=2e-5)

    monkeypatch.delattr(pipeline, "dit")  # nothing can be sampled any more
    work = tmp_path / "work" / pretrained.fingerprint(model.dit)[:12]
    (work / "ddim_5_2.json").write_text(json.dumps({"hits_found": 0.25}))
    again = sampling_steps.measure(pipeline, tmp_path / "work", 2)["by_sampler"]
    assert again["ddim 5"] == rows["ddim 5"] | {"synthetic": {"hits_found": 0.25}}
    assert {**again, "ddim 5": None} == {**rows, "ddim 5": None}

    picture = ElementTree.fromstring(sampling_steps.plot(rows))
    texts = [part.text for part in picture if part.tag.endswith("text")]
    assert {"ddim", "dpm++", "unipc", "2", "5"} <= set(texts)
    assert len([part for part in picture if part.tag.endswith("circle")]) == 6
