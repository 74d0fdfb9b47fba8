"""Makes the feature files of samples and reference that are missing, together with other jobs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mmldm_scale.common.errors import UserError
from mmldm_scale.common.leases import Leases
from mmldm_scale.evaluation.clip_sets.clip_set import ClipRecord, ClipSet
from mmldm_scale.evaluation.conform import conform
from mmldm_scale.evaluation.extractors.extractor import Extractor
from mmldm_scale.evaluation.features.blocks import DIGITS, Block, FeatureFolder, digest, split
from mmldm_scale.evaluation.protocols.protocol import Protocol
from mmldm_scale.media.clip import MediaError

STREAMED = 32  # blocks that are read at a time where all would not fit in memory


@dataclass(frozen=True)
class Network:
    """An extractor with its options.

    Attributes:
        name: of the extractor.
        options: of it, JSON values.
        extractor: loaded.
        fingerprint: of its weights.
    """

    name: str
    options: Mapping[str, object]
    extractor: Extractor
    fingerprint: str

    @property
    def signals(self) -> tuple[str, ...]:
        """The signals that it reads: "frames", "waveform" or both."""
        return ("frames", "waveform") if self.extractor.reads not in ("frames", "waveform") else (self.extractor.reads,)


class MeasuredSet:
    """The clips of a set that are measured, and their feature files.

    Attributes:
        role: "samples" or "reference", for messages.
        clips: the set.
        positions: of the measured clips in it, ascending.
        blocks: these positions, in blocks.
        folders: the feature files by the key of the network.
    """

    def __init__(
        self,
        role: str,
        clips: ClipSet,
        positions: Sequence[int],
        protocol: Protocol,
        networks: Mapping[str, Network],
        folder: Path,
    ) -> None:
        self.role, self.clips, self.positions = role, clips, positions
        self.protocol, self.networks = protocol, networks
        self.fingerprint = clips.fingerprint()
        self.folder = folder / self.fingerprint[:DIGITS]
        self.blocks = split(positions, protocol.batch_size)
        digests = {key: digest(self._choices(network)) for key, network in networks.items()}
        self.folders = {
            key: FeatureFolder(self.folder / f"{network.name}-{digests[key][:DIGITS]}", network.extractor.dimension)
            for key, network in networks.items()
        }
        self._lease = digest(sorted(digests.values()))[:DIGITS]

    @property
    def names(self) -> list[str]:
        """Names of the measured clips, in order."""
        return [self.clips.names[position] for position in self.positions]

    def lacks(self, block: Block) -> bool:
        """Return whether ``block`` has no file of a network."""
        return not all(folder.has(block) for folder in self.folders.values())

    def lease(self, block: Block) -> str:
        """Return the name of the lease on ``block``."""
        return f"{self._lease}-{block.name}"

    def features(self, key: str) -> np.ndarray:
        """Return the vectors of all measured clips by the network ``key``, (N, D) float32."""
        return self.folders[key].read(self.blocks, self.names)

    def stream(self, key: str) -> Iterator[np.ndarray]:
        """Yield the vectors by the network ``key``, (n, D) float32, in order and :data:`STREAMED` blocks at a time."""
        names = self.names
        for start in range(0, len(self.blocks), STREAMED):
            blocks = self.blocks[start : start + STREAMED]
            count = sum(len(block.positions) for block in blocks)
            yield self.folders[key].read(blocks, names[:count])
            names = names[count:]

    def make(self, block: Block) -> None:
        """Compute and write the files of ``block`` that are missing.

        Raises:
            UserError: a clip cannot be read, or does not fit the protocol or a network.
        """
        missing = {key: network for key, network in self.networks.items() if not self.folders[key].has(block)}
        inputs = self._inputs(block.positions, missing)
        names = [self.clips.names[position] for position in block.positions]
        for key, network in missing.items():
            self.folders[key].write(block, self._vectors(network, inputs[key], names), names)

    def record(self, number: int) -> ClipRecord:
        """Return the measured clip ``number``, as its networks get it; raise UserError if that cannot be done."""
        return self._read(self.positions[number], self.networks)

    def check_first(self) -> None:
        """Read and prepare the first clip; raise UserError if that cannot be done."""
        self._inputs(self.positions[:1], self.networks)

    def _inputs(self, positions: Sequence[int], networks: Mapping[str, Network]) -> dict[str, list[Tensor]]:
        """Return the inputs of each network for the clips at ``positions``, each clip read once."""
        inputs: dict[str, list[Tensor]] = {key: [] for key in networks}
        for position in positions:
            record = self._read(position, networks)
            for key, network in networks.items():
                try:
                    inputs[key].append(network.extractor.prepare(record))
                except UserError as error:
                    raise UserError(f"{self.clips.path}: {error}") from None
        return inputs

    def _read(self, position: int, networks: Mapping[str, Network]) -> ClipRecord:
        signals = {signal for network in networks.values() for signal in network.signals}
        frames = self.protocol.frames if "frames" in signals else None
        sound = self.protocol.sound if "waveform" in signals else None
        try:
            return conform(self.clips.read(position), frames, sound, self.clips.kind)
        except MediaError as error:
            raise UserError(f"{error.detail} ({error.reason})") from None
        except UserError as error:
            raise UserError(f"{self.clips.path}: {error}") from None

    def _vectors(self, network: Network, inputs: list[Tensor], names: Sequence[str]) -> np.ndarray:
        """Return the vectors of ``inputs``, (n, D) float32; a UserError names the clip by ``names``."""
        odd = next((name for name, part in zip(names, inputs, strict=True) if part.shape != inputs[0].shape), None)
        if odd:
            raise UserError(f"{self.clips.path}: clips {names[0]} and {odd} have different durations or sizes")
        vectors = network.extractor.features(torch.stack(inputs)).numpy()
        if vectors.shape != (len(names), network.extractor.dimension):
            raise ValueError(f"{network.name}: features returned {vectors.shape} for {len(names)} clips")
        infinite = np.isinf(vectors).any(axis=1)
        if infinite.any():
            raise UserError(f"{self.clips.path}: clip {names[int(infinite.argmax())]}: {network.name} gives infinity")
        return vectors.astype(np.float32)

    def _choices(self, network: Network) -> list[object]:
        """Return what the vectors of ``network`` depend on, besides the set's content."""
        protocol = self.protocol
        conformed = {"frames": asdict(protocol.frames), "waveform": asdict(protocol.sound)}
        return [
            [network.name, dict(network.options), network.fingerprint],
            {signal: conformed[signal] for signal in network.signals},
            [protocol.batch_size, list(self.positions)],
        ]


Work = tuple[MeasuredSet, Block]  # a block of the samples or of the reference


def extract(work: Sequence[Work], quiet: bool) -> None:
    """Make the blocks of ``work`` that are missing, but for those that other jobs are making.

    Args:
        quiet: show no progress.
    """
    total = sum(len(block.positions) for measured, block in work if measured.lacks(block))
    if not total:
        return
    with tqdm(total=total, desc="features", unit=" clips", mininterval=1, disable=quiet) as progress:
        for folder in dict.fromkeys(measured.folder for measured, _ in work):
            with Leases(folder) as leases:
                for measured, block in _of(folder, work):
                    lease = measured.lease(block)
                    if measured.lacks(block) and leases.take(lease):
                        if measured.lacks(block):  # no other job has made it meanwhile
                            measured.make(block)
                        leases.release(lease)
                    progress.update(len(block.positions))


def _of(folder: Path, work: Sequence[Work]) -> Iterator[Work]:
    return ((measured, block) for measured, block in work if measured.folder == folder)
