"""Ready configurations: `mmcl list configs`."""
