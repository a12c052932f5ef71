"""The toy data's ImageNet: an image tower pretrained to name shapes and backgrounds of drawn scenes."""

import random
from itertools import product
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from tqdm import tqdm

from data.toy_scenes import BACKGROUNDS, COLOURS, OUTLINES, draw_scene, make_scene
from data.transforms import normalise
from distill_utils.runs.locks import locked
from distill_utils.runs.tensors import save_tensors

SCENES, RESOLUTION, EPOCHS, BATCH, RATE = 6000, 48, 4, 64, 3e-3
_LABELS = [*product(OUTLINES, COLOURS), *BACKGROUNDS]


def ensure_toy_tower(path, timm_name="test_nfnet", scenes=SCENES, epochs=EPOCHS, seed=0):
    """Write a classifier of toy scenes unless the file is there: a timm model with a head of one logit per
    label, kind and colour of a shape or background, trained a minute or so.

    Its scenes are its own: none is of the toy data, whose captions it never sees.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent / ".locks" / path.name):
        if not path.exists():
            save_tensors(path, _train(timm_name, scenes, epochs, seed))


def labelled_scenes(scenes, seed):
    """Images uint8 [N, 3, H, W] and which of the labels are true of each, [N, L]."""
    images = torch.empty(scenes, 3, RESOLUTION, RESOLUTION, dtype=torch.uint8)
    labels = torch.zeros(scenes, len(_LABELS))
    for index in range(scenes):
        scene = make_scene(random.Random(f"tower/{seed}/{index}"))
        pixels = np.array(draw_scene(scene, resolution=RESOLUTION))
        images[index] = torch.from_numpy(pixels).permute(2, 0, 1)
        for label in (*((shape.kind, shape.colour) for shape in scene.shapes), scene.background):
            labels[index, _LABELS.index(label)] = 1
    return images, labels


def _train(timm_name, scenes, epochs, seed):
    """The trained weights: AdamW under a one-cycle schedule, and a logit per label."""
    images, labels = labelled_scenes(scenes, seed)
    rare = torch.full((len(_LABELS),), 10.0)  # few are true of a scene, and count as much as the rest
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.random.default_generator.manual_seed(seed)
        model = timm.create_model(timm_name, num_classes=len(_LABELS))
        optimizer = torch.optim.AdamW(model.parameters())
        steps = epochs * (scenes // BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
        with tqdm(total=steps, desc=f"pretraining {timm_name} on toy scenes") as bar:
            for _ in range(epochs):
                for ids in torch.randperm(scenes)[: scenes // BATCH * BATCH].split(BATCH):
                    pixels = normalise(images[ids]).contiguous(memory_format=torch.channels_last)
                    loss = F.binary_cross_entropy_with_logits(model(pixels), labels[ids], pos_weight=rare)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
                    bar.update()
                    bar.set_postfix_str(f"loss {loss.item():.3f}")
    return model.state_dict()
