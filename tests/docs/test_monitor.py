"""The page on monitoring explains each value that a training logs."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.monitor_page import documented

ROOT = Path(__file__).parents[2]
GROUPS = "loss loss_by_time validation term weight weighted gradient_norm discriminator training data speed time memory"
TAG = re.compile(rf"(?:{'|'.join(GROUPS.split())})/[A-Za-z0-9_/{{}}-]+")


def written() -> Iterator[tuple[str, str]]:
    """Yield the tags of values in the code of trainings, with their files; {} stands for a part that varies."""
    for folder in ("training", "trainables", "diffusion"):
        for file in sorted((ROOT / "mmldm_scale" / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                parts = node.values if isinstance(node, ast.JoinedStr) else [node]
                texts = [part.value if isinstance(part, ast.Constant) else "{}" for part in parts]
                if all(isinstance(text, str) for text in texts) and TAG.fullmatch("".join(texts)):
                    yield "".join(texts), str(file.relative_to(ROOT))


def test_each_tag_that_the_code_writes_is_in_the_table() -> None:
    patterns, tags = documented(), dict(written())
    assert {"data/displaced", "speed/mfu", "term/{}", "loss_by_time/{}/{}-{}", "validation/{}"} <= tags.keys()
    # What fills a tag's {} is one of the page's words, as in `training/learning_rate` for "training/{}".
    unexplained = {
        tag: file
        for tag, file in tags.items()
        if not any(p.fullmatch(tag) or re.fullmatch(tag.replace("{}", ".+"), name) for name, p in patterns.items())
    }
    assert not unexplained


@pytest.mark.parametrize(
    ("tag", "is_known"),
    [
        ("loss", True),
        ("training/ema_decay_0.05", True),
        ("gradient_norm/latents/mse", True),
        ("loss_by_time/video/750-999", True),
        ("data/unheard_of", False),
        ("losses", False),
    ],
)
def test_the_tables_tags_are_read_as_they_are_meant(tag: str, is_known: bool) -> None:
    assert any(pattern.fullmatch(tag) for pattern in documented().values()) == is_known
