"""What `mmcl data get` fetches: data sets and pretrained models that package registries ship.

Each file holds `mmcl.assets.Asset` constants and the functions that build them. Importing all of it is instant: what a
build needs is imported by the build. Data sets become WebDataset shards, models become folders that their own library
loads alone.
"""
