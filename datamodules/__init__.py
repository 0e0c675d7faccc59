"""Shards in, batches out: index, reader, decoding, mixing, the LightningDataModule."""

from mmcl.datamodules.module import StreamDataModule
from mmcl.datamodules.plan import OWN, BatchPlan
from mmcl.datamodules.write import write_shard

__all__ = ["OWN", "BatchPlan", "StreamDataModule", "write_shard"]
