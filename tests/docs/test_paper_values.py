"""What pages, presets, job scripts, docstrings and comments quote as the paper's or the public code's is in one list.

``paper_values.yaml`` lists the values, each with its source and the words that a sentence must have to quote it, and
the values of the presets that have a source.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

ROOT = Path(__file__).parents[2]
PRESETS = ROOT / "mmldm_scale/config/presets"
LIST = Path(__file__).with_name("paper_values.yaml")
LISTED = yaml.safe_load(LIST.read_text())
GENERATED = ROOT / "docs/reference"  # of comments that are read where they stand
SOURCE = re.compile(
    r"\bpaper\b|public (?:code|config|script|ablation config)|MM-LDM-|MM-LDM,|MM-Diffusion[, ]", re.IGNORECASE
)
# What is no value: where in the paper, names of things, code that is not a setting.
NO_VALUE = re.compile(
    r"(?:sections?|Tables?|Eqs?\.|Figures?|appendix|arXiv|ACM Multimedia) [A-Z]?[\d.]+[a-z]?(?:(?:,| and| to) [\d.]+)*"
    r"|https?://\S+|\b\d-D\b|Stable Diffusion \d(?:\.\d)?|configs/\S+|\bMB\b"
)
NUMBER = re.compile(r"(?<![\w.])\d{1,3}(?:[,_]\d{3})+(?![\w])|(?<![\w.])\d+(?:\.\d+)?(?:e-?\d+)?(?![\w])")

Sentence = tuple[int, str]  # line, text


def page_sentences(text: str) -> Iterator[Sentence]:
    """Yield the sentences of a page in Markdown; each cell of a table with its row's first cell and column's head."""
    text = re.sub(r"^```.*?^```$", lambda match: "\n" * match[0].count("\n"), text, flags=re.DOTALL | re.MULTILINE)
    paragraph: list[str] = []
    head: list[str] = []
    for number, line in enumerate([*text.splitlines(), ""], start=1):
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            head = head or cells
            for title, cell in zip(head, cells, strict=False):
                yield from ((number, f"{cells[0]}, {title}: {part}") for _, part in split(number, cell))
            continue
        head = []
        if not line.strip() or line.startswith(("- ", "#")):
            yield from split(number - len(paragraph), " ".join(paragraph))
            paragraph = []
        paragraph += [line] if line.strip() else []


def commented_sentences(text: str) -> Iterator[Sentence]:
    """Yield the sentences of the comments of YAML or of a shell script; one beside a value has the value in it."""
    block: list[str] = []
    for number, line in enumerate([*text.splitlines(), ""], start=1):
        if words := re.fullmatch(r"\s*#\W*(\w.*)", line):  # not the empty line between two paragraphs
            block.append(words[1])
            continue
        yield from split(number - len(block), " ".join(block))
        block = []
        code, mark, comment = line.partition("  # ")
        if mark:
            first, *others = re.split(r"; ", comment)
            yield number, f"{code.strip()} {first}"
            yield from ((number, f"{code.split(':')[0].strip()}, {other}") for other in others)


def python_sentences(text: str) -> Iterator[Sentence]:
    """Yield the sentences of the docstrings and comments of a Python file."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            for paragraph in node.value.value.split("\n\n"):
                yield from split(node.lineno, " ".join(paragraph.split()))
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            name = token.line.partition("#")[0].partition(":")[0].strip()
            yield from ((line, f"{name} {part}") for line, part in split(token.start[0], token.string.lstrip("# ")))


def split(line: int, paragraph: str) -> Iterator[Sentence]:
    """Yield the sentences and half-sentences of ``paragraph``, which begins at ``line``."""
    for part in re.split(r"\. (?=[A-Z`*])|; ", paragraph):
        yield line, part


def sentences() -> Iterator[tuple[Path, int, str]]:
    """Yield each sentence that names the paper or the public code, with its file and line."""
    readers = {".md": page_sentences, ".yaml": commented_sentences, ".sh": commented_sentences, ".py": python_sentences}
    folders = [ROOT / name for name in ("docs", "slurm", "mmldm_scale", "data_tools", "benchmarks")]
    files = [ROOT / "README.md", *(file for folder in folders for file in sorted(folder.rglob("*")))]
    for file in files:
        if file.suffix in readers and file.parent != GENERATED:
            yield from ((file, n, s) for n, s in readers[file.suffix](file.read_text()) if SOURCE.search(s))


def numbers(sentence: str) -> list[str]:
    """Return the numbers in ``sentence`` that are values, as they are written."""
    return NUMBER.findall(NO_VALUE.sub("", re.sub(r"[²³]", "", sentence)))


def value(number: str) -> float:
    """Return the value of ``number``: "85,120", "2_560_000", "1e-9"."""
    return float(re.sub("[,_]", "", number))


def is_listed(number: str, where: str) -> bool:
    """Return whether the list has ``number`` for what ``where``, a sentence and its file's name, is about."""
    return any(
        value(number) in map(float, entry["values"])
        and all(word.lower() in where.lower() for word in entry.get("of", []))
        for entry in LISTED["quoted"]
    )


def test_numbers_quoted_as_the_papers_or_the_public_codes_are_listed_with_their_source() -> None:
    wrong = [
        f"{file.relative_to(ROOT)}:{line}: {number} in “{sentence}”"
        for file, line, sentence in sentences()
        for number in numbers(sentence)
        if not is_listed(number, f"{sentence} {file.name}")
    ]
    remedy = f"correct each, or say whose it is, or add it with its source to {LIST.relative_to(ROOT)}:"
    assert not wrong, "\n".join([remedy, *wrong])


@pytest.mark.parametrize("preset", LISTED["presets"])
def test_a_preset_has_the_value_of_the_source_and_its_comment_names_it(preset: str) -> None:
    text = (PRESETS / preset).read_text()
    shipped = OmegaConf.create(text)
    for key, (expected, source) in LISTED["presets"][preset].items():
        assert OmegaConf.select(shipped, key) == expected, key
        *parents, name = key.split(".")
        before = r"(?: +|\w+: {)" if parents else ""
        (line,) = (line for line in text.splitlines() if re.match(f"{before}{name}: ", line))
        comment = line.partition("#")[2]
        assert re.match(rf" .*{source}", comment.split(";")[0]), f"{preset}: {name}: the comment must name: {source}"


@pytest.mark.parametrize(
    ("sentence", "listed"),
    [
        ("AudioSet: λ_kl 1e-7 in the public config", True),
        ("AudioSet: λ_kl 1e-9 in the public config", False),
        ("the paper's λ_kl is 1e-9 (Landscape)", True),
        ("Landscape, FVD: 106.0 in the paper", False),
    ],
)
def test_a_number_counts_only_for_what_it_is_of(sentence: str, listed: bool) -> None:
    assert all(is_listed(number, sentence) for number in numbers(sentence)) == listed
