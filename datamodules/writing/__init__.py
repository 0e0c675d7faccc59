"""`mmcl shards write`: pictures, recordings and texts from folders, tables, data sets and other shards into shards."""

from mmcl.datamodules.writing.options import Columns, Options, Recipe
from mmcl.datamodules.writing.writer import write_set

__all__ = ["Columns", "Options", "Recipe", "write_set"]
