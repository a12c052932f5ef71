"""The flags: each is read, YAML and command line agree, every sh file's command is valid."""

import ast
import os
import subprocess
from pathlib import Path

import pytest
import yaml
from commands import ROOT
from test_architecture import imports, sources

import buffer
import distill_lors
from distill_utils import benchmark, coreset, crossarch, evaluate
from distill_utils.runs import flags as config
from distill_utils.runs.errors import UserError
from distill_utils.selection import pool_flags
from distill_utils.selection.coresets import CORESETS

PROGRAMS = {
    "buffer.py": buffer.make_parser,
    "distill_lors.py": distill_lors.make_parser,
    "distill_utils.evaluate": evaluate.make_parser,
    "distill_utils.coreset": coreset.make_parser,
    "distill_utils.crossarch": crossarch.make_parser,
    "distill_utils.benchmark": benchmark.make_parser,
    "distill_utils.coreset vas": pool_flags.vas_parser,
    "distill_utils.coreset moment": pool_flags.moment_parser,
    "distill_utils.coreset validate": pool_flags.validate_parser,
}
REFERENCE_FLAGS = """
    dataset image_root ann_root image_encoder text_encoder image_size buffer_path num_experts train_epochs lr_teacher_img lr_teacher_txt
    batch_train syn_steps expert_epochs max_start_epoch lr_img lr_txt lr_lr lr_sim sim_type sim_rank alpha num_queries mini_batch_size
    loss_type merge_loss_branches temperature pix_init txt_init no_aug Iteration eval_it num_eval epoch_eval_train clamp_lr image_pretrained
    text_pretrained image_trainable momentum_syn momentum_lr momentum_sim resume_from name eval_freq ckpt_path seed device gradient
    second_order precision wandb config
""".split()


def declared(parser):
    return {action.dest for action in parser._actions} - {"help"}


def reachable(module, seen):
    """The files of our own that a module imports, and those that they import, itself among them."""
    if module in sources() and module not in seen:
        seen.add(module)
        for name in imports(sources()[module]):
            reachable(name, seen)
    return seen


def test_the_references_flags_and_the_new_ones_are_there():
    assert set(REFERENCE_FLAGS) <= set().union(*(declared(parser()) for parser in PROGRAMS.values()))


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_declared_flag_is_read(program):
    """As `args.flag`, in the program or in what it hands its namespace to."""
    read = {
        node.attr
        for module in reachable(program.split()[0].removesuffix(".py"), set())
        for node in ast.walk(ast.parse(sources()[module].read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "args"
    }
    unread = declared(PROGRAMS[program]()) - read - {"config"}  # config is read by parse itself
    assert not unread


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_help_tells_the_default_of_each_flag(program):
    parser = PROGRAMS[program]()
    for action in parser._actions:
        if action.option_strings and not action.required and action.dest != "help":
            assert "default" in parser._get_formatter()._get_help_string(action), action.option_strings


def sh_commands(file, folder, *arguments):
    """The commands that an sh file runs, as (program, arguments): `python` and `torchrun` write down what
    they are called with.
    """
    record = folder / "commands"
    record.write_text("")
    for name in ("python", "torchrun"):
        (folder / name).write_text(f"#!/bin/sh\nprintf '%s\\t' \"$@\" >> {record}\necho >> {record}\n")
        (folder / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "VIRTUAL_ENV": "active"}
    subprocess.run(["sh", file, *arguments], env=environment, check=True, capture_output=True)
    for line in record.read_text().splitlines():
        words = [word for word in line.split("\t")[:-1] if word not in ("-m", "--standalone")]
        yield words[0], words[1:]


def parser_of(program, arguments):
    """Of a command's own flags, and those flags; None for programs that have none to speak of."""
    if program == "distill_utils.coreset" and "--metadata_dir" in arguments:
        return PROGRAMS["distill_utils.coreset vas"], arguments[1:]
    return PROGRAMS.get(program), arguments


SH_FILES = sorted(
    file for file in (ROOT / "sh").glob("*.sh") if "slurm" not in file.name and not file.name.startswith("_")
)


@pytest.mark.parametrize("file", SH_FILES, ids=lambda file: file.name)
def test_every_sh_file_gives_flags_that_parse(file, tmp_path):
    more = (
        []
        if file.name in ("setup.sh", "test.sh")
        else ["cpu", "--ckpt_path", "x"]
        if file.name in ("evaluate.sh", "crossarch.sh")
        else ["cpu"]
    )
    commands = list(sh_commands(file, tmp_path, *more))
    assert commands
    for program, arguments in commands:
        make_parser, arguments = parser_of(program, arguments)
        if make_parser:
            args = config.parse(make_parser(), arguments)
            name = Path(args.metadata_dir).parts[-2] if make_parser is pool_flags.vas_parser else args.dataset
            assert (
                name in file.name
                or name == "toy"
                or file.name in ("evaluate.sh", "coreset.sh", "crossarch.sh")
            )


def test_the_grids_run_every_cell_under_every_seed(tmp_path):
    def runs(name, *arguments):
        commands = sh_commands(ROOT / "sh" / name, tmp_path, *arguments)
        return [
            config.parse(PROGRAMS[program](), own).name for program, own in commands if program in PROGRAMS
        ]

    ablation = runs("ablate_toy.sh", "cpu", "--Iteration", "1")
    assert len(ablation) == len(set(ablation)) == 3 * (1 + 17) and {
        "ablate_tesla_seed2",
        "ablate_rank_20_seed0",
    } <= set(ablation)
    coresets = runs("coreset_toy.sh", "cpu")
    assert len(coresets) == 3 * (1 + 2 * len(CORESETS)) and {
        f"coreset_{method}_seed1" for method in CORESETS
    } <= set(coresets)


@pytest.mark.parametrize("prior", [True, False])
def test_vas_scripts_have_the_papers_settings(prior, tmp_path, monkeypatch):
    if prior:
        monkeypatch.setenv("PRIOR", "prior.npy")
    for scale, settings in {"small": (0.45, 0.3, 168), "medium": (0.3, 0.2, 500)}.items():
        ((_, arguments),) = sh_commands(ROOT / "sh" / f"vas_datacomp_{scale}.sh", tmp_path, "cpu")
        args = config.parse(pool_flags.vas_parser(), arguments[1:])
        assert (args.fraction, args.fraction_vas) == settings[:2] and args.arch == "l14"
        assert (args.target_variance, args.num_iters) == (
            ("prior.npy", None) if prior else (None, settings[2])
        )


@pytest.mark.parametrize(
    "name, values",
    [
        ("flickr_lors_100", (99, 100, 10, 10, 3, 20, 2, 3000, 50, False, 0.07, False)),
        ("flickr_lors_200", (199, 1000, 10, 5, 1, 20, 2, 3000, 50, False, 0.07, False)),
        ("flickr_lors_500", (499, 1000, 100, 20, 0.01, 40, 3, 3000, 300, False, 0.07, False)),
        ("coco_lors_100", (99, 1000, 5, 10, 1, 20, 2, 3000, 50, True, 0.07, False)),
        ("coco_lors_200", (199, 1000, 50, 20, 1, 20, 2, 2000, 50, True, 0.07, False)),
        ("coco_lors_500", (499, 5000, 500, 40, 1, 30, 2, 3000, 50, True, 0.1, True)),
    ],
)
def test_the_published_hyper_parameters(name, values, tmp_path):
    ((_, arguments),) = sh_commands(ROOT / "sh" / f"distill_{name}.sh", tmp_path)
    args = config.parse(distill_lors.make_parser(), arguments)
    assert (
        args.num_queries,
        args.lr_img,
        args.lr_sim,
        args.sim_rank,
        args.alpha,
        args.mini_batch_size,
        args.max_start_epoch,
        args.Iteration,
        args.eval_it,
        args.merge_loss_branches,
        args.temperature,
        args.no_aug,
    ) == values
    assert (
        args.lr_txt,
        args.syn_steps,
        args.expert_epochs,
        args.lr_lr,
        args.lr_teacher_img,
        args.loss_type,
        args.sim_type,
        args.momentum_syn,
        args.num_eval,
        args.epoch_eval_train,
        args.batch_eval,
    ) == (args.lr_img, 8, 1, 0.01, 0.1, "WBCE", "lowrank", 0.5, 5, 100, 128)


def test_the_command_line_wins_over_the_file(tmp_path):
    file = tmp_path / "args.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "seed": 7,
                "no_aug": True,
                "image_pretrained": False,
                "toy_size": [30, 4, 5],
                "lr_img": 2.5,
                "name": None,
                "_run": {"git": 1},
            }
        )
    )
    args = config.parse(
        distill_lors.make_parser(), ["--config", str(file), "--seed", "9", "--no_aug", "false"]
    )
    assert (args.seed, args.no_aug, args.image_pretrained, args.toy_size, args.lr_img, args.name) == (
        9,
        False,
        False,
        (30, 4, 5),
        2.5,
        None,
    )


@pytest.mark.parametrize(
    "content, words",
    [
        ("sede: 1", "'sede', which is not a flag"),
        ("[1, 2]", "must hold keys and values"),
        ("a: [", "cannot be read as YAML"),
        ("seed: much", "--seed: expected a whole number"),
        ("loss_type: L2", "invalid choice: 'L2'"),
        ("config: other.yaml", "'config', which is not"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path, content, words):
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(UserError, match=words):
        config.parse(distill_lors.make_parser(), ["--config", str(tmp_path / "c.yaml")])


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--dsa", "True"], "--dsa is not a flag of this project"),
        (["--zca=True"], "--zca is not a flag"),
        (["--texture"], "--texture is not a flag"),
        (["--no_such_flag"], "no_such_flag"),
        (["--num_queries", "0"], "--num_queries: expected a whole number of at least 1, not '0'"),
        (["--no_aug", "perhaps"], "--no_aug: expected true or false, not 'perhaps'"),
        (["--lr_img", "nan"], "--lr_img: expected"),
        (["--lr_img", "inf"], "--lr_img: expected"),
        (["--toy_size", "3,4"], "--toy_size: .*three positive"),
        (["--config", "absent.yaml"], "absent.yaml does not exist"),
        (["--seed"], "expected one argument"),
    ],
)
def test_bad_flags_are_one_sentence(arguments, words):
    with pytest.raises(UserError, match=words) as error:
        config.parse(distill_lors.make_parser(), arguments)
    assert "\n" not in str(error.value)


def test_switches_stand_alone_and_take_values():
    parse = lambda *arguments: config.parse(buffer.make_parser(), arguments)  # noqa: E731
    assert (
        parse("--no_aug").no_aug
        and parse("--no_aug", "True").no_aug
        and not parse("--no_aug=False").no_aug
        and not parse().no_aug
    )
    assert not parse(
        "--image_pretrained", "False"
    ).image_pretrained  # the reference's type=bool could not say so


def test_the_first_argument_of_an_sh_file_is_the_gpu(tmp_path):
    """_env.sh with `python` and `torchrun` that print how they are called."""
    for name in ("python", "torchrun"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho "{name} gpu=$CUDA_VISIBLE_DEVICES $@"\n')
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "VIRTUAL_ENV": "x"}

    def called(*arguments, **more):
        done = subprocess.run(
            ["sh", ROOT / "sh/buffer_flickr.sh", *arguments],
            env=environment | more,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    assert called().startswith("python gpu=0 buffer.py --dataset flickr")
    assert called("--num_experts", "3").strip().endswith("--seed 0 --num_experts 3")
    assert called("2", "--seed", "1").startswith("python gpu=2 buffer.py") and called("cpu").startswith(
        "python gpu= buffer.py"
    )
    assert called("0,3,5").startswith(
        "torchrun gpu=0,3,5 --standalone --nproc_per_node 3 buffer.py --dataset"
    )
    assert called(CUDA_VISIBLE_DEVICES="7").startswith("python gpu=7 ")


@pytest.mark.parametrize("status, requeue_after, requeued", [(0, 0, False), (1, 0, True), (1, 600, False)])
def test_a_slurm_job_runs_by_torchrun_and_queues_itself_again(tmp_path, status, requeue_after, requeued):
    scripts = {
        "srun": f'"$@"; exit {status}',
        "torchrun": 'echo "torchrun $@"',
        "scontrol": f'[ "$1" = show ] && echo node7 || echo "$@" > {tmp_path}/requeued',
    }
    for name, text in scripts.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    job = {
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_JOB_ID": "42",
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "4",
        "SLURM_JOB_NODELIST": "node[7-8]",
    }
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "VIRTUAL_ENV": "x",
        "REQUEUE_AFTER": str(requeue_after),
    } | job
    command = ["sh", ROOT / "sh/slurm_distill.sh", "sh/distill_coco_lors_100.sh", "--seed", "3"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    rendezvous = "--rdzv_id 42 --rdzv_backend c10d --rdzv_endpoint node7:29500"
    assert done.stdout.startswith(
        f"torchrun --nnodes 2 --nproc_per_node 4 {rendezvous} distill_lors.py --dataset coco"
    )
    assert done.stdout.strip().endswith("--seed 0 --seed 3") and (tmp_path / "requeued").exists() == requeued
