"""Suggestions for an unknown name: the most similar key, or our name for a setting of another tool."""

import difflib
from collections.abc import Collection, Sequence

# Key -> its names in other tools. If a name stands for several keys, the first that the command has is suggested.
ELSEWHERE = {
    "train.learning_rate": "lr learning_rate base_lr max_lr lr0 init_lr",
    "train.batch_size": "bs batch batchsize batch_size train_batch_size",
    "batch_size": "bs batch batchsize",
    "train.epochs": "epochs epoch num_epochs n_epochs max_epochs nb_epochs num_train_epochs",
    "train.steps": "steps max_steps num_steps iters iterations max_iter num_iterations",
    "train.warmup_fraction": "warmup warmup_epochs warmup_steps warmup_ratio",
    "train.gradient_clip": "clip clip_grad grad_clip clip_norm max_norm max_grad_norm gradient_clip_val",
    "optimizer.weight_decay": "wd weight_decay l2 decay",
    "optimizer": "opt optim",
    "device=cuda": "gpus gpu cuda accelerator use_cuda",
    "device": "devices ngpus num_gpus",
    "device.precision": "amp fp16 bf16 half mixed_precision precision",
    "device.threads": "num_threads n_threads n_jobs threads",
    "backbone": "arch architecture model model_name net network encoder base_encoder",
    "pretext": "method ssl ssl_method algorithm task pretext_task",
    "pretext.temperature": "temp tau temperature",
    "dataset.root": "data data_dir datadir data_path data_root dataset_dir dataset_path train_dir root folder",
    "dataset.image_size": "imgsz img_size image_size input_size size resolution crop_size",
    "dataset.val_fraction": "val_split val_size validation_split val_ratio valid_fraction",
    "dataset.classes": "class_names",
    "init": "ckpt checkpoint checkpoint_path ckpt_path weights pretrained model_path load load_from finetune_from",
    "run": "ckpt checkpoint checkpoint_path ckpt_path weights pretrained model_path load load_from model",
    "resume": "resume_from resume_from_checkpoint continue",
    "seed": "random_seed random_state manual_seed rng",
    "labels_per_class": "num_labels n_labels shots n_shots shot samples_per_class",
    "label_fraction": "percent label_percent train_percent label_ratio labels_fraction",
    "label_smoothing": "smoothing",
    "top": "topk top_k k",
    "n": "topk top_k k",
    "unsure": "threshold conf confidence",
    "images": "source input inputs files image path",
    "out": "output output_file save_to outfile file output_dir out_dir outdir save_dir",
    "hydra.run.dir": "output_dir out_dir outdir save_dir log_dir logdir workdir work_dir",
}
# Settings of other tools that sslrun does not need -> reason.
WITHOUT = {
    "num_workers workers n_workers dataloader_num_workers": "images are decoded once, on all cores; remove it",
    "num_classes n_classes nc": "the classes are those of the data set; remove it",
    "pin_memory persistent_workers prefetch_factor": "there is no data loader; remove it",
}
PRINTED = ("out", "output", "output_file", "save_to", "outfile", "file")  # names of a file for results in other tools


ALIASES = {  # of choices
    **{"gpu": "cuda", "nvidia": "cuda", "metal": "mps", "apple": "mps"},  # of `device`
    **dict.fromkeys(("mae", "simmim", "spark", "mim"), "masked"),  # of `pretext`
    **dict.fromkeys(("ae", "dae", "denoising"), "autoencoder"),
    **dict.fromkeys(("cpc", "dim"), "amdim"),
    **{"context_encoder": "inpainting", "context_prediction": "relative_patch", "puzzle": "jigsaw", "kd": "distill"},
}


def nearest(name: str, names: Sequence[str]) -> str:
    """Return `"; did you mean X?"` for the most similar name, ignoring case, or an empty string."""
    by_case = {n.casefold(): n for n in reversed(names)}
    name = ALIASES[name] if ALIASES.get(name) in names else name
    matches = difflib.get_close_matches(name.casefold(), list(by_case), n=1, cutoff=0.5)
    if not matches:  # `epochs` for `train.epochs`
        by_leaf = {n.rsplit(".", 1)[-1]: n for n in by_case}
        leaf = name.casefold().rsplit(".", 1)[-1]
        matches = [by_leaf[m] for m in difflib.get_close_matches(leaf, list(by_leaf), n=1, cutoff=0.6)]
    return f"; did you mean {by_case[matches[0]]}?" if matches else ""


def list_hint(key: str, value: object) -> str:
    """Return how to write a single value where a list is expected: `; write seeds=[3]`."""
    return "" if isinstance(value, list | dict | None) else f"; write {key}=[{value}]"


def key_hint(key: str, keys: Collection[str], value: str = "") -> str:
    """Return a hint for a key that a command does not have, or an empty string if nothing is similar.

    Args:
        key: dotted, as typed.
        keys: keys and config groups of the command.
        value: as typed.
    """
    leaf = key.casefold().rsplit(".", 1)[-1].replace("-", "_")
    needless = next((reason for names, reason in WITHOUT.items() if leaf in names.split()), None)
    if needless:
        return f"; {needless}"
    for here, names in ELSEWHERE.items():
        if leaf in names.split() and (here.partition("=")[0] in keys or here.startswith("hydra.")):
            return f"; did you mean {here}?"
    if leaf in PRINTED and "format" in keys:
        return f"; results are printed to standard output; append > {value or 'FILE'}"
    return nearest(key, list(keys))
