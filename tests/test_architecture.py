"""The house stands on its floors: who may import whom, read from the source."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROGRAMS = {"evaluate", "crossarch", "compare", "coreset", "export", "report", "benchmark"}
# A module may import modules of floors below its own, and of its own floor; cycles are caught apart. The
# longest name that fits counts.
FLOORS = {
    "distill_utils.runs": 0,
    "data": 1,
    "networks": 1,
    "distill_utils.training": 2,
    "distill_utils.task": 2,
    "distill_utils.synthetic": 2,
    "distill_utils.pages": 3,
    "distill_utils.evaluation": 3,
    "distill_utils.matching": 3,
    "distill_utils.experts": 4,
    "distill_utils.distribution": 4,
    "distill_utils.selection": 5,
    "distill_utils.distillation": 6,
    "distill_utils.benchmarks": 7,
    **{f"distill_utils.{program}": 8 for program in PROGRAMS},
    "buffer": 8,
    "distill_lors": 8,
}
OUTSIDE = {"wandb": {"distill_utils.runs"}, "timm": {"networks"}, "transformers": {"networks"}}


def sources():
    folders = (ROOT / folder for folder in ("data", "networks", "distill_utils"))
    files = [*ROOT.glob("*.py"), *(file for folder in folders for file in folder.rglob("*.py"))]
    names = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
        for file in files
    }
    return {name: file for name, file in names.items() if name != "distill_utils"}


def place(module):
    """The entry of FLOORS that a module belongs to; None for what is not ours."""
    parts = module.split(".")
    names = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((name for name in names if name in FLOORS), None)


def imports(file):
    """Every module imported anywhere in the file, functions included."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            # `from distill_utils.runs import flags` imports distill_utils.runs.flags
            whole = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name if name in sources() else node.module for name in whole)


@pytest.mark.parametrize("module, file", sources().items())
def test_nothing_imports_from_above(module, file):
    assert place(module) is not None, f"{module} has no floor"
    for name in imports(file):
        if place(name):
            assert FLOORS[place(name)] <= FLOORS[place(module)], f"{module} imports {name} from above"
        allowed = OUTSIDE.get(name.split(".")[0])
        assert allowed is None or place(module) in allowed, f"{module} imports {name}"


def test_there_are_no_cycles():
    graph = {
        module: {name for name in imports(file) if name in sources()} for module, file in sources().items()
    }

    def visit(module, trail):
        assert module not in trail, " -> ".join([*trail, module])
        for name in graph[module] - {module}:
            visit(name, [*trail, module])

    for module in graph:
        visit(module, [])


def test_what_lies_directly_in_distill_utils_is_what_one_can_type():
    assert {file.stem for file in (ROOT / "distill_utils").glob("*.py")} == PROGRAMS | {"__init__"}
    for program in PROGRAMS:
        assert 'if __name__ == "__main__":' in (ROOT / f"distill_utils/{program}.py").read_text(), program


def test_every_room_says_in_a_sentence_what_it_is():
    for file in (ROOT / "distill_utils").glob("*/__init__.py"):
        sentence = ast.get_docstring(ast.parse(file.read_text()))
        assert sentence and "\n\n" not in sentence, file


def test_files_and_functions_are_of_a_size_that_can_be_read():
    for module, file in sources().items():
        text = file.read_text()
        assert text.count("\n") <= 300 or module in LONG, f"{module} has {text.count(chr(10))} lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60 or f"{module}.{node.name}" in LONG, (
                    f"{module}.{node.name}"
                )


def test_no_test_file_is_long():
    long = {file.name for file in (ROOT / "tests").rglob("*.py") if file.read_text().count("\n") > 300}
    assert not long - LONG


LONG = {
    "data.toy_scenes"  # tables of words and shapes
}
