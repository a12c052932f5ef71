"""Students of many architectures: `python -m distill_utils.crossarch --ckpt_path RUN --image_encoders
nfnet,vit`.

What the command does not say, the set does. Another text encoder than the set's cannot read its learned text
embeddings: its students get its own embeddings of the captions that the pairs began as, where the set has
them, and so the learned images and similarity alone.
"""

import sys
from argparse import Namespace

from distill_utils.evaluation.from_flags import ask_the_set
from distill_utils.evaluation.students import evaluate_synthetic_set
from distill_utils.evaluation.tables import format_table
from distill_utils.runs import flags
from distill_utils.runs.errors import Diverged, UserError
from distill_utils.runs.flags import components, names
from distill_utils.runs.folder import Run
from distill_utils.runs.seeds import derive_seed
from distill_utils.runs.signals import run_program
from distill_utils.synthetic.checkpoint import find_checkpoint, require_fits
from distill_utils.synthetic.set import SyntheticSet
from distill_utils.synthetic.similarity import FixedSimilarity
from distill_utils.task.flags import program_parser
from distill_utils.task.from_flags import model_maker, open_task
from distill_utils.training.losses import LOSSES

# In what these students may differ from those that the set was made with.
_STUDENTS_OWN = ("image_encoder", "image_pretrained", "image_trainable", "freeze_bn", "text_encoder")


def for_text_encoder(synthetic, task, path):
    """The set itself if its texts are the task's, else a copy with the task's embeddings of its captions.

    A file of the reference does not say whose its texts are: they are taken for the task's.
    """
    if synthetic.meta.get("text_fingerprint") in (None, task.text_fingerprint):
        return synthetic
    captions = synthetic.meta.get("source_captions") or [None]
    if None in captions:
        raise UserError(
            f"{path} holds embeddings of {synthetic.meta['text_encoder']} and not the captions they began as "
            f"(--txt_init noise): students with --text_encoder {task.text_encoder} cannot be trained on it."
        )
    images, _, similarity = synthetic.tensors()
    lrs = synthetic.lr_img.item(), synthetic.lr_txt.item()
    return SyntheticSet(
        images, task.embed(captions), FixedSimilarity(similarity), *lrs, synthetic.meta | task.describe()
    )


def make_parser():
    parser = program_parser(__doc__)
    flags.student_flags(parser)
    flags.set_flags(parser, LOSSES)
    add = parser.group("architectures")
    images = "students' image encoders (default: --image_encoder)"
    add("--image_encoders", components, (), images, metavar="NAME,...")
    texts = "students' text encoders (default: --text_encoder)"
    add("--text_encoders", names, (), texts, metavar="NAME,...")
    return parser


def main(argv=None):
    """{image encoder + text encoder: result}."""
    args, given = flags.parse_given(make_parser(), argv)
    path = find_checkpoint(args.ckpt_path)
    synthetic = SyntheticSet.load(path)
    ask_the_set(args, given, synthetic, path, may_differ=_STUDENTS_OWN)
    run = Run(args, "crossarch", default_name=path.parent.name, directory=path.parent, divided=True)
    about = {"file": path.name, "digest": synthetic.digest(), "dataset": args.dataset}
    rows = {}
    for text_encoder in args.text_encoders or (args.text_encoder,):
        task = open_task(Namespace(**vars(args) | {"text_encoder": text_encoder}), run.device)
        adapted = for_text_encoder(synthetic, task, path)
        require_fits(adapted, task, path)
        captions = "" if adapted is synthetic else " (source captions)"
        for image_encoder in args.image_encoders or (args.image_encoder,):
            students = Namespace(**vars(args) | {"image_encoder": image_encoder})
            row = _evaluate(students, run, adapted, task)
            rows[f"{image_encoder} + {text_encoder}{captions}"] = row | about
            run.update_results({"cross": rows})  # at once: what is done stays whatever comes after
    run.finish()
    if run.world.first:
        print(
            f"{path}: {len(synthetic)} pairs, test recall in % of students of other architectures, ", end=""
        )
        print("epoch chosen on val")
        print(format_table(rows))
    return rows


def _evaluate(args, run, synthetic, task):
    """The result of students with the image encoder of `args`, or in what words they diverged."""
    try:
        return evaluate_synthetic_set(
            synthetic,
            task,
            model_maker(args, task, run.device),
            num_eval=args.num_eval,
            epochs=args.epoch_eval_train,
            batch_size=args.batch_eval,
            loss_type=args.loss_type or synthetic.meta.get("loss", "WBCE"),
            temperature=args.temperature,
            seed=derive_seed(args.seed, "evaluate"),
            device=run.device,
            precision=args.precision,
            world=run.world,
        )
    except Diverged as error:
        return {"diverged": str(error)}


if __name__ == "__main__":
    sys.exit(run_program(main, "--batch_eval"))
