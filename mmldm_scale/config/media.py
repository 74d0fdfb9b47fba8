"""The settings of a clip: its frames, its sound, and the audio image that encodes the sound."""

from dataclasses import dataclass, field
from typing import Literal

from mmldm_scale.config.check import require, require_within

Shape = tuple[int, int, int]  # of a latent or a picture: channels, height, width


@dataclass
class AudioImageConfig:
    """The audio image, a mel spectrogram of a clip's sound; the defaults are those of HiFi-GAN at 22,050 Hz."""

    sample_rate: int = 22050  # [Hz] sample rate of the waveform
    n_fft: int = 1024  # [audio samples] length of the Fourier transform
    win_length: int = 1024  # [audio samples] length of the window; at most n_fft
    hop_length: int = 256  # [audio samples] from one column of the image to the next
    n_mels: int = 80  # [bands] height of the audio image
    f_min: float = 0.0  # [Hz] lower edge of the lowest band
    f_max: float = 8000.0  # [Hz] upper edge of the highest band; at most sample_rate / 2
    floor_db: float = -80.0  # [dB] levels up to this one are the image's darkest value
    ceiling_db: float = 20.0  # [dB] levels from this one on are the image's brightest value

    def __post_init__(self) -> None:
        require_within(self, "media.audio", sample_rate=(1000, 768_000), n_fft=(16, 1 << 20), win_length=(1, 1 << 20))
        require_within(self, "media.audio", n_mels=(1, 4096), f_min=(0, self.f_max))
        highest = self.sample_rate / 2
        require(self.f_max <= highest, "media.audio.f_max", f"{self.f_max:g} Hz: must be at most {highest:g} Hz")
        problem = f"{self.win_length}: must be at most n_fft = {self.n_fft}"
        require(self.win_length <= self.n_fft, "media.audio.win_length", problem)
        problem = f"{self.floor_db:g}: must be less than ceiling_db = {self.ceiling_db:g}"
        require(self.floor_db < self.ceiling_db, "media.audio.floor_db", problem)
        require(self.hop_length >= 1, "media.audio.hop_length", f"{self.hop_length}: must be at least 1")


@dataclass
class MediaConfig:
    """A clip: ``frames`` pictures of ``size`` × ``size`` pixels at ``fps``, and the sound of the same time."""

    frames: int = 16  # [frames] length of a clip
    fps: float = 10.0  # [frames/s] videos are resampled to this rate
    size: int = 256  # [pixels] height and width of a frame
    fit: Literal["crop", "pad"] = "crop"  # how a picture that is not square is made square
    audio: AudioImageConfig = field(default_factory=AudioImageConfig)  # the audio image

    def __post_init__(self) -> None:
        require_within(self, "media", frames=(1, 100_000), fps=(0.001, 1000), size=(8, 8192))

    @property
    def seconds(self) -> float:
        """Length of a clip in seconds."""
        return self.frames / self.fps

    @property
    def audio_samples(self) -> int:
        """Length of a clip's waveform in samples."""
        return round(self.seconds * self.audio.sample_rate)

    @property
    def mel_frames(self) -> int:
        """Frames of a clip's mel spectrogram; the last one may exceed the clip's end."""
        return -(-self.audio_samples // self.audio.hop_length)

    @property
    def audio_image_warnings(self) -> list[str]:
        """A line for each side of the audio image that is shorter than the mel spectrogram's, which loses detail."""
        hop, bands = self.audio.hop_length, self.audio.n_mels
        lines = []
        if self.mel_frames > self.size:
            fits = -(-self.audio_samples // self.size)
            lines.append(
                f"media.audio.hop_length={hop}: {self.mel_frames} mel frames in the {self.size} columns of the audio "
                f"image, which loses detail; hop_length={fits} or more fits"
            )
        if bands > self.size:
            lines.append(
                f"media.audio.n_mels={bands}: {bands} mel bands in the {self.size} rows of the audio image, which "
                f"loses detail; n_mels={self.size} or fewer fits"
            )
        return lines
