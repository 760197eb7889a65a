"""Backbones: one file per backbone, found by the `_target_` of its YAML.

A backbone is a module whose `forward(x)` takes normalized images, `N x 3 x H x W`, and returns a list of
feature maps, `N x C_i x H_i x W_i`, fine to coarse; its attribute `channels` is the list of the `C_i`. The YAML names a
function that takes the image size and returns the module.
"""
