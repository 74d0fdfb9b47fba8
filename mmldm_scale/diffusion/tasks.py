"""What a sample can be made from and what comes out: the table of tasks of ``mmldm sample``.

The network is the same for all of them. A task says which modality of the same window it is given clean (section 3.3),
which modalities of the previous clip it sees (the public code's long videos), and which modalities of the result are
written. "audio" and "video" denoise all that the model has and write one of it.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from mmldm_scale.common.errors import UserError
from mmldm_scale.common.modalities import MODALITIES, Modality

GenerationTask = Literal[
    "svg", "a2v", "v2a", "audio", "video", "joint_continuation", "audio_continuation", "video_continuation"
]


@dataclass(frozen=True)
class Task:
    """A row of the table.

    Attributes:
        name: on the command line, and of the samples' files.
        title: what a page calls its samples.
        given: the modality whose clean latent is the condition; None: none.
        previous: the modalities of the clip before the sample that the network sees; (): the sample continues nothing.
        result: the modalities of a sample, the given one included, as far as the model has them.
    """

    name: GenerationTask
    title: str
    given: Modality | None = None
    previous: tuple[Modality, ...] = ()
    result: tuple[Modality, ...] = MODALITIES

    @property
    def needs(self) -> tuple[Modality, ...]:
        """The modalities that an input must have; (): the task takes no input."""
        return self.previous if self.given is None else (self.given,)

    @property
    def generated(self) -> tuple[Modality, ...]:
        """The modalities of a sample that are not given."""
        return tuple(modality for modality in self.result if modality != self.given)

    def possible(self, modalities: Collection[Modality], continuation: bool) -> bool:
        """Return whether a model of ``modalities``, which sees previous clips if ``continuation``, can do the task."""
        if self.needs and len(modalities) < len(MODALITIES):
            return False
        return any(modality in modalities for modality in self.generated) and (continuation or not self.previous)


_ROWS = (
    Task("svg", "Generated without input"),
    Task("a2v", "Picture to given sound", given="audio"),
    Task("v2a", "Sound to given picture", given="video"),
    Task("audio", "Sound without input", result=("audio",)),
    Task("video", "Picture without input", result=("video",)),
    Task("joint_continuation", "Continued picture and sound", previous=MODALITIES),
    Task("audio_continuation", "Continued sound, with a picture", previous=("audio",)),
    Task("video_continuation", "Continued picture, with sound", previous=("video",)),
)
TASKS: dict[str, Task] = {task.name: task for task in _ROWS}
GIVEN: dict[str, Modality | None] = {name: task.given for name, task in TASKS.items()}


def check_task(task: str, modalities: Collection[Modality], continuation: bool, model: str) -> None:
    """Raise UserError, with the tasks that the model can do, unless it can do ``task``.

    Args:
        modalities: those that the model has.
        continuation: whether it sees the previous clip.
        model: what the message calls it, such as its folder.
    """
    allowed = [name for name, row in TASKS.items() if row.possible(modalities, continuation)]
    if task not in allowed:
        raise UserError(
            f"task {task}: the model in {model} has {' and '.join(modalities)}"
            f"{' alone' if len(modalities) == 1 else ''} and model.continuation={str(continuation).lower()}; must be "
            f"one of {', '.join(allowed)}"
        )
