"""The networks of a protocol: their weights, as settings ``weights.NAME``, and how they are loaded."""

import inspect
import json
from pathlib import Path

import torch

from mmldm_scale.common.addresses import require_local
from mmldm_scale.common.errors import UserError
from mmldm_scale.config.evaluating import Evaluating
from mmldm_scale.evaluation.extractors import EXTRACTORS, extractor_class
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
    known = set()
    for key, metric in protocol.metrics.items():
        if metric.extractor not in EXTRACTORS:
            raise UserError(f"metrics.{key}.extractor: {metric.extractor}: must be one of {', '.join(EXTRACTORS)}")
        kind = extractor_class(metric.extractor)
        allowed = list(inspect.signature(kind).parameters)[2:]
        unknown = [name for name in metric.options if name not in allowed]
        if unknown:
            options = ", ".join(allowed) or "none"
            raise UserError(f"metrics.{key}.options.{unknown[0]}: options of {metric.extractor} are {options}")
        known.add(kind.weights)
        weights_path(metric.extractor, settings)
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

    It is 0 if every file is a published one, 1 if one is not or is not given.
    """
    status = 0
    for name in sorted({metric.extractor for metric in protocol.metrics.values()}):
        try:
            path = weights_path(name, settings)
        except UserError as error:
            print(error)
            status = 1
            continue
        print(f"{name}: {path or 'weights of its package'}")
    return status
