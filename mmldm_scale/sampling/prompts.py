"""Texts that samples show, for a DiT trained on text embeddings: ``--prompt`` and ``--prompts``, encoded and cached.

The embeddings are those that docs/train_dit.md makes for training: the last hidden states of a text encoder of
transformers, float16, cut to ``model.context_tokens`` tokens. Each is in a file of ``contexts/`` in the output folder,
named by encoder and text, so that a text is encoded once for all processes and runs.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from mmldm_scale.common.atomic_files import remove_leftovers, write_whole
from mmldm_scale.common.errors import UserError
from mmldm_scale.common.leases import Leases
from mmldm_scale.common.safe_tensors import read_tensors
from mmldm_scale.config import DiTConfig
from mmldm_scale.models import pretrained

FOLDER = "contexts"  # in the output folder
MOST_BYTES = 16 << 20  # of a file of prompts
NAME = "embedding"  # of the tensor in a file
CONFIG = "config.json"  # of a folder in transformers' format
READ_SUFFIXES = (".json", ".txt", ".model", ".safetensors")  # of its files: configuration, tokenizer, weights
ENCODERS = {  # model_type in config.json → class of transformers that is its text encoder; of others AutoModel
    "t5": "T5EncoderModel",
    "umt5": "UMT5EncoderModel",
    "clip": "CLIPTextModel",
    "clip_text_model": "CLIPTextModel",
}


def read_prompts(file: Path) -> list[str]:
    """Return the lines of ``file``, without the empty ones.

    Raises:
        UserError: it cannot be read, has no line, or is no text in UTF-8 of at most MOST_BYTES.
    """
    try:
        if file.stat().st_size > MOST_BYTES:
            raise UserError(f"--prompts {file}: must be at most {MOST_BYTES:,} bytes")
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except OSError as error:
        raise UserError(f"--prompts {file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"--prompts {file}: must be text in UTF-8, one prompt a line") from None
    prompts = [line for line in lines if line]
    if not prompts:
        raise UserError(f"--prompts {file}: has no prompt; must be text in UTF-8, one prompt a line")
    return prompts


def check_encoder(encoder: str | None, model: DiTConfig) -> None:
    """Check that ``encoder`` is a folder in transformers' format, and as wide as the model's contexts; load nothing.

    Raises:
        UserError: it is none, or of another width.
    """
    if encoder is None:
        raise UserError("text_encoder: must be set for a prompt: text_encoder=DIR, that of the training's embeddings")
    file = Path(encoder) / CONFIG
    try:
        config = json.loads(file.read_bytes())
        config = config.get("text_config", config)
        width = next((config[key] for key in ("d_model", "hidden_size") if key in config), None)
    except OSError as error:
        raise UserError(f"text_encoder={encoder}: {file.name} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError, AttributeError, TypeError):
        raise UserError(f"text_encoder={encoder}: {file.name} is not that of a text encoder") from None
    if width != model.context_width:
        raise UserError(
            f"text_encoder={encoder}: its embeddings have width {width}; the model was trained on {model.context_width}"
        )


def encoder_fingerprint(encoder: str) -> str:
    """Return the identity of the text encoder in the folder ``encoder``: that of the files which are read of it.

    A folder as it is published may hold the same weights in several formats, tens of gigabytes of them.
    """
    files = sorted(file for file in Path(encoder).iterdir() if file.suffix in READ_SUFFIXES)
    return pretrained.fingerprint_of_files(Path(encoder), files)


class TextContexts:
    """The embeddings of prompts, made by the encoder in the folder ``encoder`` and kept below ``output``.

    Args:
        fingerprint: of the encoder, which names the files together with the texts.
    """

    def __init__(self, output: Path, encoder: str, fingerprint: str, model: DiTConfig, prompts: Sequence[str]) -> None:
        self._folder, self._encoder, self._model = output / FOLDER, encoder, model
        self._prompts = list(prompts)
        self.fingerprint = fingerprint

    def prompt(self, index: int) -> str:
        """Return the text of sample ``index``: of the prompts, the one of its number modulo their count."""
        return self._prompts[index % len(self._prompts)]

    def prepare(self, leases: Leases, device: torch.device) -> None:
        """Encode the prompts that no file has yet; of several processes one does, the others wait.

        Raises:
            UserError: the encoder cannot be loaded, or the disk is full.
        """
        with leases.writing(self._folder):
            missing = [text for text in dict.fromkeys(self._prompts) if not self._file(text).exists()]
            if not missing:
                return
            self._folder.mkdir(parents=True, exist_ok=True)
            tokenizer, network = _load(self._encoder, device)
            for text in missing:
                remove_leftovers(self._file(text))
                write_whole(self._file(text), save({NAME: self._encode(tokenizer, network, text)}))

    def embedding(self, index: int) -> Tensor:
        """Return the embedding of the prompt of sample ``index``, (n ≤ context_tokens, context_width) float32."""
        return read_tensors(self._file(self.prompt(index)))[NAME].float()

    def _encode(self, tokenizer: Any, network: Any, text: str) -> Tensor:
        tokens = tokenizer(text, truncation=True, max_length=self._model.context_tokens, return_tensors="pt")
        with torch.no_grad():
            hidden: Tensor = network(**tokens.to(network.device)).last_hidden_state[0]
        return hidden.half().cpu().contiguous()

    def _file(self, text: str) -> Path:
        identity = json.dumps([self.fingerprint, self._model.context_tokens, text])
        return self._folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.safetensors"


def _load(encoder: str, device: torch.device) -> tuple[Any, Any]:
    """Return tokenizer and network of the folder ``encoder``; no code of the folder is run, and no pickle read."""
    import transformers  # takes seconds; of jobs without prompts nobody needs it

    try:
        kind = json.loads((Path(encoder) / CONFIG).read_bytes()).get("model_type")
        network_class = getattr(transformers, ENCODERS.get(kind, "AutoModel"))
        tokenizer = transformers.AutoTokenizer.from_pretrained(encoder, local_files_only=True, trust_remote_code=False)
        network = network_class.from_pretrained(
            encoder, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
        )
    except Exception as error:  # a wrong value in the folder can raise any exception in the library
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"text_encoder={encoder}: cannot be loaded by transformers: {reason}") from None
    return tokenizer, network.to(device).eval()
