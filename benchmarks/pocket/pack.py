"""Put pretrained weights into pocket-clip's folder, in float16: `python -m mmcl.benchmarks.pocket.pack --run RUN`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from mmcl import checkpoint
from mmcl.errors import ConfigError

FOLDER = Path(__file__).resolve().parent / "pocket-clip"
NAME = "open_clip_model.safetensors"


def pack(run: Path, folder: Path = FOLDER) -> Path:
    """Write the last weights of a run as open_clip reads them.

    Args:
        run: run folder of `mmcl fit --config pocket/pretrain`.
        folder: open_clip's ``local-dir:`` folder.

    Raises:
        ConfigError: the run is not finished.
    """
    last = run / "checkpoints" / "last.ckpt"
    if not last.exists() or checkpoint.progress_of(content := checkpoint.load(last)).phase != "evaluated":
        raise ConfigError(f"{run} is no finished run; type `mmcl fit --config pocket/pretrain --run_dir {run}` first")
    weights = {name: w.to(torch.float16) if w.is_floating_point() else w for name, w in content["network"].items()}
    checkpoint.save_weights(folder / NAME, weights)
    return folder / NAME


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=FOLDER, help="an open_clip folder")
    given = parser.parse_args()
    print(pack(given.run, given.out))


if __name__ == "__main__":
    main()
