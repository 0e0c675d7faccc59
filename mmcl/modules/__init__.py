"""LightningModules, one for each family of backbones. `from mmcl.modules import CLIPModule` finds it by name."""

from mmcl.plugins import lazy_getattr

__getattr__ = lazy_getattr(__name__)
