"""What the README and docs/ promise: links lead somewhere, commands parse, code runs, the tree is true."""

import argparse
import importlib
import re
import shlex
from unittest import mock

import pytest
import torch
import yaml
from commands import ROOT, distill, program_and_arguments, sh_commands
from documents import PAGES, README, anchors, blocks, prose, run_block

from data.karpathy import DATASETS
from distill_utils.runs.dropped import DROPPED
from distill_utils.runs.errors import UserError

PROGRAMS = sorted(file.stem for file in (ROOT / "distill_utils").glob("*.py") if file.stem != "__init__")
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


# --- links ---


@pages
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_relative_to(ROOT.resolve()) and file.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(file), f"{page.name}: {target} is no heading of {file.name}"


def test_every_page_is_reached_from_the_readme():
    linked = set(re.findall(r"\]\(docs/([\w-]+\.md)", README.read_text()))
    assert linked == {page.name for page in PAGES} - {"README.md"}


# --- commands ---


class _Parsed(Exception):
    """Carries the parser of a program whose command line it could read."""


def parser_of(program, arguments, strict=True):
    """The parser that a program reads its command line with; strict: the `arguments` must parse too."""
    whole = argparse.ArgumentParser.parse_args

    def parse_args(parser, argv=None, namespace=None):
        if strict:
            whole(parser, argv, namespace)
        raise _Parsed(parser)

    module = importlib.import_module(program.removesuffix(".py"))
    with mock.patch.object(argparse.ArgumentParser, "parse_args", parse_args):
        with pytest.raises(_Parsed) as parsed:
            module.main(list(arguments))
    return parsed.value.args[0]


def check_python(program, arguments):
    if program == "pytest":
        places = [word for word in arguments if "/" in word]
        assert all((ROOT / place).exists() for place in places), arguments
        if "-k" in arguments:
            word = arguments[arguments.index("-k") + 1]
            assert any(re.search(rf"def test\w*{word}", (ROOT / place).read_text()) for place in places)
    elif program.startswith("tests/"):
        assert (ROOT / program).is_file(), f"{program} does not exist"
    elif program != "pip":
        assert program in ("buffer.py", "distill_lors.py", "data.download") or program in (
            f"distill_utils.{name}" for name in PROGRAMS
        ), f"{program} is no program of this project"
        parser_of(program, arguments)


def check_command(command, folder, monkeypatch):
    """Raises unless this line of a page is a command of this project whose flags parse."""
    words = shlex.split(command, comments=True)
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        monkeypatch.setenv(*words.pop(0).split("=", 1))
    tool, *rest = words
    if tool in ("sh", "sbatch"):
        file = ROOT / rest[0]
        assert file.is_file() and file.parent.name == "sh", f"{rest[0]} does not exist"
        for program, arguments in sh_commands(file, folder, *rest[1:]):
            if program != "pytest":  # sh/test.sh hands on what it is given
                check_python(program, arguments)
    elif tool == "python":
        check_python(*program_and_arguments(rest))
    else:
        assert (tool, rest[0]) in (("ruff", "format"), ("ruff", "check")), f"{tool} is an unknown program"


COMMANDS = [
    pytest.param(command.strip(), id=f"{page.stem}: {command.strip()[:60]}")
    for page in PAGES
    for block in blocks(page)
    if block.language == "sh"
    for line in block.text.replace("\\\n", " ").splitlines()
    for command in line.split("&&")
    if command.strip()
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_parses(command, tmp_path, monkeypatch):
    check_command(command, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    "command",
    [
        "python train.py",
        "python -m distill_utils.nothing",
        "python buffer.py --no_such_flag 1",
        "python -m distill_utils.report",
        "python -m pytest tests/nowhere",
        "sh sh/nothing.sh",
        "sh sh/evaluate.sh 0",
        "sh sh/buffer_flickr.sh 0 --num_experts none",
        "sbatch sh/slurm_distill.sh --no_such_flag 1",
        "METHOD=best sh sh/coreset_flickr.sh",
        "make all",
    ],
)
def test_a_command_that_does_not_work_is_noticed(command, tmp_path, monkeypatch):
    with pytest.raises((AssertionError, UserError, SystemExit)):
        check_command(command, tmp_path, monkeypatch)


@pages
def test_no_command_hides_in_a_block_of_another_language(page):
    for block in blocks(page):
        assert block.language in ("sh", "python", "")
        if not block.language:
            assert not re.search(r"^([A-Z_]+=\S+ )*(sh|sbatch|python|torchrun|pip) ", block.text, re.M)


def test_every_flag_that_a_page_names_exists():
    starts = {f"distill_utils.{name}": [[]] for name in PROGRAMS} | {
        "buffer.py": [[]],
        "distill_lors.py": [[]],
        "data.download": [[]],
        "distill_utils.coreset": [["random"], ["vas", "--metadata_dir", "x"], ["moment"], ["validate"]],
    }
    known = {"--help"} | {f"--{name}" for name in DROPPED}
    for program, lines in starts.items():
        for line in lines:
            known |= set(parser_of(program, line, strict=False)._option_string_actions)
    for page in PAGES:
        flags = set(re.findall(r"(?<![\w-])--[A-Za-z]\w*", page.read_text()))
        assert flags <= known, f"{page.name}: {flags - known}"


# --- code ---


@pytest.fixture(scope="module")
def quickstart(home):
    """A folder with a run where the pages have one, at its smallest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        distill(home, "quickstart", "--Iteration", "1", "--num_eval", "1", "--epoch_eval_train", "1")
    return home


CODE = [
    pytest.param(block.text, id=f"{page.stem}: {block.heading}")
    for page in PAGES
    for block in blocks(page)
    if block.language == "python"
]


@pytest.mark.parametrize("text", CODE)
def test_every_block_of_python_runs(text, quickstart, monkeypatch):
    monkeypatch.chdir(quickstart)
    with run_block(text) as module:
        if "SyntheticSet.load(" in text and hasattr(module, "loader"):
            assert module.images.shape == (6, 3, 32, 32) and module.similarity.shape == (6, 6)
            ((images, texts, similarity),) = module.loader
            assert torch.equal(images.sort(dim=0).values, module.images.sort(dim=0).values)
            assert texts.shape == module.texts.shape and similarity.shape == (6, 6)


# --- what the README says of the house ---


def tree():
    """The paths that the README's tree names, folders with a slash at the end."""
    (block,) = (block for block in blocks(README) if block.heading == "What is where")
    folder, paths = "", []
    for line in block.text.splitlines():
        name, indented = line.split()[0], line.startswith(" ")
        paths.append(folder + name if indented else name)
        if not indented and name.endswith("/"):
            folder = name
    return paths


def test_the_tree_is_the_tree():
    named = tree()
    for path in named:
        assert (ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file(), path
    rooms = {f"distill_utils/{file.parent.name}/" for file in ROOT.glob("distill_utils/*/__init__.py")}
    programs = {f"distill_utils/{name}.py" for name in PROGRAMS}
    top = {f"{folder}/" for folder in ("data", "networks", "distill_utils", "docs", "sh", "tests")}
    assert rooms | programs | top | {"buffer.py", "distill_lors.py"} == set(named)


def test_the_readme_is_of_two_pages():
    lines = README.read_text().splitlines()
    assert len(lines) <= 150 and max(map(len, lines)) <= 120


@pages
def test_lines_can_be_read(page):
    assert all(len(line) <= 120 for line in page.read_text().splitlines() if not line.startswith("|"))


@pages
def test_no_page_names_a_machine(page):
    assert not re.search(
        r"(?<![\w.])/(work|tmp|home|root|Users|mnt|scratch)\b|\bissue \d|#\d", page.read_text()
    )


def test_the_readme_says_where_every_data_set_lies():
    for prefix, images, annotations in DATASETS.values():
        if prefix != "toy":
            assert (
                f"| `data/{images}` | `data/{annotations}/{prefix}_{{train,val,test}}.json` |"
                in README.read_text()
            )


def test_the_numbers_of_the_readme_have_their_command():
    """Each stands in docs/numbers.md too, where its command is."""
    results = re.findall(r"\d+\.\d ± \d+\.\d", README.read_text())
    numbers = (ROOT / "docs/numbers.md").read_text()
    assert results and all(result in numbers for result in results)


def test_the_citation_is_whole():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["cff-version"] == "1.2.0" and all(
        cited[key] for key in ("message", "title", "authors", "type")
    )
    paper = cited["preferred-citation"]
    assert paper["title"] == "Low-Rank Similarity Mining for Multimodal Dataset Distillation"
    assert [author["family-names"] for author in paper["authors"]] == ["Xu", "Lin", "Qiu", "Lu", "Li"]
    assert paper["year"] == 2024 and "2406.03793" in paper["url"] and paper["type"] == "conference-paper"
