"""Every sh file: its command is valid, its settings are the published ones, its first argument is the GPU."""

import os
import subprocess
from pathlib import Path

import pytest
from commands import ROOT, sh_commands
from parsers import PARSERS

import distill_lors
from distill_utils.runs import flags as config
from distill_utils.selection import pool_flags
from distill_utils.selection.coresets import CORESETS


def parser_of(program, arguments):
    """Of a command's own flags, and those flags; None for programs that have none to speak of."""
    if program == "distill_utils.coreset" and "--metadata_dir" in arguments:
        return PARSERS["distill_utils.coreset vas"], arguments[1:]
    return PARSERS.get(program), arguments


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
        else [str(tmp_path), "cpu"]
        if file.name == "quickstart_photos.sh"
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
                or file.name in ("evaluate.sh", "coreset.sh", "crossarch.sh", "quickstart_photos.sh")
            )


def test_the_grids_run_every_cell_under_every_seed(tmp_path):
    def runs(name, *arguments):
        commands = sh_commands(ROOT / "sh" / name, tmp_path, *arguments)
        return [config.parse(PARSERS[program](), own).name for program, own in commands if program in PARSERS]

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


@pytest.mark.parametrize(
    "arguments, images, captions, layout",
    [
        (["/my photos"], "/my photos", "/my photos", "imagefolder"),
        (["mine", "cpu", "--seed", "7"], f"{ROOT}/mine", f"{ROOT}/mine", "imagefolder"),
        (["mine", "1", "--seed", "7"], f"{ROOT}/mine", f"{ROOT}/mine", "imagefolder"),
        (["mine", "said of them", "--seed", "7"], f"{ROOT}/mine", f"{ROOT}/said of them", "karpathy"),
        (["mine", "/said", "cpu", "--seed", "7"], f"{ROOT}/mine", "/said", "karpathy"),
    ],
)
def test_photos_are_where_the_caller_says(arguments, images, captions, layout, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    _, *commands, report = sh_commands(ROOT / "sh/quickstart_photos.sh", tmp_path, *arguments)
    assert len(commands) == 3 and report == (
        "distill_utils.report",
        [f"logged_files/{layout}/quickstart_photos"],
    )
    for program, own in commands:
        args = config.parse(PARSERS[program](), own)
        assert (args.image_root, args.ann_root, args.dataset) == (images, captions, layout)
        assert args.seed == (7 if "7" in arguments else 0) and not args.image_trainable


def test_without_photos_it_says_so():
    for arguments in ([], ["--seed", "1"]):
        command = ["sh", ROOT / "sh/quickstart_photos.sh", *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.startswith("error: give the folder of your photos: sh ")


@pytest.mark.parametrize("words", ["", "tests/runs", "-k signal", "-m soak -s", "tests/runs -k signal"])
def test_every_word_after_test_sh_is_for_pytest(words, tmp_path):
    setup, test = sh_commands(ROOT / "sh/test.sh", tmp_path, *words.split())
    assert setup[0] == "pip"
    alone = ["-n", "auto", "--dist", "loadfile"]
    assert test == ("pytest", words.split() or alone)


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
