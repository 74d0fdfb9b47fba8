import pytest

from benchmarks import objectives
from tests.support.datasets.latent_sets import write_latents


@pytest.mark.parametrize("name", ["epsilon", "epsilon, contrastive"])
def test_an_objective_is_trained_and_sampled(tmp_path, monkeypatch, name):
    monkeypatch.setattr(objectives, "SAMPLING_STEPS", 2)
    monkeypatch.setattr(objectives, "COMPARED", 32)
    found = objectives.learn(str(write_latents(tmp_path / "latents")), objectives.OBJECTIVES[name], 4)
    assert found["before"]["loss/audio"] == pytest.approx(1, abs=0.15)  # the network starts at a prediction of zero
    assert found["after"]["loss"] < found["before"]["loss"]
    assert ("term/contrastive" in found["after"]) == ("contrastive" in name)
    assert found["sampled"]["audio of data"]["std"] == pytest.approx(1, abs=0.15)
