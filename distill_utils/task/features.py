"""What a frozen encoder makes of the real images, kept on disk: one look serves every program and seed."""

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from tqdm import tqdm

from distill_utils.runs.locks import locked
from distill_utils.runs.writing import atomic_path, remove_orphans
from distill_utils.task.decoding import batches, encoder_input, in_order


def fingerprint(encoder):
    """What an encoder computes, in hexadecimal digits: its modules with their options, and its weights."""
    digest = hashlib.sha256(repr(encoder).encode())
    for name, value in encoder.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


class FeatureCache:
    """Features of image files under a frozen encoder: encoder(images [B, 3, H, W] normalised) -> [B, W]."""

    def __init__(self, encoder, folder, device, batch_size=256):
        self.encoder, self.folder = encoder, Path(folder)
        self.device, self.batch_size = torch.device(device), batch_size
        self._encoder_is = f"{fingerprint(encoder)} {self.device.type}"

    @torch.no_grad()
    def of(self, images):
        """Features of normalised images [N, 3, H, W], [N, W]; nothing is kept."""
        return torch.cat([self.encoder(part.to(self.device)) for part in images.split(self.batch_size)])

    @torch.no_grad()
    def of_files(self, dataset, paths, image_size, num_workers, what):
        """Features [N, W] of a data set whose item n is the image of `paths[n]`, from the disk or made now.

        The key hashes the encoder, the size, and every file's name, length and time of change.
        """
        path = self.folder / f"{self._key(paths, image_size)}.safetensors"
        with locked(self.folder / ".locks" / path.stem):
            try:
                return load_file(path)["features"]
            except (OSError, SafetensorError, KeyError):
                pass  # absent, or left broken by a full disk: made anew
            loader = in_order(dataset, self.batch_size, num_workers)
            bar = tqdm(batches(loader), f"looking through {what}", len(loader), disable=len(paths) <= 500)
            images = (batch[0] if isinstance(batch, list) else batch for batch in bar)
            made = torch.cat([self.encoder(encoder_input(part, self.device)).cpu() for part in images])
            remove_orphans(self.folder)
            with atomic_path(path) as partial:
                partial.write_bytes(save({"features": made}))
        return made

    def _key(self, paths, image_size):
        digest = hashlib.sha256(f"{self._encoder_is} {image_size}".encode())
        for path in paths:
            stat = path.stat()
            digest.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns}\0".encode())
        return digest.hexdigest()[:32]
