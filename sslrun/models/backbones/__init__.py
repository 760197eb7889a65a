"""Backbones: one file each, found by the `_target_` of its YAML.

A backbone is a module whose `forward(x)` takes normalized images, `N x 3 x H x W`, and returns the list of its maps,
`N x C_i x H_i x W_i`, fine to coarse; its attribute `channels` is the list of the `C_i`. A YAML names a function that
is given the image size and returns one.
"""
