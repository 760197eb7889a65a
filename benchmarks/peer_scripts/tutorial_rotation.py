"""The rotation recipe of the tutorials: PIL, DataLoader, fp32.

    python tutorial_rotation.py DATA.npz EPOCHS FINETUNE_EPOCHS SEED

Each image is rotated at random by 0, 90, 180 or 270 degrees, normalized to mean and std 0.5; Adam 1e-3, batch 64.
Then a third of the finetuning trains the head alone, the rest everything at Adam 1e-4, on the labeled tenth, whose
rows are in DATA. Prints images/s, times, and the accuracy on the test images. (The published recipe picks the best
epoch on the test set; here the last one counts.)
"""

import json
import random
import sys
import time

import numpy as np
import torch
from PIL import Image
from smallcnn import smallcnn
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

TO_TENSOR = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)])


class Rotated(Dataset):
    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        rotation = random.randrange(4)
        return TO_TENSOR(Image.fromarray(self.array[i]).rotate(90 * rotation)), rotation


class Labeled(Dataset):
    def __init__(self, array: np.ndarray, labels: np.ndarray) -> None:
        self.array, self.labels = array, labels

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return TO_TENSOR(Image.fromarray(self.array[i])), int(self.labels[i])


def head(classes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(512, 256), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, classes))


def epoch(net: nn.Module, loader: DataLoader, optimizer: torch.optim.Optimizer) -> tuple[float, float]:
    """Return when the first batch had come, and the last loss."""
    net.train()
    began = 0.0
    for x, y in loader:
        began = began or time.perf_counter()
        loss = nn.functional.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return began, loss.item()


def main(data: str, epochs: float, finetune_epochs: int, seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    content = np.load(data)
    images = content["train"][: round(epochs * len(content["train"]))] if epochs < 1 else content["train"]
    backbone = smallcnn()
    began = 0.0
    net = nn.Sequential(backbone, head(4))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    loader = DataLoader(Rotated(images), 64, shuffle=True, num_workers=2)
    for i in range(max(1, round(epochs))):
        first, loss = epoch(net, loader, optimizer)
        began = began or first
        print(f"epoch {i + 1} loss {loss:.3f} {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    pretrained = time.perf_counter() - began
    result = {"images_per_second": len(images) * max(1, round(epochs)) / pretrained, "pretrain_seconds": pretrained}
    if finetune_epochs:
        rows = content["labeled"]
        net = nn.Sequential(backbone, head(int(content["train_labels"].max()) + 1))
        loader = DataLoader(Labeled(content["train"][rows], content["train_labels"][rows]), 64, True, num_workers=2)
        backbone.requires_grad_(False)
        optimizer = torch.optim.Adam(net[1].parameters(), lr=1e-3)
        for i in range(finetune_epochs):
            if i == finetune_epochs // 3:
                backbone.requires_grad_(True)
                optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)
            epoch(net, loader, optimizer)
        result["seconds"] = time.perf_counter() - began
        net.eval()
        with torch.no_grad():
            x = torch.from_numpy(content["val"]).permute(0, 3, 1, 2)
            guesses = torch.cat([net((p.float() / 255 - 0.5) / 0.5).argmax(1) for p in x.split(512)]).numpy()
        result["accuracy"] = float((guesses == content["val_labels"]).mean())
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
