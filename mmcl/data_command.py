"""`mmcl data`: what can be fetched, and fetching it."""

from __future__ import annotations

from mmcl import assets


def list_assets() -> None:
    """Print a table of all assets."""
    known = assets.catalogue().values()
    name = max((len(asset.name) for asset in known), default=0)
    licence = max((len(asset.licence) for asset in known), default=0)
    print(f"{'name':<{name}}  {'MB':>5}  here  {'licence':<{licence}}  content")
    for asset in known:
        state = "yes" if assets.here(asset) else "no"
        title = f"{asset.title}; for {asset.use}" if asset.use else asset.title
        print(f"{asset.name:<{name}}  {asset.megabytes:>5.1f}  {state:<4}  {asset.licence:<{licence}}  {title}")


def get_assets(names: list[str]) -> None:
    """Fetch assets one after another, each with its licence and source.

    Raises:
        ConfigError: a name is unknown; then nothing is fetched.
        RunError: a download failed.
    """
    for asset in [assets.find(name) for name in names]:
        print(f"{asset.name}: {asset.title}")
        print(f"  licence: {asset.licence}")
        print(f"  source: {asset.source}")
        place = assets.get(asset.name, lambda line: print(f"  {line}", flush=True))
        print(f"  {place}", flush=True)
