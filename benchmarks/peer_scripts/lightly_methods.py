"""Pretext tasks by lightly 1.6, set up as in its examples; runs in a separate environment.

    python lightly_methods.py DATA.npz BACKBONE METHOD SECONDS

Transform, heads, loss, batch size (256) and SGD of examples/pytorch/METHOD.py, at 32 px and with 2 workers; two crops
where an example has more (SwAV, DINO). Prints images/s; the clock starts when the first batch has come.
"""

import copy
import json
import sys
import time
from typing import Any

import numpy as np
import torch
from lightly import loss as losses
from lightly import transforms
from lightly.models.modules import heads
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly_simclr import Images, backbone
from torch import Tensor, nn
from torch.utils.data import DataLoader

BATCH, SIZE = 256, 32


class Method(nn.Module):
    """A backbone with the heads and the loss of a method."""

    def __init__(self, net: nn.Module, d: int) -> None:
        super().__init__()
        self.net = net

    def follow(self, student: str, teacher: str) -> None:
        """Update a moving average."""
        update_momentum(self.get_submodule(student), self.get_submodule(teacher), m=0.99)

    def copied(self, module: nn.Module) -> nn.Module:
        """Return a copy without gradients."""
        copied = copy.deepcopy(module)
        deactivate_requires_grad(copied)
        return copied


class MoCo(Method):
    transform = transforms.MoCoV2Transform(input_size=SIZE)

    def __init__(self, net: nn.Module, d: int) -> None:
        super().__init__(net, d)
        self.head = heads.MoCoProjectionHead(d, d, 128)
        self.net_t, self.head_t = self.copied(net), self.copied(self.head)
        self.loss = losses.NTXentLoss(memory_bank_size=(4096, 128))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        self.follow("net", "net_t")
        self.follow("head", "head_t")
        with torch.no_grad():
            key = self.head_t(self.net_t(b))
        return self.loss(self.head(self.net(a)), key)


class BYOL(Method):
    transform = transforms.BYOLTransform(
        view_1_transform=transforms.BYOLView1Transform(input_size=SIZE, gaussian_blur=0.0),
        view_2_transform=transforms.BYOLView2Transform(input_size=SIZE, gaussian_blur=0.0),
    )

    def __init__(self, net: nn.Module, d: int) -> None:
        super().__init__(net, d)
        self.head, self.predictor = heads.BYOLProjectionHead(d, 1024, 256), heads.BYOLPredictionHead(256, 1024, 256)
        self.net_t, self.head_t = self.copied(net), self.copied(self.head)
        self.loss = losses.NegativeCosineSimilarity()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        self.follow("net", "net_t")
        self.follow("head", "head_t")
        with torch.no_grad():
            ta, tb = self.head_t(self.net_t(a)), self.head_t(self.net_t(b))
        pa, pb = self.predictor(self.head(self.net(a))), self.predictor(self.head(self.net(b)))
        return 0.5 * (self.loss(pa, tb) + self.loss(pb, ta))


class SimSiam(Method):
    transform = transforms.SimSiamTransform(input_size=SIZE)

    def __init__(self, net: nn.Module, d: int) -> None:
        super().__init__(net, d)
        self.head, self.predictor = heads.SimSiamProjectionHead(d, d, 128), heads.SimSiamPredictionHead(128, 64, 128)
        self.loss = losses.NegativeCosineSimilarity()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        za, zb = self.head(self.net(a)), self.head(self.net(b))
        pa, pb = self.predictor(za), self.predictor(zb)
        return 0.5 * (self.loss(za.detach(), pb) + self.loss(zb.detach(), pa))


class BarlowTwins(Method):
    transform = BYOL.transform

    def __init__(self, net: nn.Module, d: int) -> None:
        super().__init__(net, d)
        self.head, self.loss = heads.BarlowTwinsProjectionHead(d, 2048, 2048), losses.BarlowTwinsLoss()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.loss(self.head(self.net(a)), self.head(self.net(b)))


class VICReg(BarlowTwins):
    transform = transforms.VICRegTransform(input_size=SIZE)

    def __init__(self, net: nn.Module, d: int) -> None:
        super().__init__(net, d)
        self.head, self.loss = heads.VICRegProjectionHead(d, 2048, 2048, num_layers=2), losses.VICRegLoss()


class SwAV(Method):
    transform = transforms.SwaVTransform(
        crop_sizes=(SIZE,), crop_counts=(2,), crop_min_scales=(0.14,), crop_max_scales=(1.0,)
    )

    def __init__(self, net: nn.Module, d: int) -> None:
        super().__init__(net, d)
        self.head, self.prototypes = heads.SwaVProjectionHead(d, 512, 128), heads.SwaVPrototypes(128, n_prototypes=512)
        self.loss = losses.SwaVLoss()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        self.prototypes.normalize()
        z = [nn.functional.normalize(self.head(self.net(x)), dim=1) for x in (a, b)]
        return self.loss([self.prototypes(x) for x in z], [])


class DINO(Method):
    transform = transforms.DINOTransform(global_crop_size=SIZE, n_local_views=0)

    def __init__(self, net: nn.Module, d: int) -> None:
        super().__init__(net, d)
        self.head = heads.DINOProjectionHead(d, 512, 64, 2048, freeze_last_layer=1)
        self.net_t, self.head_t = self.copied(net), heads.DINOProjectionHead(d, 512, 64, 2048)
        deactivate_requires_grad(self.head_t)
        self.loss = losses.DINOLoss(output_dim=2048, warmup_teacher_temp_epochs=5)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        self.follow("net", "net_t")
        self.follow("head", "head_t")
        with torch.no_grad():
            teacher = [self.head_t(self.net_t(x)) for x in (a, b)]
        return self.loss(teacher, [self.head(self.net(x)) for x in (a, b)], epoch=1)


METHODS: dict[str, Any] = {
    "moco": MoCo, "byol": BYOL, "simsiam": SimSiam, "barlowtwins": BarlowTwins, "vicreg": VICReg, "swav": SwAV,
    "dino": DINO,
}  # fmt: skip


def main(data: str, name: str, method: str, seconds: float) -> None:
    """Train for some seconds, and print images/s."""
    torch.manual_seed(0)
    array = np.load(data)["train"]
    task = METHODS[method](*backbone(name))
    images = Images(array)
    images.transform = task.transform
    optimizer = torch.optim.SGD([p for p in task.parameters() if p.requires_grad], lr=0.06)
    loader = DataLoader(images, BATCH, shuffle=True, drop_last=True, num_workers=2, persistent_workers=True)
    began, seen, passed = None, 0, 0.0
    while passed < seconds:
        for views in loader:
            if began is None:
                began = time.perf_counter()
            loss = task(views[0], views[1])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen += len(views[0])
            passed = time.perf_counter() - began
            if passed >= seconds:
                break
    print(json.dumps({"images_per_second": seen / passed, "seconds": passed, "loss": loss.item()}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4]))
