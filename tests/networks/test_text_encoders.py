"""Text encoders of transformers, on checkpoints that the tests write."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizerFast,
    CLIPConfig,
    CLIPModel,
    DistilBertConfig,
    DistilBertModel,
    OpenAIGPTConfig,
    OpenAIGPTModel,
)

from distill_utils.runs.errors import UserError
from networks.text_encoders import (
    MAX_TOKENS,
    TextEncoder,
    build_text_encoder,
    embed_captions,
    ensure_toy_bert,
)

CAPTIONS = [
    "a red circle on a blue background",
    "two green squares",
    "a small yellow star left of a red circle",
    "a large blue ring",
    "two red squares",
]


def write_checkpoint(folder, make_model, seed=0):
    """A folder with a tokenizer of CAPTIONS' words and make_model(number of words)."""
    folder.mkdir(parents=True, exist_ok=True)
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *sorted({word for caption in CAPTIONS for word in caption.split()}),
    ]
    (folder / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizerFast.from_pretrained(folder)
    torch.manual_seed(seed)
    model = make_model(len(words))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def small_bert(words):
    return BertModel(
        BertConfig(
            vocab_size=words, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
        )
    )


def write_bert(folder, seed=0):
    return write_checkpoint(folder, small_bert, seed)


def small_clip(words):
    text = {
        "vocab_size": words,
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    text |= {"eos_token_id": 3, "projection_dim": 6}
    vision = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "image_size": 32,
        "patch_size": 16,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=6))


def small_gpt(words):
    return OpenAIGPTModel(OpenAIGPTConfig(vocab_size=words, n_positions=64, n_embd=8, n_layer=2, n_head=2))


def small_distilbert(words):
    return DistilBertModel(DistilBertConfig(vocab_size=words, dim=8, n_layers=2, n_heads=2, hidden_dim=16))


@pytest.mark.parametrize(
    "name, folder, make_model, expected",
    [
        (
            "distilbert",
            "distilbert-base-uncased",
            small_distilbert,
            lambda model, tokens: model(**tokens).last_hidden_state[:, 0],
        ),
        (
            "clip",
            "clip-vit-base-patch32",
            small_clip,
            lambda model, tokens: model.get_text_features(**tokens),
        ),
        ("gpt1", "openai-gpt", small_gpt, lambda model, tokens: model(**tokens).last_hidden_state[:, -1]),
        (
            "bge",
            "bge-base-en-v1.5",
            small_bert,
            lambda model, tokens: F.normalize(model(**tokens).last_hidden_state[:, 0], dim=1),
        ),
        (
            "sentences",
            "sentences",
            small_bert,
            lambda model, tokens: model(**tokens).last_hidden_state.mean(dim=1),
        ),
    ],
)
def test_every_text_encoder_pools_as_it_was_trained_to(name, folder, make_model, expected, tmp_path):
    model = write_checkpoint(tmp_path / folder, make_model).eval()
    if name in ("bge", "sentences"):  # the files by which sentence encoders say how they pool
        (tmp_path / folder / "1_Pooling").mkdir()
        pooling = {"pooling_mode_cls_token": name == "bge", "pooling_mode_mean_tokens": name == "sentences"}
        (tmp_path / folder / "1_Pooling/config.json").write_text(json.dumps(pooling))
        kinds = ["Transformer", "Pooling", *(["Normalize"] if name == "bge" else [])]
        (tmp_path / folder / "modules.json").write_text(
            json.dumps([{"type": f"sentence_transformers.models.{kind}"} for kind in kinds])
        )
    encoder = build_text_encoder(name, checkpoint_dir=tmp_path)
    tokens = encoder.tokenizer([CAPTIONS[1]], return_tensors="pt")
    with torch.no_grad():
        alone = expected(model, {key: tokens[key] for key in ("input_ids", "attention_mask")})
    alone = getattr(alone, "pooler_output", alone)
    for batch_size in (1, 3, 100):  # among captions of other lengths: padding must not matter
        vectors = encoder(CAPTIONS, "cpu", batch_size)
        assert vectors.shape == (len(CAPTIONS), encoder.width) and torch.allclose(
            vectors[1], alone[0], atol=1e-5
        )


def test_bert_is_found_in_the_checkpoint_folder_and_gives_cls_vectors(tmp_path):
    model = write_bert(tmp_path / "bert-base-uncased").eval()
    encoder = build_text_encoder("bert", checkpoint_dir=tmp_path)
    tokens = encoder.tokenizer([CAPTIONS[1]], return_tensors="pt")
    with torch.no_grad():
        expected = model(**tokens).last_hidden_state[:, 0]
    # Among captions of other lengths: padding must not matter, nor dropout, nor the batch size.
    for batch_size in (1, 3, 100):
        assert torch.allclose(encoder(CAPTIONS, "cpu", batch_size)[1], expected[0], atol=1e-5)
    assert not any(parameter.requires_grad for parameter in encoder.model.parameters())


def test_a_long_caption_is_cut(tmp_path):
    write_bert(tmp_path / "b")
    encoder = build_text_encoder(str(tmp_path / "b"), checkpoint_dir=tmp_path)
    red, blue = ("a red " * MAX_TOKENS + end for end in ("red", "blue"))
    assert torch.equal(*encoder([red, blue], "cpu"))


def test_random_text_weights_on_demand(tmp_path):
    write_bert(tmp_path / "b", seed=1)
    prints = [
        build_text_encoder(str(tmp_path / "b"), pretrained=pretrained, checkpoint_dir=tmp_path).fingerprint()
        for pretrained in (True, False, False)
    ]
    assert prints[0] != prints[1] == prints[2]


def test_missing_or_broken_text_encoders_are_one_sentence(tmp_path):
    with pytest.raises(
        UserError, match="'bert' cannot be loaded: no folder .*bert-base-uncased, and the hub gave none"
    ):
        build_text_encoder("bert", checkpoint_dir=tmp_path)
    write_bert(tmp_path / "b")
    (tmp_path / "b" / "model.safetensors").write_bytes(b"12345")
    with pytest.raises(UserError, match="is not a whole checkpoint"):
        build_text_encoder(str(tmp_path / "b"), checkpoint_dir=tmp_path)


class Counting(TextEncoder):
    calls = 0

    def __call__(self, *args, **kwargs):
        Counting.calls += 1
        return super().__call__(*args, **kwargs)


def test_the_cache_is_used_and_never_stale(tmp_path):
    def embed(captions, folder):
        plain = build_text_encoder(str(folder), checkpoint_dir=tmp_path)
        calls = Counting.calls
        vectors = embed_captions(
            Counting(plain.tokenizer, plain.model), captions, cache_dir=tmp_path / "cache", device="cpu"
        )
        assert torch.allclose(vectors, plain(captions, "cpu"), atol=1e-6)
        return Counting.calls - calls

    write_bert(tmp_path / "one")
    assert [embed(CAPTIONS, tmp_path / "one") for _ in range(2)] == [1, 0]
    assert embed(CAPTIONS[:-1], tmp_path / "one") == 1  # other captions
    assert embed(CAPTIONS[::-1], tmp_path / "one") == 1  # another order
    write_bert(tmp_path / "one", seed=1)
    assert embed(CAPTIONS, tmp_path / "one") == 1  # other weights under the same name
    vocabulary = json.loads((tmp_path / "one" / "tokenizer.json").read_text())
    words = vocabulary["model"]["vocab"]
    words["red"], words["blue"] = words["blue"], words["red"]
    (tmp_path / "one" / "tokenizer.json").write_text(json.dumps(vocabulary))
    assert embed(CAPTIONS, tmp_path / "one") == 1  # another vocabulary
    for file in (tmp_path / "cache").iterdir():
        file.write_bytes(b"broken")
    assert embed(CAPTIONS, tmp_path / "one") == 1


def test_toy_bert_is_a_plain_checkpoint_whose_vectors_tell_captions_apart(tmp_path):
    colours, shapes = ("red", "green", "blue", "black"), ("ring", "star", "cross", "heart")
    captions = [
        f"{article} {colour} {shape} on a {other} background"
        for article in ("a", "one")
        for colour in colours
        for shape in shapes
        for other in ("white", "grey")
    ]
    folder = ensure_toy_bert(captions, tmp_path)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
    assert ensure_toy_bert(captions, tmp_path) == folder and ensure_toy_bert(captions[1:], tmp_path) != folder
    vectors = build_text_encoder(str(folder), checkpoint_dir=tmp_path)(captions, "cpu")
    assert torch.allclose(vectors.mean(0), torch.zeros(256), atol=1e-2) and torch.allclose(
        vectors.std(0, correction=0), torch.ones(256), atol=1e-2
    )
    # "a ..." and "one ..." of the same scene are nearer to one another than to most others.
    cosines = torch.nn.functional.normalize(vectors, dim=1) @ torch.nn.functional.normalize(vectors, dim=1).T
    same = cosines.diagonal(32)[:32]
    assert float(same.mean()) > 0.5 and float(cosines.fill_diagonal_(0).mean().abs()) < 0.1
    again = load_file(ensure_toy_bert(captions, tmp_path / "again") / "model.safetensors")
    first = load_file(folder / "model.safetensors")
    assert all(torch.equal(first[name], again[name]) for name in first)
