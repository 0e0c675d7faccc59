"""Continual-learning methods, one file each. `from mmcl.strategies import ZSCL` finds the file by the class's name."""

from mmcl.plugins import lazy_getattr

__getattr__ = lazy_getattr(__name__)
