"""Flags: how a program declares them, the groups that programs share, and a YAML file that sets their
defaults.

argparse is the schema. A program's own flags stand with the program; here are the kinds of values and the
shared groups.
"""

import argparse
import sys
from pathlib import Path

from distill_utils.runs.dropped import DROPPED
from distill_utils.runs.errors import UserError
from distill_utils.runs.reading import read_yaml

_LONGEST_NAME = 200  # bytes; file systems take 255, endings included
_PRECISIONS = ("fp32", "tf32", "bf16")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Every flag with its default; a flag whose default is not a value says in its own words what happens
    without it.
    """

    def _get_help_string(self, action):
        if not action.option_strings or action.required or action.default in (None, argparse.SUPPRESS):
            return action.help
        return f"{action.help} (default: {_as_typed(action.default)})"


def _as_typed(value):
    """A flag's value as one types it."""
    if isinstance(value, (tuple, list)):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


class Parser(argparse.ArgumentParser):
    """argparse whose complaint is one sentence, without pages of usage."""

    def __init__(self, doc=None, **options):
        super().__init__(description=doc, formatter_class=_Formatter, allow_abbrev=False, **options)

    def error(self, message):
        raise UserError(f"{message[0].upper()}{message[1:]} (--help lists the flags).")

    def group(self, title):
        """add(flag, kind, default, help, **options) for a titled group.

        kind: a function of the text, the tuple of choices, or bool for a switch that may stand alone or take
        true or false.
        """
        group = self.add_argument_group(title)

        def add(flag, kind, default, help, **options):
            if kind is bool:
                options |= {"type": boolean, "nargs": "?", "const": True, "metavar": "true|false"}
            elif callable(kind):
                options |= {"type": kind}
            else:
                options |= {"choices": tuple(kind)}
            group.add_argument(flag, default=default, help=help, **options)

        return add


# --- kinds of values ---


def boolean(text):
    """`true` or `false` (also yes/no, 1/0)."""
    if text.lower() in ("true", "yes", "1"):
        return True
    if text.lower() in ("false", "no", "0"):
        return False
    raise argparse.ArgumentTypeError(f"expected true or false, not {text!r}")


def _number(kind, low, strict, what):
    def convert(text):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not (value > low if strict else value >= low) or value == float("inf"):
            raise argparse.ArgumentTypeError(f"expected {what}, not {text!r}")
        return value

    return convert


count = _number(int, 1, False, "a whole number of at least 1")
whole = _number(int, 0, False, "a whole number of at least 0")
positive = _number(float, 0.0, True, "a number above 0")
non_negative = _number(float, 0.0, False, "a number of at least 0")
finite = _number(float, -float("inf"), True, "a finite number")


def fraction(text):
    """A number above 0 and up to 1."""
    value = positive(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0 and up to 1, not {text!r}")
    return value


def below_one(text):
    """A number of at least 0 and below 1."""
    value = non_negative(text)
    if value >= 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 0 and below 1, not {text!r}")
    return value


def component(text):
    """A name that is one component of a path: of a folder, or of a file to which an ending is added."""
    plain = text.isprintable() and not set(text) & set("/\\:") and not text.startswith(".")
    if not text.strip() or not plain or len(text.encode()) > _LONGEST_NAME:
        raise argparse.ArgumentTypeError(
            f"expected the name of one folder, without / and without a dot at its beginning, not {text!r}"
        )
    return text


def names(text):
    """`A,B,...` as a tuple."""
    return tuple(name for name in text.split(",") if name)


def components(text):
    """The same of names that are each a `component`."""
    return tuple(map(component, names(text)))


def rates(text):
    """`RATE,...` as a tuple of numbers above 0."""
    return tuple(positive(rate) for rate in names(text))


# --- groups that programs share ---


def run_flags(parser, folder=True):
    """folder: of a program that has one in logged_files, with curves in it."""
    add = parser.group("run")
    if folder:
        name = "name of the run's folder under logged_files/<dataset>/ (default: made from what is run)"
        add("--name", component, None, name)
        add("--wandb", ("online", "offline", "disabled"), "disabled", "where curves go besides log.jsonl")
    add("--seed", whole, 0, "every random number of the run follows from it")
    device_flag(add)
    add("--precision", _PRECISIONS, "fp32", "arithmetic of the models: fp32, tf32 (CUDA) or bf16 (autocast)")
    config = "defaults from a file, such as a run's args.yaml; the command line wins (default: none)"
    add("--config", str, None, config, metavar="YAML")


def device_flag(add):
    add("--device", str, "auto", "auto (a GPU where there is one), cpu, or a torch device")


def speed_flags(add):
    rest = "where the weights of inner steps rest: cpu spares a GPU (default: with the model)"
    add("--path_device", str, None, rest, metavar="DEVICE")
    add("--compile", bool, False, "compile the image encoder (finite only; minutes at the start)")


def buffer_path_flag(add, what="folder of the expert trajectories"):
    add("--buffer_path", str, "buffers", what, metavar="DIR")


def student_flags(parser):
    add = parser.group("evaluation")
    add("--num_eval", count, 5, "students per evaluation, each with its own seed")
    add("--epoch_eval_train", count, 100, "epochs a student trains on the synthetic set")
    add("--batch_eval", count, 128, "synthetic pairs in a student's batch")
    return add


def set_flags(parser, losses):
    """Which set to evaluate, and under which of the `losses`."""
    add = parser.group("what to evaluate")
    what = "a distilled_*.pt, or a run's folder: its set chosen on val"
    add("--ckpt_path", str, None, what, required=True, metavar="PATH")
    add("--loss_type", losses, None, "loss of the students (default: the one the set was made for)")


def fresh_flag(parser):
    what = "begin anew, the same as --resume never (default: go on)"
    parser.add_argument(
        "--fresh", dest="resume", action="store_const", const="never", default=argparse.SUPPRESS, help=what
    )


# --- reading them ---


def parse(parser, argv):
    """The namespace of `argv`, of what was typed where that is None; --config is applied first, so that what
    the command line says wins. UserError for any mistake.
    """
    return parse_given(parser, argv)[0]


def parse_given(parser, argv):
    """The namespace, and the names of the flags that the command line or --config gave."""
    argv = list(sys.argv[1:] if argv is None else argv)
    for token in argv:
        flag = token.split("=")[0]
        if flag.startswith("--") and flag[2:] in DROPPED and flag not in parser._option_string_actions:
            raise UserError(f"{flag} is not a flag of this project: {DROPPED[flag[2:]]}.")
    pre = Parser(add_help=False)
    pre.add_argument("--config")
    config = pre.parse_known_args(argv)[0].config
    tokens = (_config_tokens(parser, config, argv) if config else []) + argv
    absent = object()
    explicit = parser.parse_args(
        tokens, argparse.Namespace(**{action.dest: absent for action in parser._actions})
    )
    return parser.parse_args(tokens), {name for name, value in vars(explicit).items() if value is not absent}


def _config_tokens(parser, path, argv):
    """The YAML file's values as command-line tokens, so that argparse checks them like any other."""
    if not Path(path).is_file():
        raise UserError(f"--config {path} does not exist.")
    values = read_yaml(path)
    actions = {action.dest: action for action in parser._actions}
    tokens = []
    for key, value in values.items():
        if key == "_run" or value is None:
            continue
        if key not in actions or key in ("help", "config"):
            raise UserError(f"--config {path} sets {key!r}, which is not a flag of this program.")
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        if actions[key].option_strings:
            tokens.append(f"--{key}={text}")
        elif text not in argv:  # a positional: the command line may repeat it
            tokens.append(text)
    return tokens
