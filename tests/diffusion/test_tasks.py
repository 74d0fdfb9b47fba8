"""The table of tasks: which model can do which, and what each takes and makes."""

from typing import get_args

import pytest

from mmldm_scale.common.errors import UserError
from mmldm_scale.diffusion.tasks import TASKS, GenerationTask, check_task


def test_the_type_has_the_names_of_the_table():
    assert list(TASKS) == list(get_args(GenerationTask))


@pytest.mark.parametrize(
    ("modalities", "continuation", "able"),
    [
        (("audio", "video"), False, "svg, a2v, v2a, audio, video"),
        (("audio",), False, "svg, audio"),
        (("video",), False, "svg, video"),
        (("audio", "video"), True, ", ".join(TASKS)),
    ],
)
def test_a_task_that_the_model_cannot_do_is_refused_with_those_that_it_can(modalities, continuation, able):
    for task in TASKS:
        if task in able.split(", "):
            check_task(task, modalities, continuation, "runs/dit")
        else:
            with pytest.raises(UserError) as error:
                check_task(task, modalities, continuation, "runs/dit")
            assert str(error.value).startswith(f"task {task}: the model in runs/dit has {' and '.join(modalities)}")
            assert str(error.value).endswith(f"; must be one of {able}")


def test_what_a_task_needs_and_generates():
    needs = {name: task.needs for name, task in TASKS.items() if task.needs}
    assert needs == {
        "a2v": ("audio",),
        "v2a": ("video",),
        "joint_continuation": ("audio", "video"),
        "audio_continuation": ("audio",),
        "video_continuation": ("video",),
    }
    alone = {name: task.generated for name, task in TASKS.items() if len(task.generated) == 1}
    assert alone == {"a2v": ("video",), "v2a": ("audio",), "audio": ("audio",), "video": ("video",)}
