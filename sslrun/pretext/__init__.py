"""Pretext tasks: one file a task, with its views, head and loss.

A task is an `nn.Module` built as `Task(encoder, image_size, *, keys of its YAML)`. `task(batch, rng)` returns a dict
with `loss` and whatever else is to be logged; `batch` is a dict with `images`, `N x 3 x S x S` in [0, 1], and labels
are never looked at. `task.views(images, rng)` returns what the network sees, for people: a dict of name -> pictures.
"""
