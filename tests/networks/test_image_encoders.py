"""Image encoders of timm, projection heads, and what a student of each does."""

import pytest
import timm
import torch

from distill_utils.matching.gradient import Matcher
from distill_utils.runs.errors import UserError
from distill_utils.synthetic.set import SyntheticSet
from distill_utils.synthetic.similarity import build_similarity
from distill_utils.training.epochs import sgd, train_epoch
from distill_utils.training.losses import LOSSES
from networks import build_model
from networks.image_encoders import build_image_encoder, fold_batch_norm
from networks.two_tower import ProjectionHead
from networks.weights import Weights, flatten, snapshot, tower_parameters


@pytest.mark.parametrize("name", ["test_nfnet", "resnet18", "vit_tiny_patch16_224", "mobilenetv3_small_100"])
def test_the_width_is_the_models(name, tmp_path):
    model = build_model(name, 12, pretrained=False, checkpoint_dir=tmp_path).eval()
    size = 224 if "vit" in name else 64
    with torch.no_grad():
        images, texts = model(torch.randn(2, 3, size, size), torch.randn(2, 12))
    assert images.shape == texts.shape and images.shape[1] != 1000  # features, not class logits
    assert torch.allclose(images.norm(dim=1), torch.ones(2)) and torch.allclose(
        texts.norm(dim=1), torch.ones(2)
    )


def test_the_published_student_has_the_published_size(tmp_path):
    model = build_model("nfnet", 768, pretrained=False, checkpoint_dir=tmp_path)
    millions = [
        sum(p.numel() for p in tower.parameters()) / 1e6
        for tower in (model.image_encoder, model.text_projection)
    ]
    assert millions == pytest.approx([32.77, 7.09], abs=0.005)


def test_the_head_is_the_formula():
    head = ProjectionHead(3, 4, dropout=0.5).eval().double()
    x = torch.randn(2, 3, dtype=torch.float64)
    p = x @ head.projection.weight.T + head.projection.bias
    hidden = p * 0.5 * (1 + torch.erf(p / 2**0.5))
    y = p + hidden @ head.fc.weight.T + head.fc.bias
    y = (y - y.mean(1, keepdim=True)) / (y.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    assert torch.allclose(head(x), y, rtol=1e-10)
    assert [tuple(parameter.shape) for parameter in head.parameters()] == [
        (4, 3),
        (4,),
        (4, 4),
        (4,),
        (4,),
        (4,),
    ]


def test_a_frozen_image_tower_trains_a_projection_only(tmp_path):
    model = build_model("test_nfnet", 12, pretrained=False, checkpoint_dir=tmp_path, trainable=False)
    trained = [name for name, parameter in model.image_encoder.named_parameters() if parameter.requires_grad]
    assert trained and all(name.startswith("1.") for name in trained)


def test_pretrained_image_weights_come_from_the_folder_first(tmp_path):
    classifier = timm.create_model(
        "test_nfnet", num_classes=10
    )  # a file of the whole classifier, as published ones are
    torch.save(classifier.state_dict(), tmp_path / "test_nfnet.pth")
    encoder = build_image_encoder("test_nfnet", True, tmp_path)
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, classifier.state_dict()[name])


def test_missing_or_wrong_image_weights_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match="'no_such_net' is neither"):
        build_image_encoder("no_such_net", False, tmp_path)
    with pytest.raises(UserError, match="test_nfnet.pth does not exist and timm's hub gave none"):
        build_image_encoder("test_nfnet", True, tmp_path)
    torch.save({"a": torch.zeros(2)}, tmp_path / "test_nfnet.pth")
    with pytest.raises(UserError, match="does not hold weights for"):
        build_image_encoder("test_nfnet", True, tmp_path)


IMAGE_ENCODERS = [
    "nf_resnet50",
    "nf_regnet",
    "resnet18",
    "resnet50",
    "resnet18_gn",
    "vit",
    "convnext",
    "efficientvit_m5",
]


@pytest.mark.parametrize("name", IMAGE_ENCODERS)
def test_every_image_encoder_trains_matches_and_is_evaluated(name, tmp_path):
    """One training step, one outer step and one pass in eval mode, from random weights."""
    torch.manual_seed(0)
    size = 64
    model = build_model(name, 6, pretrained=False, checkpoint_dir=tmp_path)
    images, texts = torch.randn(3, 3, size, size), torch.randn(3, 6)
    start = Weights(*(flatten(tower).detach().clone() for tower in snapshot(model)))
    loss = train_epoch(
        model, [(images, texts, torch.eye(3))], sgd(model, 0.01, 0.01), LOSSES["InfoNCE"], 0.07
    )
    assert loss > 0
    target = Weights(*(flatten(tower).detach().clone() for tower in snapshot(model)))
    assert not torch.equal(start.img, target.img)
    model.eval()
    with torch.no_grad():
        features = model.encode_images(images)
    assert features.shape == (3, model.text_projection.fc.out_features) and torch.isfinite(features).all()
    synthetic = SyntheticSet(images, texts, build_similarity("lowrank", 3, rank=1), 0.01, 0.01)
    model.train()
    if name in ("resnet18", "resnet50", "efficientvit_m5"):
        with pytest.raises(UserError, match="needs --freeze_bn, an encoder without"):
            Matcher(model, LOSSES["WBCE"])
        model = build_model(
            name, 6, pretrained=False, checkpoint_dir=tmp_path, trainable=False
        ).train()  # frozen, it can be matched
        start = Weights(*(flatten(tower).detach().clone() for tower in snapshot(model)))
        target = Weights(*(vector + 1e-3 * torch.randn_like(vector) for vector in start))
    ids = [torch.tensor([0, 2]), torch.tensor([1, 0])]
    loss = Matcher(model, LOSSES["WBCE"])(synthetic, start, target, ids, seed=0)
    assert torch.isfinite(loss.grand) and all(
        torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0 for p in (synthetic.images, synthetic.texts)
    )


def test_a_frozen_tower_keeps_its_running_statistics(tmp_path):
    model = build_model("resnetv2_50", 6, pretrained=False, checkpoint_dir=tmp_path, trainable=False).train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    model(torch.randn(2, 3, 64, 64), torch.randn(2, 6))
    assert before and all(torch.equal(before[name], value) for name, value in model.named_buffers())


def test_frozen_batch_norms_are_constants_and_all_else_trains_and_matches(tmp_path):
    torch.manual_seed(0)
    options = {"pretrained": False, "checkpoint_dir": tmp_path}
    plain = build_model("efficientnet_lite0", 6, **options)
    model = build_model("efficientnet_lite0", 6, freeze_bn=True, **options)
    norms = {name for name, module in plain.named_modules() if isinstance(module, torch.nn.BatchNorm2d)}
    trained = {name for tower in tower_parameters(model) for name, _ in tower}
    assert norms and trained == {
        name for name, _ in plain.named_parameters() if name[: name.rfind(".")] not in norms
    }
    images, texts = torch.randn(3, 3, 64, 64), torch.randn(3, 6)
    with torch.no_grad():
        assert torch.allclose(
            model.eval().encode_images(images), plain.eval().encode_images(images), atol=1e-5
        )
    kept = {name: value.clone() for name, value in model.named_buffers()}
    before = {name: value.clone() for name, value in model.named_parameters()}
    start = Weights(*map(flatten, snapshot(model)))
    train_epoch(model, [(images, texts, torch.eye(3))], sgd(model, 0.01, 0.01), LOSSES["InfoNCE"], 0.07)
    assert all(torch.equal(kept[name], value) for name, value in model.named_buffers())
    assert all(
        not torch.equal(before[name], value) for name, value in model.named_parameters() if "conv" in name
    )
    target = Weights(*map(flatten, snapshot(model)))
    synthetic = SyntheticSet(images, texts, build_similarity("lowrank", 3, rank=1), 0.01, 0.01)
    Matcher(model.train(), LOSSES["WBCE"])(synthetic, start, target, [torch.tensor([0, 2])], seed=0)
    assert synthetic.images.grad.abs().sum() > 0


def with_statistics(encoder):
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    return encoder


@pytest.mark.parametrize("name, left", [("efficientnet_lite0", 0), ("resnet18", 0), ("resnetv2_50", 17)])
def test_a_frozen_towers_norms_are_folded_into_its_convolutions(name, left, tmp_path):
    torch.manual_seed(0)
    encoder = with_statistics(build_image_encoder(name, False, tmp_path)).eval()
    folded = fold_batch_norm(encoder)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(folded(images), encoder(images), rtol=1e-3, atol=1e-5)
    norms = [sum(isinstance(m, torch.nn.BatchNorm2d) for m in e.modules()) for e in (encoder, folded)]
    assert norms[0] > norms[1] == left


class Misleading(torch.nn.Module):
    """Its norm is named after the convolution and comes before it."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(3, 3, 3, padding=1), torch.nn.BatchNorm2d(3)

    def forward(self, images):
        return self.conv(self.norm(images)).mean((2, 3))


def test_what_would_not_be_the_same_function_is_not_folded():
    torch.manual_seed(0)
    encoder = with_statistics(Misleading())
    assert fold_batch_norm(encoder) is encoder


def test_untrained_image_towers_are_the_same_and_heads_are_not(tmp_path):
    one, other = (build_model("test_nfnet", 12, pretrained=False, checkpoint_dir=tmp_path) for _ in range(2))
    assert all(
        torch.equal(a, b) for a, b in zip(one.image_encoder.parameters(), other.image_encoder.parameters())
    )
    assert not torch.equal(one.text_projection.fc.weight, other.text_projection.fc.weight)
