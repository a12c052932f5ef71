"""Image files to uint8 tensors, in order, in batches, and in the errors' own words."""

import os

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from data.transforms import normalise
from distill_utils.runs.errors import UserError
from distill_utils.runs.seeds import derive_seed


def encoder_input(images, device):
    """Images as they are kept, uint8, as the encoders take them, on the device; features of a frozen encoder
    as they are.
    """
    images = images.to(device, non_blocking=True)
    return images if images.is_floating_point() else normalise(images)


def require_files(paths):
    missing = next((path for path in paths if not path.is_file()), None)
    if missing:
        raise UserError(f"{missing} does not exist: give the folder of the images with --image_root.")


class Drawn(Dataset):
    """A data set whose item p is made with random numbers that follow from `seed` and p alone: the same in
    whichever process, and all others go on undisturbed.
    """

    def __init__(self, dataset, seed):
        self.dataset, self.seed = dataset, seed

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, item):
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which would set the GPUs' generators too.
            torch.default_generator.manual_seed(derive_seed(self.seed, "item", item))
            return self.dataset[item]


def batches(loader):
    """The loader's batches; a worker's UserError comes out as its own sentence, not as the worker's stack
    trace.
    """
    try:
        yield from loader
    except UserError as error:
        raise UserError(str(error).strip().splitlines()[-1].split("UserError: ")[-1]) from None


def in_order(dataset, batch_size, num_workers):
    """A loader without randomness: it leaves torch's global generator alone, so that it does not matter when
    images are decoded.
    """
    return DataLoader(
        dataset, batch_size, num_workers=num_workers if len(dataset) > 500 else 0, generator=torch.Generator()
    )


def free_cores(most=16):
    """How many processes to decode images with: this process's share of the cores, up to `most`."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux: what a container or Slurm leaves us
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min(most, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def decode(dataset, num_workers, what):
    """All images of a dataset, uint8 [N, 3, H, W]."""
    loader = in_order(dataset, 64, num_workers)
    images = []
    for batch in tqdm(
        batches(loader), total=len(loader), desc=f"decoding {what}", disable=len(dataset) <= 500
    ):
        images.append(batch[0] if isinstance(batch, list) else batch)
    return torch.cat(images)
