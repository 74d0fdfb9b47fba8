"""The networks of a protocol: their weights, as settings ``weights.NAME``, and how they are loaded."""

import inspect
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from mmldm_scale.common.addresses import require_local
from mmldm_scale.common.atomic_files import sha256
from mmldm_scale.common.errors import UserError
from mmldm_scale.config.evaluating import Evaluating
from mmldm_scale.evaluation.extractors import EXTRACTORS, extractor_class
from mmldm_scale.evaluation.extractors.known_weights import KnownWeights, known_weights
from mmldm_scale.evaluation.features.extraction import Network
from mmldm_scale.evaluation.protocols.protocol import MetricConfig, Protocol


def network_key(metric: MetricConfig) -> str:
    """Return the key of the network of ``metric``: metrics with equal extractors and options share it."""
    return f"{metric.extractor} {json.dumps(dict(metric.options), sort_keys=True)}"


def check_networks(protocol: Protocol, settings: Evaluating) -> None:
    """Check names, options and paths of weights of the networks of ``protocol``, without loading any.

    Raises:
        UserError: an extractor or an option does not exist, or the weights of one are not given or are not there.
    """
    _check_names(protocol, settings)
    for metric in protocol.metrics.values():
        weights_path(metric.extractor, settings)


def _check_names(protocol: Protocol, settings: Evaluating) -> None:
    """Raise UserError if an extractor of ``protocol``, an option of one or a name of weights does not exist."""
    known = set()
    for key, metric in protocol.metrics.items():
        if metric.extractor not in EXTRACTORS:
            raise UserError(f"metrics.{key}.extractor: {metric.extractor}: must be one of {', '.join(EXTRACTORS)}")
        kind = extractor_class(metric.extractor)
        allowed = list(inspect.signature(kind).parameters)[2:]  # after path and device
        unknown = [name for name in metric.options if name not in allowed]
        if unknown:
            options = ", ".join(allowed) or "none"
            raise UserError(f"metrics.{key}.options.{unknown[0]}: options of {metric.extractor} are {options}")
        known.add(kind.weights)
    for name in settings.weights:
        if name not in {*known, *EXTRACTORS}:  # a file may name the weights of all networks
            needed = ", ".join(f"weights.{name}" for name in sorted(filter(None, known))) or "no weights"
            raise UserError(f"weights.{name}: no network has this name; this protocol takes {needed}")


def weights_path(extractor: str, settings: Evaluating) -> Path | None:
    """Return the path of the weights of ``extractor``; None if it brings its own and no others are given.

    Raises:
        UserError: they are not given, or are not there.
    """
    kind = extractor_class(extractor)
    given = settings.weights.get(kind.weights)
    if given is None:
        if not kind.weights:
            return None
        raise UserError(f"weights.{kind.weights}: not given; {kind.title} needs weights.{kind.weights}=PATH")
    require_local(f"weights.{kind.weights}", given)
    if not Path(given).exists():
        raise UserError(f"weights.{kind.weights}={given}: no such file or folder")
    return Path(given)


def without_weights(protocol: Protocol, settings: Evaluating) -> dict[str, str]:
    """Return the metrics of ``protocol`` whose networks lack weights: by key, the setting that would give them.

    Raises:
        UserError: an extractor, an option or a name of weights does not exist; given weights are not there.
    """
    _check_names(protocol, settings)
    lacking = {}
    for key, metric in protocol.metrics.items():
        kind = extractor_class(metric.extractor)
        if kind.weights and kind.weights not in settings.weights:
            lacking[key] = f"weights.{kind.weights}"
        else:
            weights_path(metric.extractor, settings)
    return lacking


def build_networks(protocol: Protocol, settings: Evaluating, device: torch.device) -> dict[str, Network]:
    """Load the networks of ``protocol``, which :func:`check_networks` has checked; return them by :func:`network_key`.

    Raises:
        UserError: weights cannot be loaded, or a value of an option is not allowed.
    """
    networks: dict[str, Network] = {}
    for metric in protocol.metrics.values():
        if network_key(metric) not in networks:
            kind, path = extractor_class(metric.extractor), weights_path(metric.extractor, settings)
            extractor = kind(path, device, **metric.options)
            network = Network(metric.extractor, dict(metric.options), extractor, extractor.fingerprint())
            networks[network_key(metric)] = network
    return networks


def report_weights(protocol: Protocol, settings: Evaluating) -> int:
    """Print the fingerprints of the weights of ``protocol`` beside those of published files; return the exit status.

    It is 0 unless weights are missing (2) or differ from every published file with a known checksum (1).

    Raises:
        UserError: as :func:`check_networks`, but not for missing weights.
    """
    _check_names(protocol, settings)
    statuses = [0]
    for name in sorted({metric.extractor for metric in protocol.metrics.values()}):
        published = [known for known in known_weights() if known.extractor == name]
        try:
            path = weights_path(name, settings)
        except UserError as error:
            print(f"{name}: {error}")
            statuses.append(2)
        else:
            statuses.append(_compare(name, path, published))
        for known in published:
            checksum = f"sha256 {known.sha256}" if known.sha256 else f"git blob {known.git_blob or 'not known'}"
            print(f"  published: {known.file}, {checksum}, licence {known.licence}, {known.url}")
    return max(statuses)


def _compare(name: str, path: Path | None, published: Sequence[KnownWeights]) -> int:
    """Print the fingerprint of ``path``, and which of the ``published`` files it is; return the exit status."""
    if path is None:
        fingerprint = extractor_class(name)(None, torch.device("cpu")).fingerprint()
        print(f"{name}: weights of its package, sha256 {fingerprint}")
        return 0 if not published or fingerprint in [known.sha256 for known in published] else 1
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file())
    for file in files:
        print(f"{name}: {file}: {file.stat().st_size:,} bytes, sha256 {sha256(file)}")
    same = {known.file: known.describes(path) for known in published} if path.is_file() else {}
    found = [file for file, is_same in same.items() if is_same]
    if found:
        print(f"  is {found[0]} as published")
    elif None in same.values() or not same:
        print("  cannot be compared: no checksum of a published file is known")
    else:
        print("  is no published file that is known")
        return 1
    return 0
