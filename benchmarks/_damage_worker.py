"""Adds noise to the weights of a model: `python _damage_worker.py SOURCE TARGET LEVEL`. Runs where torch and safetensors are.

Every matrix gets Gaussian noise of `LEVEL` times its own standard deviation; vectors (norms) stay as they are. Seeded: the same
level gives the same bytes.
"""

import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def main(source: Path, target: Path, level: float) -> None:
    target.mkdir(parents=True)
    for path in source.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, target / path.name)
    generator = torch.Generator().manual_seed(1)
    for path in sorted(source.glob("*.safetensors")):
        tensors = load_file(path)
        for name, tensor in sorted(tensors.items()):
            if tensor.ndim == 2 and tensor.is_floating_point():
                wide = tensor.float()
                noise = torch.randn(wide.shape, generator=generator)
                tensors[name] = (wide + level * wide.std() * noise).to(tensor.dtype).contiguous()
        save_file(tensors, target / path.name, metadata={"format": "pt"})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
