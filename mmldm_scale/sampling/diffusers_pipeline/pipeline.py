"""``MMLDMPipeline``: the DiT, its autoencoder and vocoder as a pipeline of diffusers.

The DiT's steps run through ``pipe.scheduler``, which may be any scheduler of diffusers that fits what the model
predicts. Noise comes from torch generators, as in diffusers: not from (seed, index) as in
:class:`~mmldm_scale.sampling.pipeline.Pipeline`. With that one's noise as ``latents`` and ``decoder_latents``, both
make the same samples up to rounding.

Shapes: B samples; latents of a modality (B, C, H, W), their packed form (B, N); decoder latents (B, c, s, s) of audio
images, (B, F, c, s, s) of frames.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.outputs import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from mmldm_scale.common.errors import UserError
from mmldm_scale.common.modalities import Modality, as_pair
from mmldm_scale.config import DecodingConfig
from mmldm_scale.diffusion.normalise import normalise, restore
from mmldm_scale.diffusion.tasks import GIVEN, TASKS, GenerationTask
from mmldm_scale.media.audio_image import AudioImage
from mmldm_scale.media.pixels import to_signal
from mmldm_scale.media.vocoder import GriffinLim, Vocoder
from mmldm_scale.models.autoencoder.decoding import check_decoding
from mmldm_scale.models.autoencoder.model import Autoencoder
from mmldm_scale.sampling.diffusers_pipeline import denoising, loading, media_inputs, saving
from mmldm_scale.sampling.diffusers_pipeline.parts import MMLDMAutoencoder, MMLDMDiT, cast

OutputType = Literal["np", "pt", "pil", "latent"]
Generators = torch.Generator | list[torch.Generator]
ByModality = float | Mapping[str, float]
Callback = Callable[["MMLDMPipeline", int, Any, dict[str, Any]], dict[str, Any]]
DECODER_ARGUMENTS = {  # by the keys of DecodingConfig in messages
    "decoding.sampler": "decoder_sampler",
    "decoding.steps": "decoder_num_inference_steps",
    "decoding.audio_guidance": "decoder_guidance_scale",
    "decoding.video_guidance": "decoder_guidance_scale",
    "decoding.pictures": "decode_chunk_size",
}


@dataclass
class MMLDMPipelineOutput(BaseOutput):
    """What the pipeline returns; None for a modality that the model does not have.

    Attributes:
        frames: of B videos: "np" (B, F, S, S, 3) float32 in [0, 1], "pt" (B, F, 3, S, S) likewise, "pil" a list of F
            pictures each, "latent" the normalised latents (B, C, H, W).
        audios: B mono waveforms (B, samples) float32 in [-1, 1], a tensor with "pt", else an array; "latent": latents.
        sampling_rate: of the waveforms, in Hz.
        fps: frames per second.
    """

    frames: Any = None
    audios: Any = None
    sampling_rate: int | None = None
    fps: float | None = None


class MMLDMPipeline(DiffusionPipeline):
    """Videos with sound from MM-LDM; called, it samples.

    Args:
        dit: the diffusion transformer, with the description of latents and media.
        autoencoder: the autoencoder without ``vae`` and U-Nets.
        vae: the KL-VAE.
        scheduler: of the DiT's steps.
        unet: the signal decoder's U-Net; or ``unet_audio`` and ``unet_video`` if each modality has its own.
        vocoder: a SpeechT5HifiGan of transformers; None: Griffin-Lim.
    """

    model_cpu_offload_seq: Any = "dit->unet->unet_audio->unet_video->vae->vocoder"
    _optional_components = ["unet", "unet_audio", "unet_video", "vocoder"]  # noqa: RUF012  (diffusers' own form)
    _exclude_from_cpu_offload = ["autoencoder"]  # noqa: RUF012  (small, and called by methods of its own)
    _callback_tensor_inputs = ["latents"]  # noqa: RUF012

    def __init__(
        self,
        dit: MMLDMDiT,
        autoencoder: MMLDMAutoencoder,
        vae: AutoencoderKL,
        scheduler: SchedulerMixin,
        unet: UNet2DConditionModel | None = None,
        unet_audio: UNet2DConditionModel | None = None,
        unet_video: UNet2DConditionModel | None = None,
        vocoder: torch.nn.Module | None = None,
    ) -> None:
        super().__init__()
        unets = {"unet": unet, "unet_audio": unet_audio, "unet_video": unet_video}
        self.register_modules(dit=dit, autoencoder=autoencoder, vae=vae, scheduler=scheduler, vocoder=vocoder, **unets)
        self.media = dit.description.media
        self.audio_image = AudioImage(self.media)
        self._interrupt = False
        self._joined()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **options: Any) -> "MMLDMPipeline":
        """Load a folder that ``mmldm export --format diffusers`` or :meth:`save_pretrained` wrote.

        No code in it is run and nothing is unpickled, whatever the folder holds.

        Args:
            pretrained_model_name_or_path: the folder, or the name of a repository on the Hub, which is downloaded.
            options: ``torch_dtype``; parts in place of the folder's, by their names; for a repository ``revision``,
                ``token``, ``cache_dir``, ``local_files_only``, ``force_download``.

        Raises:
            UserError: something is missing, damaged or of another kind, or an option is unknown.
        """
        parts = loading.load(str(pretrained_model_name_or_path), cls._get_signature_keys(cls)[0], options)
        pipe = cls(**parts)
        pipe.register_to_config(_name_or_path=str(pretrained_model_name_or_path))
        return pipe

    def save_pretrained(  # type: ignore[override]  # its other arguments are options
        self, save_directory: str | os.PathLike[str], **options: Any
    ) -> None:
        """Write a folder for :meth:`from_pretrained`; ``options`` as for diffusers' own, safetensors only.

        The model card and the code for programs without this package come from the folder that the pipeline is from.
        """
        saving.save(self, save_directory, super().save_pretrained, options)

    @property
    def guidance_scale(self) -> ByModality:
        """The guidance of the present call; a callback may change ``_guidance_scale``."""
        return self._guidance_scale

    @property
    def num_timesteps(self) -> int:
        """Number of the scheduler's steps in the present call."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether a callback has set ``_interrupt``: the remaining steps of the DiT are left out."""
        return self._interrupt

    @torch.no_grad()
    def __call__(
        self,
        task: GenerationTask = "svg",
        num_inference_steps: int = 50,
        guidance_scale: ByModality = 2.5,
        *,
        class_guidance: float | None = None,
        guidance_interval: Sequence[float] = (0.0, 1.0),
        audio: Any = None,
        video: Any = None,
        sampling_rate: float | None = None,
        class_labels: str | int | Sequence[str | int] | None = None,
        prompt_embeds: Tensor | Sequence[Tensor] | None = None,
        num_videos_per_prompt: int = 1,
        generator: Generators | None = None,
        latents: Tensor | Mapping[str, Tensor] | None = None,
        eta: float = 0.0,
        decoder_num_inference_steps: int | None = None,
        decoder_guidance_scale: ByModality = 1.0,
        decoder_sampler: str = "ddim",
        decoder_latents: Mapping[str, Tensor] | None = None,
        decode_chunk_size: int | None = None,
        output_type: OutputType = "np",
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> MMLDMPipelineOutput | tuple[Any, ...]:
        """Sample.

        Args:
            task: "svg" makes what the model has, "audio" and "video" return one of it alone, "a2v" makes video to
                ``audio``, "v2a" sound to ``video``.
            num_inference_steps: steps of the scheduler; how many it allows is its business.
            guidance_scale: of the conditions, for both modalities or {"audio": …, "video": …}; 1: none, half the work.
                A given modality needs none.
            class_guidance: of class or text beside a given modality; default: as ``guidance_scale``.
            guidance_interval: low and high; guidance applies in this part of the process, 0 clean, 1 noise.
            audio: for a2v, one sound for each sample (:func:`.media_inputs.sounds`).
            video: for v2a, one video for each sample (:func:`.media_inputs.videos`).
            sampling_rate: of ``audio`` given as arrays, in Hz; default: the model's.
            class_labels: names or numbers of classes, of a model trained on classes.
            prompt_embeds: embeddings of texts, (B, n, width) or a list of (n, width), of a model trained on texts.
            num_videos_per_prompt: samples for each condition, and without any as many samples in all.
            generator: one of all noise, or one for each sample.
            latents: normal noise to begin with, by modality, or of a model's only one; default: from ``generator``.
            eta: of DDIM.
            decoder_num_inference_steps: steps of the signal decoder; default: 50, or a distilled one's most.
            decoder_guidance_scale: of the signal decoder, at least 1.
            decoder_sampler: "ddim", "dpm++" or "unipc".
            decoder_latents: normal noise that decoding begins with, by modality; default: from ``generator``.
            decode_chunk_size: how many pictures are decoded together; default: all.
            output_type: "np", "pt", "pil" or "latent", see :class:`MMLDMPipelineOutput`.
            return_dict: False: return (frames, audios).
            callback_on_step_end: called as (pipe, step, timestep, {"latents": {modality: tensor}}) after each step of
                the DiT; what it returns replaces the latents.
            callback_on_step_end_tensor_inputs: what it gets: "latents".

        Raises:
            ValueError: arguments do not fit each other or the model.
            UserError: a sound, a video or a file cannot be used; a class is unknown; the decoder cannot draw so.
        """
        self._check(task, output_type, callback_on_step_end_tensor_inputs)
        decoding = self._decoding(
            task, decoder_sampler, decoder_num_inference_steps, decoder_guidance_scale, decode_chunk_size
        )
        self._class_guidance, self._guidance_interval = class_guidance, tuple(guidance_interval)
        self._guidance_scale, self._interrupt = guidance_scale, False
        given = self._given(task, audio, video, sampling_rate)
        contexts = _contexts(class_labels, prompt_embeds)
        repeats = num_videos_per_prompt
        prompts = max(len(given), *map(len, contexts.values()), 0) or max(1, _rows(latents) // repeats)
        count = prompts * repeats
        given = media_inputs.one_for_each(str(GIVEN[task]), given, prompts, repeats) if given else []
        contexts = {name: media_inputs.one_for_each(name, rows, prompts, repeats) for name, rows in contexts.items()}
        noise = self._noise(self.dit.description.shapes, count, generator, latents, "latents")
        timesteps = denoising.set_timesteps(self.scheduler, num_inference_steps, self._execution_device)
        options = denoising.step_options(self.scheduler, generator, eta)
        denoised = self._denoise(task, noise, given, contexts, timesteps, options, callback_on_step_end)
        if output_type == "latent":
            output = MMLDMPipelineOutput(denoised.get("video"), denoised.get("audio"))
        else:
            start = self._noise(self._decoder_shapes(), count, generator, decoder_latents, "decoder_latents")
            output = self._output(*self._decode(denoised, start, decoding), task, given, output_type)
        if "video" not in TASKS[task].result:
            output.frames = output.fps = None
        if "audio" not in TASKS[task].result:
            output.audios = output.sampling_rate = None
        self.maybe_free_model_hooks()
        return output if return_dict else (output.frames, output.audios)

    def _check(self, task: str, output_type: str, callback_inputs: Sequence[str]) -> None:
        """Raise ValueError or UserError if these arguments are not possible with this model and scheduler."""
        tasks = [name for name, row in TASKS.items() if not row.previous]  # no continuations
        if task not in tasks:
            raise ValueError(f"task: {task!r:.80}: must be one of {', '.join(tasks)}")
        if output_type not in ("np", "pt", "pil", "latent"):
            raise ValueError(f"output_type: {output_type!r:.80}: must be np, pt, pil or latent")
        if set(callback_inputs) - set(self._callback_tensor_inputs):
            raise ValueError(f"callback_on_step_end_tensor_inputs: {[*callback_inputs]}: only 'latents' is possible")
        self.dit.description.check_task(task)
        denoising.check_scheduler(self.scheduler, self.dit.description.diffusion)

    def _decoding(
        self, task: GenerationTask, sampler: str, steps: int | None, guidance: ByModality, chunk: int | None
    ) -> DecodingConfig:
        """Return the settings of the signal decoder; raise UserError if it cannot draw so."""
        distillation = self.autoencoder.model.distillation
        if steps is None:
            steps = max(distillation.steps) if distillation else DecodingConfig.steps
        scales = dict.fromkeys(("audio", "video"), 1.0)
        for name in TASKS[task].generated:
            if name in self.dit.description.shapes:
                scales[name] = denoising.scale_of(guidance, name, "decoder_guidance_scale")
        with _decoder_arguments():
            decoding = DecodingConfig(sampler, steps, scales["audio"], scales["video"], chunk or 0)
            check_decoding(decoding, distillation)
        return decoding

    def _given(self, task: GenerationTask, audio: Any, video: Any, sampling_rate: float | None) -> list[np.ndarray]:
        """Return the sounds or frames that ``task`` is given; [] if it is given none."""
        name, values = GIVEN[task], {"audio": audio, "video": video}
        for other in values:
            if (values[other] is not None) != (other == name):
                needs = f"task {task!r} " + ("needs it" if other == name else "takes none")
                raise ValueError(f"{other}: {needs}")
        if name is None:
            return []
        if name == "audio":
            return media_inputs.sounds(audio, self.media, sampling_rate)
        return media_inputs.videos(video, self.media)

    def _noise(
        self,
        shapes: Mapping[Modality, tuple[int, ...]],
        count: int,
        generator: Generators | None,
        own: Tensor | Mapping[str, Tensor] | None,
        name: str,
    ) -> dict[Modality, Tensor]:
        """Return noise (``count``, *shape) of each modality: ``own``, the argument ``name``, or from ``generator``."""
        if isinstance(generator, list) and len(generator) != count:
            raise ValueError(f"generator: {len(generator)} generators for {count} samples (num_videos_per_prompt)")
        device = self._execution_device
        if own is None:
            draws = {key: (count, *shape) for key, shape in shapes.items()}
            return {key: randn_tensor(shape, generator, device, torch.float32) for key, shape in draws.items()}
        parts: Any = {next(iter(shapes)): own} if isinstance(own, Tensor) and len(shapes) == 1 else own
        wanted = {str(key): (count, *shape) for key, shape in shapes.items()}
        found = {key: tuple(part.shape) for key, part in parts.items()} if isinstance(parts, Mapping) else type(own)
        if found != wanted:
            raise ValueError(f"{name}: {found}: must be tensors of shapes {wanted}")
        return {key: parts[key].to(device, torch.float32) for key in shapes}

    def _denoise(
        self,
        task: GenerationTask,
        noise: dict[Modality, Tensor],
        given: list[np.ndarray],
        contexts: Mapping[str, list[Any]],
        timesteps: Tensor,
        options: Mapping[str, Any],
        callback: Callback | None,
    ) -> dict[Modality, Tensor]:
        """Return the normalised latents, including those of ``given``."""
        name, device = GIVEN[task], self._execution_device
        fixed = {name: self._encode(given, name)} if name else {}
        labels, embeddings = (contexts.get(argument, []) for argument in ("class_labels", "prompt_embeds"))
        context = self.dit.description.context_arguments(labels, embeddings, device, "prompt_embeds")
        request = denoising.Request(self.dit, self.scheduler, noise, fixed, context)
        self._num_timesteps = len(timesteps)
        packed = request.start()
        with self.progress_bar(total=len(timesteps)) as progress:
            for i, time in enumerate(timesteps):
                if self.interrupt:
                    continue
                scales = self.guidance_scale, request.shapes, self._class_guidance, self._guidance_interval
                packed = request.step(packed, time, denoising.guidance(*scales), options)
                if callback is not None:
                    latents = request.unpack(packed)
                    packed = request.pack(callback(self, i, time, {"latents": latents}).get("latents", latents))
                progress.update()
        return {**request.unpack(packed), **fixed}

    def _encode(self, given: list[np.ndarray], modality: Modality) -> Tensor:
        """Return the normalised latents (B, C, H, W) of sounds or videos, the means of their posteriors."""
        device, model = self._execution_device, self._joined()
        with self._vae_in_float32():
            if modality == "audio":
                waves = torch.from_numpy(np.stack(given)).to(device)
                posterior = model.encode_sound(self.audio_image.encode(waves))
            else:
                posterior = model.encode_frames(to_signal(np.stack(given)).to(device))
        return normalise(posterior.mean, self.dit.description.statistics[modality])

    def _decoder_shapes(self) -> dict[Modality, tuple[int, ...]]:
        """Return the shapes of the noise that the pictures of a sample are decoded from."""
        shape = self.autoencoder.model.noise_shape
        every: dict[Modality, tuple[int, ...]] = {"audio": shape, "video": (self.media.frames, *shape)}
        return {name: every[name] for name in self.dit.description.shapes}

    def _decode(
        self, latents: Mapping[Modality, Tensor], noise: Mapping[Modality, Tensor], decoding: DecodingConfig
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return frames (B, F, 3, S, S) in [-1, 1] and waveforms (B, samples), float32."""
        statistics, model = self.dit.description.statistics, self._joined()
        restored = {name: restore(latent, statistics[name]) for name, latent in latents.items()}
        for unet in self._unets().values():
            if hasattr(unet, "_hf_hook"):  # offloaded; the decoder may call the U-Net's layers one by one
                unet._hf_hook.pre_forward(unet)
        calls = denoising.decoder_calls(model, noise, decoding)
        with self._vae_in_float32(), self.progress_bar(total=calls) as progress:
            # A hook's result would replace the decoder's.
            hook = model.decoder.register_forward_hook(lambda *_: progress.update() and None)
            try:
                frames, audio_image = model.decode(*as_pair(restored), *as_pair(noise), decoding)
            finally:
                hook.remove()
        if audio_image is None:
            return frames, None
        decibels = self.audio_image.to_decibels(audio_image.float())
        return frames, self._vocoder()(decibels, self.media.audio_samples).float()

    def _output(
        self,
        frames: Tensor | None,
        sound: Tensor | None,
        task: GenerationTask,
        given: list[np.ndarray],
        output_type: OutputType,
    ) -> MMLDMPipelineOutput:
        """Return the result, in which what was given is as it was given."""
        if GIVEN[task] == "audio":
            sound = torch.from_numpy(np.stack(given))
        elif GIVEN[task] == "video":
            frames = to_signal(np.stack(given))
        output = MMLDMPipelineOutput()
        if frames is not None:
            levels = frames.float().add(1).div(2).clamp(0, 1)  # (B, F, 3, S, S)
            pictures: Any = levels if output_type == "pt" else levels.movedim(2, -1).cpu().numpy()
            if output_type == "pil":
                pictures = [self.numpy_to_pil(video) for video in pictures]
            output.frames, output.fps = pictures, self.media.fps
        if sound is not None:
            output.audios = sound if output_type == "pt" else sound.cpu().numpy()
            output.sampling_rate = self.media.audio.sample_rate
        return output

    def _unets(self) -> dict[str, UNet2DConditionModel]:
        """Return the U-Nets by the names of their parts."""
        return {name: getattr(self, name) for name in self.autoencoder.unet_names}

    def _joined(self) -> Autoencoder:
        """Return the whole autoencoder, with the KL-VAE and the U-Nets that the pipeline has now."""
        return self.autoencoder.joined(self.vae, self._unets())

    def _vocoder(self) -> Vocoder:
        if self.vocoder is None:
            return GriffinLim(self.media.audio)
        from mmldm_scale.media.hifi_gan import HifiGan  # imports transformers, which takes a second

        return HifiGan(self.vocoder)

    @contextmanager
    def _vae_in_float32(self) -> Iterator[None]:
        """Cast a KL-VAE in float16 to float32 for the block, since its activations overflow float16."""
        half = self.vae.dtype == torch.float16
        if half:
            cast(self.vae, torch.float32)
        try:
            yield
        finally:
            if half:
                cast(self.vae, torch.float16)


def _rows(latents: Tensor | Mapping[str, Tensor] | None) -> int:
    """Return of how many samples the ``latents`` are; 0 if there are none."""
    if isinstance(latents, Mapping):
        latents = next(iter(latents.values()), None)
    return 0 if latents is None else len(latents)


def _contexts(labels: Any, embeddings: Any) -> dict[str, list[Any]]:
    """Return the contexts by argument, one for each prompt, without those that are None; raise ValueError for both."""
    if labels is not None and embeddings is not None:
        raise ValueError("class_labels, prompt_embeds: only one of them is possible")
    if labels is not None:
        given = [labels] if isinstance(labels, str | int) else labels
        return {"class_labels": [label if isinstance(label, str) else int(label) for label in given]}
    if embeddings is not None:
        single = isinstance(embeddings, Tensor) and embeddings.ndim != 3
        return {"prompt_embeds": [embeddings] if single else [*embeddings]}
    return {}


@contextmanager
def _decoder_arguments() -> Iterator[None]:
    """Name in the UserErrors of the block the pipeline's arguments instead of the keys of DecodingConfig."""
    try:
        yield
    except UserError as error:
        key, _, problem = str(error).partition(": ")
        raise UserError(f"{DECODER_ARGUMENTS.get(key, key)}: {problem}") from None
