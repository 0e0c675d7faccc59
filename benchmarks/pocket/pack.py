"""Put a run's weights into a pocket model's folder, in float16: `python -m mmcl.benchmarks.pocket.pack --run RUN`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from mmcl import checkpoint
from mmcl.errors import ConfigError

FOLDER = Path(__file__).resolve().parent / "pocket-clip"
NAME = "open_clip_model.safetensors"


def pack(run: Path, folder: Path = FOLDER, name: str = NAME, part: str = "") -> Path:
    """Write the last weights of a run as the peer library reads them.

    Args:
        run: run folder of `mmcl fit --config pocket/pretrain` or `pocket/names`.
        folder: ``local-dir:`` folder of open_clip or timm.
        name: of the file of weights there.
        part: of the network; the rest is left out. All of it by default.

    Raises:
        ConfigError: the run is not finished.
    """
    last = run / "checkpoints" / "last.ckpt"
    if not last.exists() or checkpoint.progress_of(content := checkpoint.load(last)).phase != "evaluated":
        raise ConfigError(f"{run} is no finished run; start it again with the command that began it")
    prefix = f"{part}." if part else ""
    own = {key.removeprefix(prefix): w for key, w in content["network"].items() if key.startswith(prefix)}
    halves = {key: w.to(torch.float16) if w.is_floating_point() else w for key, w in own.items()}
    checkpoint.save_weights(folder / name, halves)
    return folder / name


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of open_clip or timm")
    parser.add_argument("--file", default=NAME, help="name of the file of weights")
    parser.add_argument("--part", default="", help="of the network, where not all of it is wanted")
    given = parser.parse_args()
    print(pack(given.run, given.out, given.file, given.part))


if __name__ == "__main__":
    main()
