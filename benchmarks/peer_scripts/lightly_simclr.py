"""SimCLR by lightly 1.6, set up as in its CIFAR-10 benchmark; runs in a separate environment.

    python lightly_simclr.py DATA.npz BACKBONE SECONDS SEED OUT.npz [DEVICE [WORKERS]]

Its transform, loss, head, optimizer, batch size and cosine schedule; 2 workers; fp32, as there. On a GPU torch chooses
the precision, and memory is pinned. OUT may be "". The clock starts when
the first batch has come, and the cosine reaches 0 when the time is up. OUT gets the features of all images.
"""

import json
import math
import sys
import time

import numpy as np
import torch
from lightly.loss import NTXentLoss
from lightly.models import ResNetGenerator
from lightly.models.modules.heads import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from PIL import Image
from smallcnn import smallcnn
from torch import nn
from torch.utils.data import DataLoader, Dataset

BATCH = 512
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # its transform's


class Images(Dataset):
    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.transform = SimCLRTransform(input_size=32, cj_strength=0.5, gaussian_blur=0.0)

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, i: int) -> list[torch.Tensor]:
        return self.transform(Image.fromarray(self.array[i]))


def backbone(name: str) -> tuple[nn.Module, int]:
    if name == "smallcnn":
        return smallcnn(), 512
    return nn.Sequential(
        *list(ResNetGenerator("resnet-18").children())[:-1], nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ), 512


def main(data: str, name: str, seconds: float, seed: int, out: str, device: str = "cpu", workers: int = 2) -> None:
    torch.manual_seed(seed)
    content = np.load(data)
    net, dim = backbone(name)
    net, head = net.to(device), SimCLRProjectionHead(dim, dim, 128).to(device)
    loss_of = NTXentLoss()
    batch = min(BATCH, len(content["train"]))
    parameters = [*net.parameters(), *head.parameters()]
    rate = 6e-2 * batch / 128
    optimizer = torch.optim.SGD(parameters, lr=rate, momentum=0.9, weight_decay=5e-4)
    loader = DataLoader(Images(content["train"]), batch, shuffle=True, drop_last=True, num_workers=workers,
                        persistent_workers=True, pin_memory=device == "cuda")  # fmt: skip
    began, seen, steps, passed = None, 0, 0, 0.0
    while passed < seconds:
        for views in loader:
            a, b = (view.to(device, non_blocking=True) for view in views)
            if began is None:
                began = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * min(1.0, passed / seconds)))
            loss = loss_of(head(net(a)), head(net(b)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen, steps = seen + len(a), steps + 1
            if device == "cuda":
                torch.cuda.synchronize()
            passed = time.perf_counter() - began
            if passed >= seconds:
                break
    del loader
    net.eval()
    features = {k: embed(net, content[k]) for k in ("train", "val")} if out else {}
    if out:
        np.savez(out, **features)  # type: ignore[arg-type]
    print(json.dumps({"images_per_second": seen / passed, "steps": steps, "seconds": passed, "loss": loss.item()}))


@torch.no_grad()
def embed(net: nn.Module, array: np.ndarray) -> np.ndarray:
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    x = torch.from_numpy(array).permute(0, 3, 1, 2)
    device = next(net.parameters()).device
    return torch.cat([net(((part.float() / 255 - mean) / std).to(device)).cpu() for part in x.split(512)]).numpy()


if __name__ == "__main__":
    out, device, workers = [*sys.argv[5:], *("", "cpu", "2")[len(sys.argv) - 5 :]]
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4]), out, device, int(workers))
