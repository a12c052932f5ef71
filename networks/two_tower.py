"""The CLIP-style student: an image tower and a projection head on cached text embeddings."""

import torch
import torch.nn.functional as F
from torch import nn

from networks.image_encoders import build_image_encoder, enable_checkpointing


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
    """An encoder whose weights, dropout and running statistics stay as they are, in training too; gradients
    reach its input.

    What it has made of images once, features [B, num_features], passes through it as it is.
    """

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder.eval().requires_grad_(False)

    def forward(self, images):
        return self.encoder(images) if images.dim() == 4 else images

    def train(self, mode=True):
        return super().train(False)


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
        if images.dim() == 4:
            images = images.contiguous(
                memory_format=torch.channels_last
            )  # the layout that convolutions are fastest in
        return F.normalize(self.image_encoder(images), dim=-1)

    @property
    def frozen_encoder(self):
        """The part of the image tower that is the same in every student, images to features; None where all
        of it is trained.
        """
        first = (
            self.image_encoder[0]
            if isinstance(self.image_encoder, nn.Sequential) and len(self.image_encoder)
            else None
        )
        return first if isinstance(first, FrozenEncoder) else None

    def encode_texts(self, texts):
        return F.normalize(self.text_projection(texts), dim=-1)

    def forward(self, images, texts):
        return self.encode_images(images), self.encode_texts(texts)


def build_model(
    image_encoder, text_dim, *, pretrained, checkpoint_dir, trainable=True, grad_checkpointing=False
):
    """A student: the named image encoder and a fresh head for text embeddings of `text_dim`.

    With `trainable=False` the encoder is frozen and the image tower trains a projection head on its features.
    `grad_checkpointing` keeps few activations of the encoder for the backward pass and recomputes the rest.
    """
    encoder = build_image_encoder(image_encoder, pretrained, checkpoint_dir)
    if grad_checkpointing:
        enable_checkpointing(encoder, image_encoder)
    width = encoder.num_features
    if hasattr(
        encoder, "head_hidden_size"
    ):  # timm: the pooled width where it differs from that of the feature map
        width = encoder.head_hidden_size
    if not trainable:
        encoder = nn.Sequential(FrozenEncoder(encoder), ProjectionHead(width, width))
    return TwoTower(encoder, ProjectionHead(text_dim, width))
