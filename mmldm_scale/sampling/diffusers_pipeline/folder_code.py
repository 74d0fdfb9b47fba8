"""The code of the pipeline inside an exported folder, for programs of diffusers without the package ``mmldm_scale``.

    DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)

diffusers runs the folder's ``pipeline.py``. It copies that file, and the files that are imported in it by relative
names of at most two parts, to its cache; so all modules lie in one folder, and ``pipeline.py`` names each. They are the
package's own with their imports renamed: ``mmldm_scale.models.dit`` is ``mmldm_code_VERSION/models_dit.py``. VERSION is
a hash of them: diffusers copies all folders to the same place, where those of two versions must not meet. A program
that has the package uses the package.
"""

import ast
import functools
import hashlib
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

from mmldm_scale.common.errors import UserError
from mmldm_scale.sampling.diffusers_pipeline.saving import CODE, CODE_FOLDER, PARTS_MODULE

PACKAGE = "mmldm_scale"
PIPELINE_MODULE = f"{PACKAGE}.sampling.diffusers_pipeline.pipeline"
ALSO = (f"{PACKAGE}.media.hifi_gan",)  # imported inside functions that the pipeline calls
ROOT = Path(__file__).parents[2]  # of the package
VERSION_DIGITS = 12  # of the hash of the code, in the name of its folder
HEADER = '''"""The pipeline's code, for programs of diffusers without mmldm_scale (Apache-2.0).

    DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)

diffusers copies the files that are imported here; {code}/ is {package}'s own code with its imports renamed.
"""

import importlib
import importlib.util
import sys

if getattr(importlib.util.find_spec("{package}"), "origin", None):  # installed: its classes are those of the parts, too
    MMLDMPipeline = importlib.import_module("{module}").MMLDMPipeline
else:
{imports}

    # model_index.json has the parts under the module's name in the package; a folder loaded before has its own classes.
    sys.modules["{parts}"] = sys.modules[MMLDMDiT.__module__]

__all__ = ["MMLDMPipeline"]
'''


def write(folder: Path) -> None:
    """Write ``pipeline.py`` and the folder of the code into ``folder``."""
    sources = _sources()
    code = f"{CODE_FOLDER}_{_version(sources)}"
    (folder / code).mkdir()
    for name, source in sources.items():
        (folder / code / f"{name}.py").write_text(source)
    imports = [f"from .{code}.{name} import __doc__ as _" for name in sources]
    imports.append(f"from .{code}.{_flat(PIPELINE_MODULE)} import MMLDMDiT, MMLDMPipeline")
    (folder / CODE).write_text(
        HEADER.format(
            package=PACKAGE,
            code=code,
            module=PIPELINE_MODULE,
            imports=textwrap.indent("\n".join(imports), "    "),
            parts=PARTS_MODULE,
        )
    )


@functools.cache
def _sources() -> dict[str, str]:
    """Return the sources of the modules by their names in the flat folder."""
    modules = sorted(_reached([PIPELINE_MODULE, *ALSO]))
    return {_flat(module): _renamed(module, modules) for module in modules}


def _version(sources: Mapping[str, str]) -> str:
    """Return a name of this version of the code: a part of a hash of all ``sources``."""
    joined = "".join(f"{name}\n{source}\n" for name, source in sorted(sources.items()))
    return hashlib.sha256(joined.encode()).hexdigest()[:VERSION_DIGITS]


def _reached(modules: list[str]) -> set[str]:
    """Return ``modules`` and those of the package that they import when they are imported, directly or not."""
    found: set[str] = set()
    while modules:
        module = modules.pop()
        if module not in found:
            found.add(module)
            tree = ast.parse(_file(module).read_text())
            modules += [name for node in tree.body for name in _imported(node)]
    return found


def _imported(node: ast.stmt) -> Iterator[str]:
    """Yield the modules of the package that the statement ``node`` imports."""
    if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == PACKAGE:
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            yield inner if _exists(inner) else node.module


def _renamed(module: str, modules: list[str]) -> str:
    """Return the source of ``module`` with its imports of ``modules`` renamed; others keep their names."""
    source = _file(module).read_text()
    lines = source.splitlines(keepends=True)
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    for node in sorted(nodes, key=lambda node: -node.lineno):
        if set(_imported(node)) & set(modules):
            assert node.end_lineno is not None
            indent = " " * node.col_offset
            lines[node.lineno - 1 : node.end_lineno] = [f"{indent}{text}\n" for text in _replacement(node)]
    return "".join(lines)


def _replacement(node: ast.ImportFrom) -> Iterator[str]:
    """Yield the lines that import from the flat folder what ``node`` imports from the package."""
    names = []
    for alias in node.names:
        inner = f"{node.module}.{alias.name}"
        if _exists(inner):
            yield f"from . import {_flat(inner)} as {alias.asname or alias.name}"
        else:
            names.append(alias.name if alias.asname is None else f"{alias.name} as {alias.asname}")
    if names:
        assert node.module is not None
        yield f"from .{_flat(node.module)} import {', '.join(names)}"


def _flat(module: str) -> str:
    """Return the name in the flat folder of the package's ``module``."""
    return module.removeprefix(f"{PACKAGE}.").replace(".", "_")


def _exists(module: str) -> bool:
    place = ROOT.joinpath(*module.split(".")[1:])
    return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()


def _file(module: str) -> Path:
    place = ROOT.joinpath(*module.split(".")[1:])
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    if not file.is_file():
        raise UserError(f"{file}: is missing; --format diffusers needs an installation with its source files")
    return file
