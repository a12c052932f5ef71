"""Train experts on all real pairs and store their trajectories: `python buffer.py --dataset flickr
--num_experts 20`.

Any number of these processes, on any hosts that share the folder, divide the experts among them; one that was
stopped goes on at its last epoch when it is started again, and what a dead one had begun is taken over.
"""

import sys
from functools import partial

import torch

from distill_utils.evaluation.protocols import choose_epochs
from distill_utils.experts.folder import (
    claim,
    experts_folder,
    forgetting_file,
    is_whole,
    prepare_folder,
    require_space,
)
from distill_utils.experts.log import report_epochs, write_log
from distill_utils.experts.progress import Progress
from distill_utils.experts.training import Recipe, train_expert
from distill_utils.experts.trajectories import write_expert
from distill_utils.runs import flags
from distill_utils.runs.flags import count, positive
from distill_utils.runs.folder import Run
from distill_utils.runs.seeds import derive_seed
from distill_utils.runs.signals import run_program, undisturbed
from distill_utils.runs.tensors import save_tensors
from distill_utils.runs.writing import write_json
from distill_utils.task.flags import program_parser
from distill_utils.task.from_flags import made_with, model_maker, open_task
from distill_utils.training.losses import LOSSES
from networks.weights import describe_towers

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# What all experts of a folder have in common, besides data and encoders.
_RECIPE = (
    "train_epochs",
    "batch_train",
    "temperature",
    "loss_type",
    "lr_teacher_img",
    "lr_teacher_txt",
    "buffer_dtype",
)


def make_parser():
    parser = program_parser(__doc__)
    add = parser.group("experts")
    flags.buffer_path_flag(add)
    add("--num_experts", count, 20, "experts to train")
    add("--train_epochs", count, 10, "epochs of each expert")
    add("--batch_train", count, 128, "real pairs in an expert's batch")
    add("--lr_teacher_img", positive, 0.1, "learning rate of an expert's image tower")
    add("--lr_teacher_txt", positive, 0.1, "learning rate of an expert's text head")
    add("--loss_type", LOSSES, "InfoNCE", "loss of the experts")
    add("--eval_freq", count, 5, "epochs between an expert's evaluations")
    add("--buffer_dtype", _DTYPES, "float32", "of the stored weights: bfloat16 is half the disk")
    keep = "store only the first K snapshots, max_start_epoch + expert_epochs (default: all)"
    add("--keep_snapshots", count, None, keep, metavar="K")
    return parser


def main(argv=None):
    """The folder of the experts."""
    args = flags.parse(make_parser(), argv)
    run = Run(args, "buffer", default_name="buffer", shared=True)
    task = open_task(args, run.device)
    make_model = model_maker(args, task, run.device)
    folder = experts_folder(args, args.loss_type)
    snapshots = args.train_epochs + 1
    storage = {
        "keep": min(args.keep_snapshots or snapshots, snapshots),
        "dtype": _DTYPES[args.buffer_dtype],
        "share_start": args.keep_snapshots is not None,
    }
    model = make_model()
    meta = (
        made_with(args, task)
        | {key: getattr(args, key) for key in _RECIPE}
        | {"keep_snapshots": storage["keep"]}
    )
    prepare_folder(folder, meta | {"parameters": describe_towers(model)})
    whole = [n for n in range(args.num_experts) if is_whole(folder, n)]
    for n in whole:
        print(f"expert {n + 1}/{args.num_experts}: already in {folder}")
    require_space(folder, args.num_experts - len(whole), model, **storage)

    recipe = Recipe(
        epochs=args.train_epochs,
        batch_size=args.batch_train,
        loss_fn=LOSSES[args.loss_type],
        temperature=args.temperature,
        lr_img=args.lr_teacher_img,
        lr_txt=args.lr_teacher_txt,
        eval_freq=args.eval_freq,
        precision=args.precision,
    )
    for n in claim(folder, args.num_experts):
        run.open_wandb(f"{run.name}_{n}", f"{run.id}-{n}", group=run.name)
        progress = Progress(folder, n, storage["keep"])
        history, forgotten = train_expert(
            make_model,
            task,
            progress,
            recipe,
            seed=derive_seed(args.seed, "expert", n),
            device=run.device,
            on_epoch=report_epochs(run, n, args.num_experts, args.train_epochs),
            on_saved=partial(write_log, run, folder, args.num_experts),
        )
        with undisturbed():
            result = {"expert": n, "seed": args.seed} | history | choose_epochs(history["curve"])
            write_json(folder / f"results_{n}.json", result)
            save_tensors(forgetting_file(folder, n), {key: forgotten[key] for key in ("events", "learned")})
            write_expert(folder, n, progress.snapshots(), storage["dtype"], storage["share_start"])
            progress.clear()
    write_log(run, folder, args.num_experts)  # those of other processes too
    run.finish()
    print(f"{args.num_experts} experts in {folder}")
    return folder


if __name__ == "__main__":
    sys.exit(run_program(main, "--batch_train"))
