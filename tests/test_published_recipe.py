"""The published recipe's own networks, NFNet-L0 at 224 px and a BERT of base size, through every program on
the CPU.
"""

import timm
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

import buffer
import distill_lors
from distill_utils import evaluate
from distill_utils.synthetic.set import SyntheticSet


def write_checkpoints(folder):
    """nfnet_l0's file and bert-base-uncased's folder, with random weights, as a user would download them."""
    torch.manual_seed(0)
    folder.mkdir()
    torch.save(timm.create_model("nfnet_l0").state_dict(), folder / "nfnet_l0_ra2-45c6688d.pth")
    bert = folder / "bert-base-uncased"
    bert.mkdir()
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *"abcdefghijklmnopqrstuvwxyz",
        *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"),
        "red",
        "blue",
        "circle",
    ]
    (bert / "vocab.txt").write_text("\n".join(words))
    BertModel(BertConfig(vocab_size=30522)).save_pretrained(bert)
    BertTokenizerFast.from_pretrained(bert).save_pretrained(bert)


def test_nfnet_l0_and_bert_at_224_pixels(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_checkpoints(tmp_path / "checkpoints")
    common = [
        "--dataset",
        "toy",
        "--image_root",
        "data",
        "--ann_root",
        "data",
        "--toy_size",
        "3,2,2",
        "--image_size",
        "224",
        "--image_encoder",
        "nfnet",
        "--text_encoder",
        "bert",
        "--checkpoint_dir",
        "checkpoints",
        "--num_workers",
        "0",
        "--device",
        "cpu",
    ]
    folder = buffer.main(
        [
            *common,
            "--num_experts",
            "1",
            "--train_epochs",
            "1",
            "--batch_train",
            "8",
            "--lr_teacher_img",
            "0.01",
            "--buffer_path",
            "buffers",
        ]
    )
    assert folder.as_posix() == "buffers/toy/nfnet_bert/InfoNCE"
    (expert,) = torch.load(folder / "img_replay_buffer_0.pt", weights_only=True)
    published = torch.load("checkpoints/nfnet_l0_ra2-45c6688d.pth", weights_only=True)
    assert torch.equal(expert[0][0], published["stem.conv1.weight"])  # training started from the file
    directory = distill_lors.main(
        [
            *common,
            "--buffer_path",
            "buffers",
            "--num_queries",
            "2",
            "--mini_batch_size",
            "2",
            "--syn_steps",
            "1",
            "--max_start_epoch",
            "1",
            "--sim_rank",
            "1",
            "--Iteration",
            "1",
            "--eval_it",
            "1",
            "--num_eval",
            "1",
            "--epoch_eval_train",
            "1",
            "--name",
            "run",
        ]
    )
    synthetic = SyntheticSet.load(directory / "distilled_1.pt")
    assert synthetic.images.shape == (2, 3, 224, 224) and synthetic.texts.shape == (2, 768)
    rows = evaluate.main(
        [
            *common,
            "--ckpt_path",
            str(directory / "distilled_1.pt"),
            "--num_eval",
            "1",
            "--epoch_eval_train",
            "1",
        ]
    )
    assert rows["distilled"]["r_mean"]["n"] == 1
