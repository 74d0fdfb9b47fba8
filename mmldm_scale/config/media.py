"""The settings of a clip: its frames, its sound, and the audio image that encodes the sound."""

from dataclasses import dataclass, field
from typing import Literal

from mmldm_scale.config.check import require

Shape = tuple[int, int, int]  # of a latent or a picture: channels, height, width


@dataclass
class AudioImageConfig:
    """The mel spectrogram that stands for a clip's sound; the defaults are HiFi-GAN's at 22,050 Hz."""

    sample_rate: int = 22050  # Hz
    n_fft: int = 1024  # samples
    win_length: int = 1024  # samples
    hop_length: int = 256  # samples
    n_mels: int = 80
    f_min: float = 0.0  # Hz
    f_max: float = 8000.0  # Hz
    floor_db: float = -80.0  # this level and below is the image's darkest value
    ceiling_db: float = 20.0  # this level and above is its brightest

    def __post_init__(self) -> None:
        require(self.f_max <= self.sample_rate / 2, "media.audio.f_max", f"at most {self.sample_rate / 2:g} Hz fits")
        require(self.win_length <= self.n_fft, "media.audio.win_length", f"at most n_fft = {self.n_fft} fits")
        require(self.floor_db < self.ceiling_db, "media.audio.floor_db", "must lie below ceiling_db")
        require(min(self.hop_length, self.n_mels) > 0, "media.audio", "hop_length and n_mels must be positive")


@dataclass
class MediaConfig:
    """A clip: ``frames`` pictures of ``size`` × ``size`` pixels at ``fps`` and the sound of just that time."""

    frames: int = 16
    fps: float = 10.0  # frames per second
    size: int = 256  # pixels
    fit: Literal["crop", "pad"] = "crop"  # how a picture that is not square becomes square
    audio: AudioImageConfig = field(default_factory=AudioImageConfig)

    def __post_init__(self) -> None:
        require(self.frames >= 1, "media.frames", "must be at least 1")
        require(self.fps > 0, "media.fps", "must be positive")
        require(self.size >= 8, "media.size", "must be at least 8 pixels")

    @property
    def seconds(self) -> float:
        """Length of a clip in seconds."""
        return self.frames / self.fps

    @property
    def audio_samples(self) -> int:
        """Length of a clip's waveform in samples."""
        return round(self.seconds * self.audio.sample_rate)
