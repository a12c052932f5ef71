"""The switches of trajectory matching through whole commands: together, stopped, divided, and mistaken."""

import json

import pytest
from commands import DISTILL, EXPERTS, distill, read_log, toy
from sameness import assert_same_run

import buffer
import distill_lors
from distill_utils import coreset
from distill_utils.runs.errors import UserError
from distill_utils.synthetic.set import SyntheticSet

P2 = ["--image_trainable", "false", "--no_aug"]
ALL = (
    "--init k-means --start_epochs independent --max_start_epoch 2 --shortcut 3 --blend 1 --ema 0.5 "
    "--num_eval 1 --Iteration 4 --eval_it 2 --save_it 1 --epoch_eval_train 2 --lr_img 0.1 --lr_txt 0.1 "
    "--lr_sim 0.01"
).split()


@pytest.fixture(scope="module")
def heads(home):
    """A folder with experts whose image tower is frozen; the toy task's data are home's."""
    buffer.main([*toy(home), *EXPERTS, *P2, "--buffer_path", f"{home}/heads", "--name", "heads"])
    return home


def command(home, name, *more):
    return [*toy(home), *DISTILL, *P2, "--buffer_path", f"{home}/heads", "--name", name, *more]


@pytest.mark.parametrize("how", ["", "--gradient full --second_order reverse"])
def test_all_switches_go_on_where_a_run_was_stopped_and_divide_over_processes(heads, forker, how):
    how = how.split()
    tag = "_".join(["all", *how[1::2]])
    assert forker.run("distill_lors", command(heads, f"{tag}_whole", *ALL, *how), heads) == 0
    for steps in ("1", "3", "4"):
        argv = command(heads, f"{tag}_stopped", *ALL, *how, "--Iteration", steps)
        assert forker.run("distill_lors", argv, heads) == 0
    assert forker.together("distill_lors", command(heads, f"{tag}_divided", *ALL, *how), heads, 3) == [0] * 3
    folders = [heads / f"logged_files/toy/{tag}_{name}" for name in ("whole", "stopped", "divided")]
    assert_same_run(folders[0], folders[2])
    final = [SyntheticSet.load(folder / "distilled_4.pt").digest() for folder in folders]
    assert len(set(final)) == 1


@pytest.mark.parametrize("method", ["k-means", "forgetting"])
def test_a_coreset_is_the_start(here, method):
    run = distill(here, f"begins_{method}", "--num_eval", "1", "--Iteration", "1", "--init", method)
    words = [method, *toy(here), "--buffer_path", f"{here}/buffers", "--num_queries", "6"]
    chosen = SyntheticSet.load(coreset.main([*words, "--name", f"chosen_{method}"]))
    first = SyntheticSet.load(run / "distilled_0.pt")
    # The same method asked with other random numbers: the best pairs agree where chance has no say
    assert set(first.meta["source_captions"]) - {None} and len(first) == len(chosen) == 6
    if method == "k-means":
        random = SyntheticSet.load(distill(here, "begins_random", "--num_eval", "1") / "distilled_0.pt")
        assert first.digest() != random.digest()


def test_the_log_says_nothing_new_of_a_run_without_switches_and_where_towers_start_of_one_with(here):
    few = ["--num_eval", "1", "--Iteration", "2", "--eval_it", "2"]
    plain = distill(here, "no_switch", *few)
    apart = distill(here, "apart", *few, "--start_epochs", "independent")
    keys = [set(read_log(folder)[-1]) for folder in (plain, apart)]
    assert keys[0] == keys[1]
    results = json.loads((apart / "results.json").read_text())
    assert results["selected_step"] in (0, 2)


@pytest.mark.parametrize(
    "words, said",
    [
        ("--blend 1", "--image_trainable false"),
        ("--objective mdm --precision bf16", "--objective mdm does not compute in bf16"),
        ("--ema 1", "at least 0 and below 1, not '1'"),
        ("--shortcut 1", "--shortcut 1 ends before epoch 2"),
        ("--shortcut 9", "has 3 epochs"),
        ("--min_start_epoch 2", "--min_start_epoch 2 must be below --max_start_epoch 2"),
        ("--start_epochs ranges --expert_epochs 5", "of 5 epochs"),
        ("--init farthest", "farthest"),
    ],
)
def test_mistakes(here, words, said):
    with pytest.raises(UserError, match=said):
        distill_lors.main(
            [
                *toy(here),
                *DISTILL,
                "--buffer_path",
                f"{here}/buffers",
                "--name",
                "bad",
                "--fresh",
                *words.split(),
            ]
        )
