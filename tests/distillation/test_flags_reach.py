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
    from_flags.open_objective(parse(*words.split()), RUN, TinyTask(), model, experts)
    ((used, loss_fn), options) = matcher.calls[0]
    assert used is model and loss_fn is LOSSES["WBCE"] and options["world"] is ALONE
    assert options[name] == wanted
    assert objective.calls[0][0] == (matcher, experts) and len(matcher.calls) == 1


@pytest.mark.parametrize("loss", LOSSES)
def test_the_loss_is_the_one_asked_for(spies, loss):
    matcher, _ = spies("Matcher", "TrajectoryMatching")
    from_flags.open_objective(parse("--loss_type", loss), RUN, TinyTask(), tiny_model(), object())
    assert matcher.calls[0][0][1] is LOSSES[loss]


def test_flags_of_the_objective(spies):
    matcher, objective = spies("Matcher", "TrajectoryMatching")
    words = "--syn_steps 3 --mini_batch_size 5 --expert_epochs 4 --max_start_epoch 6 --check_gradient 7"
    from_flags.open_objective(parse(*words.split()), RUN, TinyTask(), tiny_model(), object())
    told = objective.told
    assert (told["syn_steps"], told["mini_batch_size"]) == (3, 5)
    assert (told["expert_epochs"], told["max_start_epoch"], told["check_every"]) == (4, 6, 7)
    assert [options["second_order"] for _, options in matcher.calls] == ["finite", "forward"]


@pytest.mark.parametrize("words, kind", [("", "permutation"), ("--minibatches independent", "independent")])
def test_how_minibatches_are_drawn(spies, words, kind):
    _, objective = spies("Matcher", "TrajectoryMatching")
    from_flags.open_objective(parse(*words.split()), RUN, TinyTask(), tiny_model(), object())
    assert objective.told["minibatches"] == kind


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


def open_loop(spies, *words, state=None):
    """The Spies of the optimiser, the loop and the recorder, and the two evaluations that it was given."""
    made = spies("outer_optimizer", "OuterLoop", "Recorder", "evaluate_synthetic_set")
    task, model_maker, synthetic = TinyTask(), object(), object()
    opened = from_flags.open_loop(parse(*words), RUN, synthetic, object(), state, task, model_maker)
    optimizer, loop, recorder, evaluate = made
    assert opened == (loop, recorder) and recorder.calls[0][0][:3] == (RUN, loop, task)
    look, test = recorder.calls[0][0][3:]
    for students in (look, test):
        students("a set")
    (given, looked), (_, tested) = evaluate.calls
    assert given == ("a set",) and (looked["task"], looked["make_model"]) == (task, model_maker)
    return optimizer, loop, recorder, looked, tested


def test_flags_of_the_optimiser_and_the_loop(spies):
    words = (
        "--lr_img 1 --lr_txt 2 --lr_lr 3 --lr_sim 4 --momentum_syn .1 --momentum_lr .2 --momentum_sim .3 "
        "--learn images,lrs --clamp_lr .01 --max_lr 7 --max_bad_steps 9 "
        "--Iteration 70 --eval_it 30 --save_it 20"
    )
    optimizer, loop, recorder, *_ = open_loop(spies, *words.split())
    assert optimizer.told == {
        "lr_img": 1.0,
        "lr_txt": 2.0,
        "lr_lr": 3.0,
        "lr_sim": 4.0,
        "momentum_syn": 0.1,
        "momentum_lr": 0.2,
        "momentum_sim": 0.3,
        "learn": ("images", "lrs"),
    }
    assert (loop.told["clamp_lr"], loop.told["max_lr"], loop.told["max_bad_steps"]) == (0.01, 7.0, 9)
    told = recorder.told
    assert (told["last_step"], told["eval_it"], told["save_it"]) == (70, 30, 20)


def test_flags_of_the_students(spies):
    words = (
        "--epoch_eval_train 6 --batch_eval 5 --loss_type KL --temperature .3 --precision bf16 --num_eval 4 "
        "--num_eval_during 3 --measurements 7"
    )
    *_, looked, tested = open_loop(spies, *words.split())
    for students in (looked, tested):
        assert (students["epochs"], students["batch_size"], students["loss_type"]) == (6, 5, "KL")
        assert (students["temperature"], students["precision"]) == (0.3, "bf16")
        assert "lrs" not in students  # those that the set has learned
    assert (looked["num_eval"], looked["measurements"], looked["splits"]) == (3, 7, ("val",))
    assert tested["num_eval"] == 4 and tested.keys().isdisjoint(("splits", "measurements"))


def test_students_while_distilling_are_no_more_than_those_of_the_test(spies):
    *_, looked, tested = open_loop(spies, "--num_eval", "1", "--num_eval_during", "3", "--eval_test")
    assert (looked["num_eval"], tested["num_eval"], looked["splits"]) == (1, 1, ("val", "test"))


def test_the_seed_reaches_the_students(spies):
    seeds = [open_loop(spies, "--seed", str(seed))[-1]["seed"] for seed in (3, 3, 4)]
    assert seeds[0] == seeds[1] != seeds[2]


def test_a_run_that_goes_on_knows_its_evaluations(spies, tmp_path):
    RUN_THERE = SimpleNamespace(world=ALONE, device="cpu", directory=tmp_path)
    _, loop, recorder = spies("outer_optimizer", "OuterLoop", "Recorder")
    loop.load_state = Spy()
    state = {"evaluations": {0: {"val_r_mean": 1}}, "tested": {"step": 0}}
    from_flags.open_loop(parse(), RUN_THERE, object(), object(), state, TinyTask(), object())
    assert (recorder.told["evaluations"], recorder.told["tested"]) == (state["evaluations"], state["tested"])
    assert loop.load_state.calls == [((state, tmp_path / "state.pt"), {})]
