"""The CLIP-style student: an image tower and a projection head on cached text embeddings."""

import torch
import torch.nn.functional as F
from torch import nn

from networks.image_encoders import (
    build_image_encoder,
    enable_checkpointing,
    fold_batch_norm,
    freeze_batch_norm,
)


class ProjectionHead(nn.Module):
    """Linear, GELU, Linear, dropout, residual from the first Linear, LayerNorm: [B, in] to [B, out] (LoRS,
    appendix).
    """

    def __init__(self, in_features, out_features, dropout=0.1):
        super().__init__()
        self.projection = nn.Linear(in_features, out_features)
        self.gelu = nn.GELU()
        self.fc = nn.Linear(out_features, out_features)
        self.dropout = nn.Dropout(dropout)
        self.layer_norm = nn.LayerNorm(out_features)

    def forward(self, features):
        projected = self.projection(features)
        return self.layer_norm(projected + self.dropout(self.fc(self.gelu(projected))))


class FrozenEncoder(nn.Module):
    """An encoder that stays as it is, in training too, with its statistics; gradients reach its input.

    What it has made of images once, features [B, num_features], passes through it as it is.
    """

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder.eval().requires_grad_(False)

    def forward(self, images):
        return self.encoder(_fastest(images)) if images.dim() == 4 else images

    def train(self, mode=True):
        return super().train(False)


def _fastest(images):
    """Images in the layout that convolutions are fastest in; features as they are."""
    return images.contiguous(memory_format=torch.channels_last) if images.dim() == 4 else images


class TwoTower(nn.Module):
    """Images [B, 3, H, W] and text embeddings [B, T] to unit features, each [B, D].

    The parameters of a tower that require gradients, in parameter order, are what trajectories store and
    matching moves.
    """

    def __init__(self, image_encoder, text_projection):
        super().__init__()
        self.image_encoder = image_encoder
        self.text_projection = text_projection

    def encode_images(self, images):
        return F.normalize(self.image_encoder(_fastest(images)), dim=-1)

    @property
    def frozen_encoder(self):
        """The part of the image tower that all students share, images to features; None where all of it
        trains.
        """
        tower = self.image_encoder
        first = tower[0] if isinstance(tower, nn.Sequential) and len(tower) else None
        return first if isinstance(first, FrozenEncoder) else None

    def encode_texts(self, texts):
        return F.normalize(self.text_projection(texts), dim=-1)

    def forward(self, images, texts):
        return self.encode_images(images), self.encode_texts(texts)

    def around_heads(self, images, texts):
        """What goes into the heads, [B, V] and [B, T], and what they make of it, not normalised, [B, D] each.

        Where all of the image tower trains it has no head: what it makes of the images goes in and comes out.
        """
        tower = self.image_encoder
        if self.frozen_encoder is None:
            features = outputs = tower(_fastest(images))
        else:
            features = tower[0](images)
            outputs = tower[1:](features)
        return features, texts, outputs, self.text_projection(texts)


def build_encoder(name, *, pretrained, checkpoint_dir, freeze_bn=False, grad_checkpointing=False):
    """A timm encoder, images to features.

    `freeze_bn`: its BatchNorms stay as they are, statistics, scale and shift, in training too.
    `grad_checkpointing`: few activations are kept.
    """
    encoder = build_image_encoder(name, pretrained, checkpoint_dir)
    if freeze_bn:
        encoder = freeze_batch_norm(encoder)
    if grad_checkpointing:
        enable_checkpointing(encoder, name)
    return encoder


def join(encoder, text_dim, *, trainable=True):
    """A student of an encoder, which it takes as its own, and a fresh head for text embeddings of `text_dim`.

    With `trainable=False` the encoder is frozen and the image tower trains a projection head on its features.
    """
    # timm: head_hidden_size is the pooled width where it differs from that of the feature map.
    width = getattr(encoder, "head_hidden_size", encoder.num_features)
    if not trainable:
        encoder = nn.Sequential(FrozenEncoder(fold_batch_norm(encoder)), ProjectionHead(width, width))
    return TwoTower(encoder, ProjectionHead(text_dim, width))


def build_model(image_encoder, text_dim, *, trainable=True, **options):
    """A student with an image encoder of its own: `join` of `build_encoder`, which takes the options."""
    return join(build_encoder(image_encoder, **options), text_dim, trainable=trainable)
