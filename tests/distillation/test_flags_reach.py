"""Each flag of distill_lors.py arrives where it is meant to: at the matcher, the objective, the set, the
optimiser, the students.
"""

from types import SimpleNamespace

import pytest
from builders import TinyTask, tiny_model

import distill_lors
from distill_utils.distillation import from_flags, objectives
from distill_utils.runs import flags
from distill_utils.runs.processes import ALONE
from distill_utils.training.losses import LOSSES


def parse(*words):
    return flags.parse(distill_lors.make_parser(), [*words, "--device", "cpu"])


class Spy:
    """Stands for something that is called; remembers how."""

    def __init__(self):
        self.calls, self.gives = [], self

    def __call__(self, *args, **options):
        self.calls.append((args, options))
        return self.gives

    def to(self, device):
        return self

    @property
    def told(self):
        """The options of the only call."""
        ((_, options),) = self.calls
        return options


@pytest.fixture
def spies(monkeypatch):
    """spies(*names) -> a Spy in the place of each of these names, in from_flags or another module."""

    def spies(*names, where=from_flags):
        made = [Spy() for _ in names]
        for name, spy in zip(names, made):
            monkeypatch.setattr(where, name, spy)
        return made

    return spies


EXPERTS, STARTS = object(), object()
RUN = SimpleNamespace(world=ALONE, device="cpu", directory=None, state=None)


def trajectory_matching(spies, *words):
    """The Spies of the matcher and of the objective that the flags open, and the model they are for."""
    made, model = spies("Matcher", "TrajectoryMatching", where=objectives), tiny_model().eval()
    _, opened = spies("made_with", "open_experts", where=objectives)
    opened.gives = EXPERTS, STARTS
    objectives.open_trajectory_matching(parse(*words), RUN, TinyTask(), lambda: model)
    return *made, model


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
    matcher, objective, model = trajectory_matching(spies, *words.split())
    ((used, loss_fn), options) = matcher.calls[0]
    assert used is model and used.training and loss_fn is LOSSES["WBCE"] and options["world"] is ALONE
    assert options[name] == wanted
    assert objective.calls[0][0] == (matcher, EXPERTS) and len(matcher.calls) == 1


@pytest.mark.parametrize("loss", LOSSES)
def test_the_loss_is_the_one_asked_for(spies, loss):
    matcher, *_ = trajectory_matching(spies, "--loss_type", loss)
    assert matcher.calls[0][0][1] is LOSSES[loss]


def test_flags_of_the_objective(spies):
    words = "--syn_steps 3 --mini_batch_size 5 --expert_epochs 4 --check_gradient 7 --blend .5"
    matcher, objective, _ = trajectory_matching(spies, *words.split())
    told = objective.told
    assert (told["syn_steps"], told["mini_batch_size"], told["blend"]) == (3, 5, 0.5)
    assert (told["expert_epochs"], told["starts"], told["check_every"]) == (4, STARTS, 7)
    assert [options["second_order"] for _, options in matcher.calls] == ["finite", "forward"]


@pytest.mark.parametrize("words, kind", [("", "permutation"), ("--minibatches independent", "independent")])
def test_how_minibatches_are_drawn(spies, words, kind):
    _, objective, _ = trajectory_matching(spies, *words.split())
    assert objective.told["minibatches"] == kind


def test_the_experts_must_reach_from_the_last_start_to_its_target(spies):
    names = "experts_folder", "require_same_experts", "ExpertTrajectories", "require_no_running_statistics"
    folder, same, experts, _ = spies(*names, where=objectives)
    experts.require_fits = Spy()
    wanted, model = {"image_size": 32}, tiny_model()
    words = "--expert_epochs 4 --max_start_epoch 6 --min_start_epoch 2 --start_epochs independent"
    opened, starts = objectives.open_experts(parse(*words.split()), wanted, model)
    assert opened is experts and not starts.together and starts.epochs == (range(2, 6), range(2, 6))
    assert experts.require_fits.calls == [((model, 5, 4), {})] and same.calls[0][0] == (folder, wanted)


def test_a_shortcut_takes_the_place_of_the_experts_paths(spies):
    names = "experts_folder", "require_same_experts", "ShortcutTrajectories", "require_no_running_statistics"
    folder, _, shortcut, _ = spies(*names, where=objectives)
    shortcut.require_fits = Spy()
    experts, starts = objectives.open_experts(parse("--shortcut", "5"), {}, tiny_model())
    assert experts is shortcut and shortcut.calls[0][0] == (folder, 5) and starts.together


def test_flags_of_the_first_set(spies, monkeypatch):
    chosen, similarity, first = spies("chosen_pairs", "build_similarity", "initial_set")
    monkeypatch.setattr(from_flags, "made_with", lambda *_: {"image_size": 32})
    words = (
        "--num_queries 9 --mini_batch_size 2 --sim_type full --sim_rank 4 --alpha 2 --pix_init noise "
        "--lr_teacher_img .3 --lr_teacher_txt .4 --loss_type KL --temperature .2"
    )
    task, args = TinyTask(), parse(*words.split(), "--init", "k-means")
    state, synthetic = from_flags.open_set(args, RUN, task, tiny_model)
    assert state is None and synthetic is first
    method, flags_, of, maker, *_ = chosen.calls[0][0]
    assert (method, flags_, of, maker()) == ("k-means", args, task, tiny_model)
    ((kind, pairs), shape) = similarity.calls[0]
    assert (kind, pairs, shape["rank"], shape["alpha"]) == ("full", 9, 4, 2.0)
    told = first.told
    assert (told["pix_init"], told["txt_init"], told["lrs"]) == ("noise", "real", (0.3, 0.4))
    assert told["meta"] == {"image_size": 32, "loss": "KL", "temperature": 0.2}


@pytest.mark.parametrize("seeds, same", [((3, 3), True), ((3, 4), False)])
def test_the_seed_decides_the_first_pairs(spies, monkeypatch, seeds, same):
    chosen, *_ = spies("chosen_pairs", "build_similarity", "initial_set")
    monkeypatch.setattr(from_flags, "made_with", lambda *_: {})
    for seed in seeds:
        from_flags.open_set(parse("--seed", str(seed)), RUN, TinyTask(), tiny_model)
    states = [args[5].initial_seed() for args, _ in chosen.calls]
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


def test_an_average_is_asked_for(spies):
    (average,) = spies("Average")
    _, loop, *_ = open_loop(spies, "--ema", "0.75")
    assert average.calls[0][0][1] == 0.75 and loop.told["average"] is average
    _, loop, *_ = open_loop(spies)
    assert loop.told["average"] is None


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
