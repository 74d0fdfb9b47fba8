"""A page to look at and listen to the samples of a folder: one self-contained ``index.html`` beside the mp4s.

``write(folder)`` makes it anew from the files that are there, so any job may write it at its end.
"""

import re
from html import escape
from pathlib import Path
from urllib.parse import quote

from mmldm_scale.common.atomic_files import write_whole

SAMPLE = re.compile(r"(svg|a2v|v2a)_(\d{6,})\.mp4")
TITLES = {"svg": "Sound and picture", "a2v": "Picture to given sound", "v2a": "Sound to given picture"}
MOST = 200  # of a task on the page: browsers choke on thousands of videos

STYLE = """
:root { color-scheme: light dark; --line: #8884; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
.grid { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); }
.grid.pairs { grid-template-columns: repeat(auto-fill, minmax(28rem, 1fr)); }
figure { margin: 0; padding: .6rem; border: 1px solid var(--line); border-radius: .6rem; }
.pair { display: flex; gap: .6rem; }
.pair div { flex: 1; min-width: 0; }
video { width: 100%; aspect-ratio: 1; background: #000; border-radius: .3rem; display: block; }
figcaption, small { font-size: .8rem; opacity: .75; }
"""


def write(folder: Path) -> Path:
    """Write ``folder/index.html`` over the samples in ``folder``, whole or not at all; return its path."""
    tasks: dict[str, list[Path]] = {}
    for file in sorted(folder.glob("*.mp4")):
        match = SAMPLE.fullmatch(file.name)
        if match:
            tasks.setdefault(match[1], []).append(file)
    page = folder / "index.html"
    write_whole(page, _page(folder, {task: tasks[task] for task in TITLES if task in tasks}).encode())
    return page


def _page(folder: Path, tasks: dict[str, list[Path]]) -> str:
    name = escape(folder.resolve().name)
    sections = "\n".join(_section(folder, task, files) for task, files in tasks.items())
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{name}</title>\n'
        f'<meta name="viewport" content="width=device-width">\n<style>{STYLE}</style>\n</head>\n'
        f"<body>\n<h1>{name}</h1>\n{sections}\n</body>\n</html>\n"
    )


def _section(folder: Path, task: str, files: list[Path]) -> str:
    cards = [_card(folder, file) for file in files[:MOST]]
    more = f"<p>… and {len(files) - MOST} more in the folder.</p>" if len(files) > MOST else ""
    count = f"{len(files)} sample{'s' if len(files) > 1 else ''}"
    grid = "grid" if task == "svg" else "grid pairs"
    lines = "\n".join(cards)
    return f'<h2>{TITLES[task]} <small>{task}, {count}</small></h2>\n<div class="{grid}">\n{lines}\n</div>{more}'


def _card(folder: Path, file: Path) -> str:
    caption = f"<figcaption>{escape(file.stem)}</figcaption>"
    source = folder / "inputs" / file.name
    if not source.exists():
        return f"<figure>{_video(file.name)}{caption}</figure>"
    given = f"<div>{_video(f'inputs/{source.name}')}<small>input</small></div>"
    made = f"<div>{_video(file.name)}<small>result</small></div>"
    return f'<figure><div class="pair">{given}{made}</div>{caption}</figure>'


def _video(path: str) -> str:
    return f'<video controls loop playsinline preload="metadata" src="{escape(quote(path))}"></video>'
