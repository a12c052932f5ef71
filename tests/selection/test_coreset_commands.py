"""coreset as a command, on toy scenes and on real photos."""

import numpy as np
import pytest
import torch
from commands import DISTILL, EXPERTS, toy

import buffer
import distill_lors
from distill_utils import coreset, evaluate
from distill_utils.experts.forgetting import read_forgetting
from distill_utils.runs import flags
from distill_utils.runs.errors import UserError
from distill_utils.runs.seeds import generator
from distill_utils.selection import coresets
from distill_utils.selection.coresets import CORESETS
from distill_utils.selection.features import open_features
from distill_utils.synthetic.set import SyntheticSet
from distill_utils.task.from_flags import model_maker, open_task


def choose(folder, method, n, *flags):
    return coreset.main(
        [method, *toy(folder), "--buffer_path", f"{folder}/buffers", "--num_queries", str(n), *flags]
    )


@pytest.mark.parametrize("method", CORESETS)
def test_every_method_chooses_distinct_pairs_of_distinct_photos(here, method):
    path = choose(here, method, 20)
    indices = np.load(path.with_name("indices.npy"))
    assert (
        len(set(indices)) == 20
        and len(set(indices // 5)) == 20
        and indices.min() >= 0
        and indices.max() < 150
    )
    synthetic = SyntheticSet.load(path)
    assert torch.equal(synthetic.similarity(), torch.eye(20)) and synthetic.meta["coreset"] == method
    again = np.load(choose(here, method, 20).with_name("indices.npy"))
    assert np.array_equal(indices, again)
    several = np.load(choose(here, method, 40, "--unique_images", "false").with_name("indices.npy"))
    assert len(set(several)) == 40


def test_buffer_records_what_its_experts_forgot(here):
    folder = here / "buffers/toy/test_nfnet_toy_bert/InfoNCE"
    events, learned = read_forgetting(folder, 150)
    assert (
        0 < learned.sum() <= 300 and learned.max() <= 2 and events.max() <= 2 * 1
    )  # three epochs: right, wrong and right at most
    with pytest.raises(UserError, match="149 train pairs"):
        read_forgetting(folder, 149)


def test_a_coreset_is_what_distillation_begins_with_and_what_experts_train_on(here):
    path = choose(here, "herding", 6)
    indices = path.with_name("indices.npy")
    run = [
        *toy(here),
        *DISTILL,
        "--buffer_path",
        f"{here}/buffers",
        "--name",
        "from_coreset",
        "--fresh",
        "--init_indices",
        str(indices),
    ]
    first = SyntheticSet.load(distill_lors.main(run) / "distilled_0.pt")
    assert torch.equal(first.images, SyntheticSet.load(path).images) and torch.equal(
        first.texts, SyntheticSet.load(path).texts
    )
    with pytest.raises(UserError, match="names 6 pairs, fewer than --num_queries 7"):
        distill_lors.main([*run, "--num_queries", "7"])
    subset = ["--train_subset", str(indices)]
    experts = buffer.main(
        [
            *toy(here),
            *EXPERTS,
            "--num_experts",
            "1",
            "--buffer_path",
            f"{here}/subset",
            "--name",
            "subset",
            *subset,
        ]
    )
    assert len(torch.load(experts / "forgetting_0.pt", weights_only=True)["events"]) == 6
    with pytest.raises(UserError, match="--train_subset"):
        distill_lors.main([*run, "--buffer_path", f"{here}/subset"])
    of_subset = coreset.main(
        [
            "clip",
            *toy(here),
            "--buffer_path",
            f"{here}/subset",
            "--num_queries",
            "3",
            "--name",
            "of_subset",
            *subset,
        ]
    )
    assert set(np.load(of_subset.with_name("indices.npy"))) < set(
        np.load(indices)
    )  # numbers of the annotation file
    rows = evaluate.main([*toy(here), "--ckpt_path", str(path), "--num_eval", "1", "--epoch_eval_train", "2"])
    assert rows["distilled"]["pairs"] == 6


@pytest.mark.parametrize(
    "values, sentence",
    [
        (np.array([1, 2, 2]), "more than once"),
        (np.array([[1, 2]]), "whole numbers in one dimension"),
        (np.array([0.5, 1]), "whole numbers in one dimension"),
        (np.array([0, 150]), "names the train pair 150"),
        (np.array([-1, 3]), "names the train pair -1"),
        (np.array([], int), "whole numbers"),
        (np.array([None]), "cannot be read"),
        (None, "does not exist"),
    ],
)
def test_a_file_that_names_no_train_pairs_gets_a_sentence(here, tmp_path, values, sentence):
    path = tmp_path / "indices.npy"
    if values is not None:
        np.save(path, values)
    with pytest.raises(UserError, match=sentence) as error:
        choose(here, "random", 2, "--train_subset", str(path))
    assert "indices.npy" in str(error.value)


def test_what_cannot_be_chosen_gets_a_sentence(here, tmp_path):
    with pytest.raises(UserError, match="31 asks for more pairs than the 30 train images"):
        choose(here, "herding", 31)
    with pytest.raises(UserError, match="--expert 2 does not exist"):
        choose(here, "herding", 3, "--expert", "2")
    with pytest.raises(UserError, match="holds no experts"):
        choose(here, "herding", 3, "--buffer_path", f"{tmp_path}/none")
    with pytest.raises(UserError, match="holds no forgetting"):
        choose(here, "forgetting", 3, "--buffer_path", f"{tmp_path}/none")
    with pytest.raises(UserError, match="[Ii]nvalid choice"):
        choose(here, "best", 3)


def test_every_method_on_real_photos(shared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photos = (
        f"--dataset flickr8k --image_root {shared}/flickr8k_1k --ann_root {shared}/flickr8k_1k "
        "--image_size 32 --image_encoder test_nfnet --image_pretrained false --text_encoder toy_bert "
        f"--num_workers 0 --no_aug --device cpu --checkpoint_dir {tmp_path}/checkpoints "
        f"--buffer_path {tmp_path}/buffers"
    ).split()
    folder = buffer.main([*photos, *"--num_experts 1 --train_epochs 1 --eval_freq 1".split()])
    path = coreset.main(["herding", *photos, "--num_queries", "50"])
    args = flags.parse(coreset.make_parser(), ["herding", *photos])
    task = open_task(args, torch.device("cpu"))
    cpu = torch.device("cpu")
    features = open_features(args, task, model_maker(args, task, cpu), cpu)
    forgetting = read_forgetting(folder, 3000)
    for method in CORESETS:
        pairs = coresets.select(
            method,
            task,
            50,
            generator(0, "coreset"),
            features=lambda: features,
            forgetting=lambda: forgetting,
        )
        assert len(set(task.train.image_index[pairs].tolist())) == 50
        if method == "herding":
            assert np.array_equal(np.load(path.with_name("indices.npy")), pairs.numpy())
