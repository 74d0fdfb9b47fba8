"""CLAP's audio embedding (contrastive language-audio pretraining), through transformers' implementation.

Source: Wu et al. 2023, "Large-scale contrastive language-audio pretraining with feature fusion and keyword-to-caption
augmentation" (arXiv 2211.06687). The weights are a folder in transformers' format, such as a copy of
``laion/clap-htsat-unfused``, with ``config.json``, ``preprocessor_config.json`` and ``model.safetensors``. The part for
texts is not loaded.

The network hears 10 s at 48 kHz. A shorter clip is repeated as often as it fits, then followed by zeros, as
``preprocessor_config.json`` says. Of a longer clip the first 10 s are heard: the authors' program chooses 10 s at
random, and here nothing is drawn. Models with feature fusion, which choose parts of a longer clip at random, too, are
refused.
"""

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import ClapAudioConfig, ClapAudioModelWithProjection, ClapConfig, ClapFeatureExtractor

from mmldm_scale.common.atomic_files import sha256
from mmldm_scale.common.errors import UserError
from mmldm_scale.common.safe_tensors import read_tensors
from mmldm_scale.evaluation.clip_sets.clip_set import ClipRecord
from mmldm_scale.evaluation.extractors.inference import reproducible_inference
from mmldm_scale.evaluation.extractors.sound_extractor import REASON_LENGTH, SoundExtractor, load_state

CONFIG, PREPROCESSING = "config.json", "preprocessor_config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
PREFIXES = ("audio_model.", "audio_projection.")  # of the tensors for sound


class Clap(SoundExtractor):
    """CLAP's audio embedding; the module's text says what it computes.

    Args:
        path: a folder in transformers' format.
        device: where the network runs.
        normalise: whether vectors have length 1, as in comparisons with texts.
        seconds: to this duration each waveform is cut, or padded with zeros; None leaves it as it is.

    Raises:
        UserError: the folder cannot be loaded, or holds another model.
    """

    name = "clap"
    title = "CLAP audio embedding"
    dimension = 512
    weights = "clap"
    min_samples = 1

    def __init__(
        self, path: Path | None, device: torch.device, *, normalise: bool = True, seconds: float | None = None
    ) -> None:
        super().__init__(path, device, seconds=seconds)
        self.normalise = normalise
        self.frontend = ClapFeatureExtractor(**_read_json(self.weights_path / PREPROCESSING, "feature_extractor_type"))
        if self.frontend.truncation != "rand_trunc":
            raise UserError(f"{self.path}: is a CLAP with feature fusion; give one without, such as clap-htsat-unfused")
        self.sample_rate = self.frontend.sampling_rate
        values = _read_json(self.weights_path / CONFIG, "audio_config")
        try:
            config = ClapConfig.from_dict(values).audio_config
            if not isinstance(config, ClapAudioConfig):
                raise TypeError("audio_config is no configuration")
            with torch.device("meta"):
                self.network = ClapAudioModelWithProjection(config)
        except Exception as error:  # a wrong value in the file can raise any exception in the library
            raise UserError(
                f"{self.weights_path / CONFIG}: is not CLAP's: {' '.join(str(error).split())[:300]}"
            ) from None
        self.dimension = config.projection_dim
        self._load_weights()
        self.network.to(device)  # type: ignore[arg-type]  # transformers wraps the method untyped

    def prepare(self, clip: ClipRecord) -> Tensor:
        """Return the log-mel picture of ``clip``, (1, T, 64), where T frames are 10 s."""
        waveform = super().prepare(clip)[: self.frontend.nb_max_samples].numpy()
        pictures = self.frontend(waveform, sampling_rate=self.sample_rate, return_tensors="np")["input_features"]
        return torch.from_numpy(pictures[0]).float()

    @reproducible_inference()
    def features(self, inputs: Tensor) -> Tensor:
        """Return the (B, 512) vectors of the pictures ``inputs`` (B, 1, T, 64)."""
        vectors: Tensor = self.network(input_features=inputs.to(self.device)).audio_embeds.float()
        return (F.normalize(vectors, dim=-1) if self.normalise else vectors).cpu()

    def fingerprint(self) -> str:
        """Return the sha256, in hex, of the file of weights in the folder."""
        return sha256(self._weights_file())

    def _load_weights(self) -> None:
        file = self._weights_file()
        state = {name: tensor for prefix in PREFIXES for name, tensor in read_tensors(file, prefix).items()}
        load_state(self.network, state, file, "transformers' CLAP")

    def _weights_file(self) -> Path:
        files = [self.weights_path / name for name in WEIGHTS if (self.weights_path / name).is_file()]
        if not files:
            raise UserError(f"{self.weights_path}: holds no weights; must have {' or '.join(WEIGHTS)}")
        return files[0]


def _read_json(file: Path, key: str) -> dict[str, Any]:
    """Return the content of ``file``, an object that must have ``key``; raise UserError if it cannot be read."""
    try:
        values = json.loads(file.read_text())
        if isinstance(values, dict) and key in values:
            return values
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read: {' '.join(str(error).split())[:REASON_LENGTH]}") from None
    raise UserError(f"{file}: is not CLAP's: has no {key}")
