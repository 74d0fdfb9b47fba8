"""What a record of the log has of the training's state: learning rate, gradient norm, term weights, skipped steps."""

from collections.abc import Mapping, Sequence

from mmldm_scale.training.engine import deepspeed_engine
from mmldm_scale.training.engine.deepspeed_internals import Engine


def of_engine(engine: Engine, ema_lengths: Sequence[float], term_weights: Mapping[str, float]) -> dict[str, float]:
    """Return what the last step of the model's ``engine`` was taken with, by tag."""
    group = deepspeed_engine.base_optimizer(engine).param_groups[0]
    decays = zip(ema_lengths, group["ema_decays"], strict=True)
    values = {
        "learning_rate": group["lr"],
        "gradient_norm": deepspeed_engine.gradient_norm(engine),
        **{f"ema_decay_{length}": decay for length, decay in decays},
        "loss_scale": deepspeed_engine.loss_scale(engine),
    }
    scalars = {f"training/{name}": value for name, value in values.items() if value is not None}
    return scalars | {f"weight/{name}": weight for name, weight in term_weights.items()}


def of_skipping(steps: int, samples: int) -> dict[str, float]:
    """Return the numbers of ``steps`` and of ``samples`` that were skipped so far, by tag."""
    return {"training/skipped_steps": float(steps), "training/skipped_samples": float(samples)}
