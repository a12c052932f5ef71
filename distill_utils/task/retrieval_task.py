"""The retrieval task: train pairs, val and test galleries, every caption already an embedding."""

import hashlib
from copy import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from data import OWN, build_datasets
from data.transforms import normalise, test_transform
from distill_utils.runs.errors import UserError
from distill_utils.runs.reading import read_indices
from distill_utils.task.decoding import Drawn, batches, decode, encoder_input, in_order, require_files
from distill_utils.task.features import FeatureCache
from distill_utils.training.losses import identity_target
from networks.text_encoders import TOY, build_text_encoder, embed_captions, ensure_toy_bert

_CACHE_BYTES = 8 << 30  # train images are kept decoded up to this


@dataclass
class Gallery:
    """Images uint8 [N, 3, H, W] (or features [N, W] of a frozen encoder), texts [M, T], captions [M], txt2img
    LongTensor [M].
    """

    images: torch.Tensor
    texts: torch.Tensor
    captions: list
    txt2img: torch.Tensor


def _fingerprint(train):
    """A hash of the names of a data set's images and of its captions, wherever its folder is."""
    digest = hashlib.sha256()
    for image, caption in zip(train.image_index.tolist(), train.captions):
        digest.update(f"{train.image_paths[image].name}\0{caption}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


class RetrievalTask:
    """Everything that is about the real data; nothing in it is learned.

    `train.captions`, `train.image_index` and `train_texts` [P, T] describe the pairs; `galleries` has "val"
    and "test"; embed(captions) gives other captions' embeddings.
    """

    def __init__(
        self,
        dataset,
        text_encoder="bert",
        *,
        image_root=None,
        ann_root=None,
        image_size=224,
        augmentation="published",
        toy_sizes=None,
        checkpoint_dir="distill_utils/checkpoints",
        text_pretrained=True,
        num_workers=2,
        train_subset=None,
        device="cpu",
    ):
        """train_subset: file of the train pairs to use, by their positions in the annotation file; all of
        them by default.
        """
        self.dataset, self.image_size, self.augmentation, self.num_workers = (
            dataset,
            image_size,
            augmentation,
            num_workers,
        )
        self.train, *held_out = build_datasets(
            dataset,
            image_root,
            ann_root,
            image_size=image_size,
            augmentation=augmentation,
            toy_sizes=toy_sizes,
        )
        for split in (self.train, *held_out):
            require_files(split.image_paths)
        self._own_data = _fingerprint(self.train) if dataset in OWN else None
        name = (
            str(ensure_toy_bert(self.train.captions, checkpoint_dir)) if text_encoder == TOY else text_encoder
        )
        encoder = build_text_encoder(name, pretrained=text_pretrained, checkpoint_dir=checkpoint_dir)
        self.text_encoder, self.text_fingerprint = text_encoder, encoder.fingerprint()
        self.embed = partial(
            embed_captions, encoder, cache_dir=Path(checkpoint_dir) / "caption_embeddings", device=device
        )
        self._held_out = dict(zip(("val", "test"), held_out))
        self.train_texts = self.embed(self.train.captions)
        self._texts = {split: self.embed(data.captions) for split, data in self._held_out.items()}
        self._galleries, self._train_images = None, None
        self._features, self._train_features = None, None
        self._feature_folder = Path(checkpoint_dir) / "image_features"
        self.numbers = torch.arange(len(self.train))  # of the train pairs in the annotation file
        self.train_subset = None
        if train_subset:
            self._restrict(torch.from_numpy(read_indices(train_subset)), train_subset)

    def _restrict(self, numbers, source):
        """Use these train pairs alone; the text encoder, whose vocabulary may come from the captions, stays
        that of all.
        """
        pairs = self.positions(numbers, source)
        self.train, self.train_texts, self.numbers = (
            self.train.subset(pairs),
            self.train_texts[pairs],
            numbers,
        )
        self.train_subset = hashlib.sha256(numbers.sort().values.numpy().tobytes()).hexdigest()[:16]

    def positions(self, numbers, source):
        """Train pairs, LongTensor [n], from their positions in the annotation file; `source` says in errors
        where those come from.
        """
        position = torch.full((int(self.numbers.max()) + 1,), -1)
        position[self.numbers] = torch.arange(len(self.numbers))
        known = (numbers >= 0) & (numbers < len(position))
        known[known.clone()] = position[numbers[known]] >= 0
        if not known.all():
            raise UserError(
                f"{source} names the train pair {int(numbers[~known][0])}, which is not among the "
                f"{len(self.numbers)} of {self.dataset} in use."
            )
        return position[numbers]

    def describe(self):
        """The facts of the task that weights and synthetic sets depend on; one's own photos are all of one
        `dataset`, and told apart by `train_data`.
        """
        own = {"train_data": self._own_data} if self._own_data else {}
        return own | {
            "dataset": self.dataset,
            "image_size": self.image_size,
            "text_encoder": self.text_encoder,
            "text_fingerprint": self.text_fingerprint,
            "train_subset": self.train_subset,
            "augmentation": self.augmentation or "none",
        }

    @property
    def galleries(self):
        """{"val", "test": Gallery}; their images are decoded when they are first asked for."""
        if self._galleries is None:
            self._galleries = {
                split: self._gallery(split, decode(data, self.num_workers, f"{split} images"))
                for split, data in self._held_out.items()
            }
        return self._galleries

    def _gallery(self, split, images):
        data = self._held_out[split]
        return Gallery(images, self._texts[split], data.captions, data.txt2img)

    @property
    def text_dim(self):
        return self.train_texts.shape[1]

    def _first_pairs(self):
        """For every train image the first of its pairs, [I]."""
        first = torch.full((len(self.train.image_paths),), len(self.train))
        return first.scatter_reduce(0, self.train.image_index, torch.arange(len(self.train)), "amin")

    def look_through(self, encoder, device, batch_size=256):
        """From now on, what a frozen encoder makes of galleries and unaugmented train images instead of
        pixels.

        encoder(images [B, 3, H, W] normalised) -> [B, W]; None: pixels again.
        """
        self._galleries = self._features = self._train_features = None
        if encoder is None:
            return
        self._features = FeatureCache(encoder.to(device), self._feature_folder, device, batch_size)
        how = self.image_size, self.num_workers
        self._galleries = {
            split: self._gallery(split, self._features.of_files(data, data.image_paths, *how, split))
            for split, data in self._held_out.items()
        }
        if not self.augmentation:
            first = self._first_pairs()
            train = self._plain(first), self.train.image_paths
            self._train_features = self._features.of_files(*train, *how, "train")

    def seen(self, images):
        """Normalised images [N, 3, H, W] as students take them: what the frozen encoder makes of them [N, W],
        where there is one; else as they are.
        """
        return images if self._features is None else self._features.of(images)

    def _plain(self, pairs):
        """Train pairs without augmentation, as a data set."""
        plain = copy(self.train)  # shares the annotations
        plain.transform = test_transform(self.image_size)
        return Subset(plain, pairs.tolist())

    def real_pairs(self, pairs):
        """Normalised images [n, 3, H, W] without augmentation, texts [n, T] and captions of the train pairs
        `pairs`.
        """
        return (
            normalise(decode(self._plain(pairs), 0, "real pairs")),
            self.train_texts[pairs],
            [self.train.captions[p] for p in pairs],
        )

    def train_images(self, batch_size, device):
        """Every train image once, in order and without augmentation, normalised [B, 3, H, W] a batch; or
        what a frozen encoder has made of them, [B, W].
        """
        if self._train_features is not None:
            yield from (part.to(device) for part in self._train_features.split(batch_size))
            return
        dataset = self._plain(self._first_pairs())
        loader = in_order(dataset, batch_size, self.num_workers)
        for images, _ in tqdm(
            batches(loader), total=len(loader), desc="train images", disable=len(dataset) <= 500
        ):
            yield normalise(images.to(device))

    def real_batch(self, size, generator, device):
        """Random train pairs: images [B, 3, H, W] normalised and without augmentation (or features), texts
        [B, T].
        """
        pairs = torch.randperm(len(self.train), generator=generator)[:size]
        if self._train_features is not None:
            images = self._train_features[self.train.image_index[pairs]]
        elif self._fits_in_memory():
            images = self._decoded()[self.train.image_index[pairs]]
        else:
            images = decode(self._plain(pairs), 0, "real batch")
        return encoder_input(images, device), self.train_texts[pairs].to(device)

    def train_batches(self, batch_size, generator, device):
        """One epoch over all real pairs in random order: images [B, 3, H, W] (or features), texts [B, T], the
        identity [B, B], the pairs [B].
        """
        for images, pairs in self._image_batches(batch_size, generator):
            texts = self.train_texts[pairs].to(device, non_blocking=True)
            yield encoder_input(images, device), texts, identity_target(len(pairs), texts), pairs

    def _image_batches(self, batch_size, generator):
        if self._train_features is not None:
            for pairs in torch.randperm(len(self.train), generator=generator).split(batch_size):
                yield self._train_features[self.train.image_index[pairs]], pairs
            return
        if self.augmentation or not self._fits_in_memory():
            workers = {"num_workers": self.num_workers, "pin_memory": torch.cuda.is_available()}
            train = Drawn(self.train, int(torch.randint(1 << 62, (), generator=generator)))
            yield from batches(DataLoader(train, batch_size, shuffle=True, generator=generator, **workers))
            return
        images = self._decoded()
        for pairs in torch.randperm(len(self.train), generator=generator).split(batch_size):
            yield images[self.train.image_index[pairs]], pairs

    def _fits_in_memory(self):
        return 3 * self.image_size**2 * len(self.train.image_paths) <= _CACHE_BYTES

    def _decoded(self):
        """Every train image without augmentation, uint8: then it is always the same, and decoded once."""
        if self._train_images is None:
            self._train_images = decode(self._plain(self._first_pairs()), self.num_workers, "train images")
        return self._train_images

    def num_batches(self, batch_size):
        return -(-len(self.train) // batch_size)
