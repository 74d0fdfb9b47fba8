from collections import Counter

import pytest
import torch

from mmldm_scale.common.errors import UserError
from mmldm_scale.config import DiffusionConfig, load
from mmldm_scale.diffusion.conditions import conditions, context_dropped, null, previous_seen, shares
from mmldm_scale.diffusion.loss import draw
from mmldm_scale.trainables.dit.config import DiTTraining

AUDIO, VIDEO = (4, 2, 2), (4, 3, 3)
NUMBER = 6000


def test_each_sample_has_one_task_and_each_task_its_share():
    config = DiffusionConfig(audio_conditioned=0.1, video_conditioned=0.2, continued=0.3)
    draws = [draw(config, (1, 1, 1), (1, 1, 1), 0, i) for i in range(NUMBER)]
    counted = Counter((d.audio_given, d.video_given, d.continued) for d in draws)
    tasks = {(True, False): 0.1, (False, True): 0.2, (False, False): 0.7}
    expected = {(*t, c): s * (0.3 if c else 0.7) for t, s in tasks.items() for c in (True, False)}  # independent
    assert counted.keys() == expected.keys()
    for task, share in expected.items():
        assert abs(counted[task] / NUMBER - share) < 0.025
    everything, nothing = (DiffusionConfig(continued=share) for share in (1.0, 0.0))
    assert all(draw(everything, (1, 1, 1), (1, 1, 1), 0, i).continued for i in range(100))
    without = [draw(nothing, (1, 1, 1), (1, 1, 1), 0, i) for i in range(100)]
    tasked = [draw(everything, (1, 1, 1), (1, 1, 1), 0, i) for i in range(100)]
    for one, other in zip(without, tasked, strict=True):  # nothing else changes with the share of the continued
        assert (one.time, one.audio_given, one.video_given) == (other.time, other.audio_given, other.video_given)
        assert not one.continued


def test_a_fifth_of_the_continued_see_only_the_sound_before_and_a_fifth_only_the_picture():
    seen = Counter(previous_seen(DiffusionConfig(), 3, i) for i in range(NUMBER))
    assert seen.keys() == {("audio",), ("video",), ("audio", "video")}
    for one in (("audio",), ("video",)):
        assert abs(seen[one] / NUMBER - 0.2) < 0.02
    never = DiffusionConfig(without_previous_audio=0.0, without_previous_video=1.0)
    assert {previous_seen(never, 3, i) for i in range(50)} == {("audio",)}


def test_what_is_drawn_is_drawn_apart():
    """Else the contexts dropped, or the modalities not seen, would always be those of the same tasks or times."""
    config = DiffusionConfig(continued=0.5)
    draws = [draw(config, (1, 1, 1), (1, 1, 1), 0, i) for i in range(NUMBER)]
    dropped = [context_dropped(0.5, 0, i) for i in range(NUMBER)]
    seen = [len(previous_seen(config, 0, i)) == 2 for i in range(NUMBER)]
    assert abs(sum(dropped) / NUMBER - 0.5) < 0.02
    for columns in ([d.continued for d in draws], [d.time < 500 for d in draws], seen):
        together = [drop for drop, column in zip(dropped, columns, strict=True) if column]
        assert abs(sum(together) / len(together) - 0.5) < 0.03
    assert [context_dropped(0.1, 0, i) for i in range(50)] != [context_dropped(0.1, 1, i) for i in range(50)]
    assert not any(context_dropped(0.0, 0, i) for i in range(50))


def test_the_network_gets_the_clip_before_or_zeros():
    audio, video = torch.randn(3, *AUDIO), torch.randn(3, *VIDEO)
    batch = {
        "audio": audio,
        "video": video,
        "audio_given": torch.tensor([True, False, False]),
        "video_given": torch.tensor([False, False, False]),
        "previous_audio": audio + 1,
        "previous_video": video + 1,
        "previous_audio_given": torch.tensor([False, True, False]),
        "previous_video_given": torch.tensor([False, True, True]),
        "label": torch.tensor([4, -1, 0]),
        "time": torch.zeros(3),
    }
    found = conditions(batch)
    assert found.keys() == {"audio_condition", "video_condition", "previous_audio", "previous_video", "label"}
    assert not found["previous_audio"][0].any()
    assert torch.equal(found["previous_audio"][1], audio[1] + 1)
    assert not found["previous_audio"][2].any()
    assert found["previous_video"][1:].any(dim=(1, 2, 3)).all()
    assert torch.equal(found["label"], batch["label"])
    assert {name: value.tolist() for name, value in shares(batch).items()} == {
        "data/continued": [0, 1, 1],
        "data/context": [1, 0, 1],
    }
    nothing = null(found)
    assert nothing.pop("label").tolist() == [-1, -1, -1]
    assert all(not value.any() and value.shape == found[name].shape for name, value in nothing.items())


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["diffusion.continued=0.2"], "diffusion.continued: 0.2: needs model.continuation=true"),
        (["diffusion.continued=1.1", "model.continuation=true"], "diffusion.continued: 1.1: must lie in 0..1"),
        (["diffusion.continued=-0.1"], "diffusion.continued: -0.1: must lie in 0..1"),
        (["diffusion.audio_conditioned=0.96"], r"audio_conditioned \+ video_conditioned .* must lie in 0..1"),
        (["diffusion.without_previous_video=0.9"], "without_previous_video .* must lie in 0..1"),
        (["context.kind=text"], "context.embeddings: .*: must "),
        (["context.embeddings=x.safetensors"], "context.embeddings: .*: must "),
        (["context.kind=class", "model.context_tokens=0"], "context.kind: class: needs model.context_tokens"),
        (["context.dropout=1.5"], "context.dropout: 1.5: must be in 0..1"),
        (["context.kind=video"], "context.kind"),
    ],
)
def test_conditions_that_do_not_fit_together_are_refused(overrides, says):
    with pytest.raises(UserError, match=says) as caught:
        load(DiTTraining, overrides=["shards=somewhere", *overrides])
    assert "\n" not in str(caught.value)
