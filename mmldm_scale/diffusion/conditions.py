"""What a training batch's samples are conditioned on, as the DiT takes it (section 3.3)."""

from torch import Tensor


def conditions(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the keyword arguments of ``DiT.forward`` that the samples of ``batch`` are conditioned on.

    Args:
        batch: as :func:`mmldm_scale.diffusion.objective.losses` takes it: clean latents "audio" and "video",
            (B, C, H, W), and "audio_given" and "video_given", (B,) boolean.

    Returns:
        "audio_condition" and "video_condition": the clean latents, zeros (null) for the samples without.
    """
    return {f"{name}_condition": batch[name] * batch[f"{name}_given"].view(-1, 1, 1, 1) for name in ("audio", "video")}
