"""The house stands on its floors: who may import whom, read from the source."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# A module may import modules of floors below its own, and of its own floor; cycles are caught apart.
FLOORS = {
    "distill_utils.errors": 0,
    "distill_utils.files": 0,
    "data": 1,
    "networks": 1,
    "distill_utils.config": 1,
    "distill_utils.run": 1,
    "distill_utils.losses": 1,
    "distill_utils.similarity": 1,
    "distill_utils.trajectory": 1,
    "distill_utils.retrieval": 1,
    "distill_utils.precision": 1,
    "distill_utils.memory": 1,
    "distill_utils.parallel": 1,
    "distill_utils.pool": 1,
    "distill_utils.task": 2,
    "distill_utils.flags": 2,
    "distill_utils.synthetic": 2,
    "distill_utils.training": 2,
    "distill_utils.matching": 2,
    "distill_utils.oracles": 2,
    "distill_utils.vas": 2,
    "distill_utils.evaluate": 3,
    "distill_utils.coreset": 3,
    "distill_utils.crossarch": 3,
    "distill_utils.report": 3,
    "distill_utils.export": 3,
    "distill_utils.compare": 3,
    "buffer": 4,
    "distill_lors": 4,
    "distill_utils.benchmark": 4,
}
OUTSIDE = {"wandb": {"distill_utils.run"}, "timm": {"networks"}, "transformers": {"networks"}}


def sources():
    files = [*ROOT.glob("*.py"), *(file for folder in ("data", "networks", "distill_utils") for file in (ROOT / folder).glob("*.py"))]
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def place(module):
    """The entry of FLOORS that a module belongs to; None for what is not ours."""
    return module if module in FLOORS else module.split(".")[0] if module.split(".")[0] in FLOORS else None


def imports(file):
    """Every module imported anywhere in the file, functions included."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            # `from distill_utils import config` imports distill_utils.config
            yield from (f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in FLOORS else node.module for alias in node.names)


@pytest.mark.parametrize("module, file", [item for item in sources().items() if item[0] != "distill_utils"])
def test_nothing_imports_from_above(module, file):
    assert place(module) is not None, f"{module} has no floor"
    for name in imports(file):
        if place(name):
            assert FLOORS[place(name)] <= FLOORS[place(module)], f"{module} imports {name} from above"
        allowed = OUTSIDE.get(name.split(".")[0])
        assert allowed is None or place(module) in allowed, f"{module} imports {name}"


def test_there_are_no_cycles():
    graph = {module: {name for name in imports(file) if name in sources()} for module, file in sources().items()}

    def visit(module, trail):
        assert module not in trail, " -> ".join([*trail, module])
        for name in graph[module] - {module}:
            visit(name, [*trail, module])

    for module in graph:
        visit(module, [])
