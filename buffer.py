"""Train experts on all real pairs and store their trajectories: `python buffer.py --dataset flickr --num_experts 20`."""

import sys

import torch
from tqdm import tqdm

from distill_utils import config
from distill_utils.errors import UserError
from distill_utils.evaluate import METRICS, choose_epochs, gallery_recall
from distill_utils.files import write_json
from distill_utils.flags import experts_folder, made_with, model_maker, open_task
from distill_utils.losses import LOSSES
from distill_utils.run import Run, derive_seed, generator, run_program
from distill_utils.training import sgd, train_epoch
from distill_utils.trajectory import describe_towers, expert_files, read_meta, require_same_experts, snapshot, write_expert, write_meta


def train_expert(model, task, *, epochs, batch_size, loss_fn, temperature, lr_img, lr_txt, eval_freq, generator, device, precision, on_epoch):
    """Plain SGD on all real pairs; (snapshots before training and after each epoch, curve of evaluations).

    Evaluated every `eval_freq` epochs and after the last; on_epoch(epoch, values) is told the loss and, then, the recall.
    """
    optimizer = sgd(model, lr_img, lr_txt)
    snapshots, curve = [snapshot(model)], []
    for epoch in range(1, epochs + 1):
        batches = tqdm(
            task.train_batches(batch_size, generator, device), total=task.num_batches(batch_size), leave=False, desc=f"epoch {epoch}/{epochs}"
        )
        loss = train_epoch(model, batches, optimizer, loss_fn, temperature, precision)
        snapshots.append(snapshot(model))
        values = {"Loss/train_loss": loss}
        if epoch % eval_freq == 0 or epoch == epochs:
            curve.append({"epoch": epoch} | {split: gallery_recall(model, gallery, device) for split, gallery in task.galleries.items()})
            values |= {f"Results/{key}": curve[-1]["test"][key] for key in METRICS} | {"Results/val_r_mean": curve[-1]["val"]["r_mean"]}
        on_epoch(epoch, values)
    return snapshots, curve


def prepare_folder(folder, meta):
    """Write meta.yaml, or check that the experts already there are of the same kind."""
    existing = read_meta(folder)
    if not existing:
        write_meta(folder, meta)
        return
    require_same_experts(folder, meta)
    for key in ("train_epochs", "batch_train", "temperature", "lr_teacher_img", "lr_teacher_txt"):
        if existing.get(key) != meta[key]:
            raise UserError(f"The experts in {folder} have {key} {existing.get(key)}, not {meta[key]}: use another --buffer_path.")


def report_epochs(run, n, num_experts, epochs):
    """on_epoch for expert n: a line of the log and a line of text."""

    def on_epoch(epoch, values):
        run.log(n * epochs + epoch, {"expert": n, "epoch": epoch} | values)
        recall = f", test r_mean {values['Results/r_mean']:.1f}" if "Results/r_mean" in values else ""
        tqdm.write(f"expert {n + 1}/{num_experts}, epoch {epoch}/{epochs}: loss {values['Loss/train_loss']:.3f}{recall}")

    return on_epoch


def main(argv=None):
    args = config.parse(config.buffer_parser(__doc__), argv)
    run = Run(args, "buffer", default_name="buffer")
    task = open_task(args, run.device)
    make_model = model_maker(args, task)
    folder = experts_folder(args, args.loss_type)
    recipe = ("train_epochs", "batch_train", "temperature", "loss_type", "lr_teacher_img", "lr_teacher_txt")
    prepare_folder(folder, made_with(args, task) | {key: getattr(args, key) for key in recipe} | {"parameters": describe_towers(make_model())})

    for n in range(args.num_experts):
        if all(path.exists() for path in expert_files(folder, n)):
            print(f"expert {n + 1}/{args.num_experts}: already in {folder}")
            continue
        torch.manual_seed(derive_seed(args.seed, "expert", n))
        snapshots, curve = train_expert(
            make_model().to(run.device),
            task,
            epochs=args.train_epochs,
            batch_size=args.batch_train,
            loss_fn=LOSSES[args.loss_type],
            temperature=args.temperature,
            lr_img=args.lr_teacher_img,
            lr_txt=args.lr_teacher_txt,
            eval_freq=args.eval_freq,
            generator=generator(args.seed, "batches", n),
            device=run.device,
            precision=args.precision,
            on_epoch=report_epochs(run, n, args.num_experts, args.train_epochs),
        )
        write_json(folder / f"results_{n}.json", {"expert": n, "seed": args.seed, "curve": curve} | choose_epochs(curve))
        write_expert(folder, n, snapshots)
    run.finish()
    print(f"{args.num_experts} experts in {folder}")
    return folder


if __name__ == "__main__":
    sys.exit(run_program(main))
