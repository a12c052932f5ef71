"""Each flag of distill_lors.py arrives where it is meant to: at the matcher, the objective, the set, the
optimiser, the students.
"""

from types import SimpleNamespace

import pytest
from builders import TinyTask, tiny_model

import distill_lors
from distill_utils.distillation import from_flags
from distill_utils.runs import flags
from distill_utils.runs.processes import ALONE
from distill_utils.training.losses import LOSSES


def parse(*words):
    return flags.parse(distill_lors.make_parser(), [*words, "--device", "cpu"])


class Spy:
    """Stands for something that is called; remembers how."""

    def __init__(self):
        self.calls = []

    def __call__(self, *args, **options):
        self.calls.append((args, options))
        return self

    @property
    def told(self):
        """The options of the only call."""
        ((_, options),) = self.calls
        return options


@pytest.fixture
def spies(monkeypatch):
    """spies(*names) -> a Spy in the place of each of from_flags' names."""

    def spies(*names):
        made = [Spy() for _ in names]
        for name, spy in zip(names, made):
            monkeypatch.setattr(from_flags, name, spy)
        return made

    return spies


RUN = SimpleNamespace(world=ALONE, device="cpu", directory=None, state=None)


@pytest.mark.parametrize(
    "words, name, wanted",
    [
        ("", "merge_towers", False),
        ("--merge_loss_branches", "merge_towers", True),
        ("", "gradient", "truncated"),
        ("--gradient full", "gradient", "full"),
        ("", "second_order", "finite"),
        ("--second_order reverse", "second_order", "reverse"),
        ("", "temperature", 0.07),
        ("--temperature .3", "temperature", 0.3),
        ("--precision tf32", "precision", "tf32"),
        ("--compile", "compile", True),
        ("--path_device cpu", "path_device", "cpu"),
    ],
)
def test_flags_of_the_matcher(spies, words, name, wanted):
    matcher, objective = spies("Matcher", "TrajectoryMatching")
    model, experts = tiny_model(), object()
    from_flags.open_objective(parse(*words.split()), RUN, model, experts)
    ((used, loss_fn), options) = matcher.calls[0]
    assert used is model and loss_fn is LOSSES["WBCE"] and options["world"] is ALONE
    assert options[name] == wanted
    assert objective.calls[0][0] == (matcher, experts) and len(matcher.calls) == 1


@pytest.mark.parametrize("loss", LOSSES)
def test_the_loss_is_the_one_asked_for(spies, loss):
    matcher, _ = spies("Matcher", "TrajectoryMatching")
    from_flags.open_objective(parse("--loss_type", loss), RUN, tiny_model(), object())
    assert matcher.calls[0][0][1] is LOSSES[loss]


def test_flags_of_the_objective(spies):
    matcher, objective = spies("Matcher", "TrajectoryMatching")
    words = "--syn_steps 3 --mini_batch_size 5 --expert_epochs 4 --max_start_epoch 6 --check_gradient 7"
    from_flags.open_objective(parse(*words.split()), RUN, tiny_model(), object())
    told = objective.told
    assert (told["syn_steps"], told["mini_batch_size"]) == (3, 5)
    assert (told["expert_epochs"], told["max_start_epoch"], told["check_every"]) == (4, 6, 7)
    assert [options["second_order"] for _, options in matcher.calls] == ["finite", "forward"]


def test_the_experts_must_reach_from_the_last_start_to_its_target(spies):
    folder, same, experts, _ = spies(
        "experts_folder", "require_same_experts", "ExpertTrajectories", "require_no_running_statistics"
    )
    experts.require_fits = Spy()
    wanted, model = {"image_size": 32}, tiny_model()
    assert from_flags.open_experts(parse("--expert_epochs", "4", "--max_start_epoch", "6"), wanted, model)
    assert experts.require_fits.calls == [((model, 5, 4), {})] and same.calls[0][0] == (folder, wanted)


def test_flags_of_the_first_set(spies):
    select, similarity, first = spies("select", "build_similarity", "initial_set")
    words = (
        "--num_queries 9 --mini_batch_size 2 --sim_type full --sim_rank 4 --alpha 2 --pix_init noise "
        "--lr_teacher_img .3 --lr_teacher_txt .4 --loss_type KL --temperature .2"
    )
    task, meta = TinyTask(), {"image_size": 32}
    state, synthetic = from_flags.open_set(parse(*words.split()), RUN, task, meta)
    assert state is None and synthetic is first
    assert select.calls[0][0][:3] == ("random", task, 9)
    ((kind, pairs), shape) = similarity.calls[0]
    assert (kind, pairs, shape["rank"], shape["alpha"]) == ("full", 9, 4, 2.0)
    told = first.told
    assert (told["pix_init"], told["txt_init"], told["lrs"]) == ("noise", "real", (0.3, 0.4))
    assert told["meta"] == meta | {"loss": "KL", "temperature": 0.2}


@pytest.mark.parametrize("seeds, same", [((3, 3), True), ((3, 4), False)])
def test_the_seed_decides_the_first_pairs(spies, seeds, same):
    select, *_ = spies("select", "build_similarity", "initial_set")
    for seed in seeds:
        from_flags.open_set(parse("--seed", str(seed)), RUN, TinyTask(), {})
    states = [args[3].initial_seed() for args, _ in select.calls]
    assert (states[0] == states[1]) == same
