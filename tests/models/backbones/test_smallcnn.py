import torch
from torch import Tensor, nn

from sslrun.models.backbones.smallcnn import smallcnn
from sslrun.models.encoder import average


def test_smallcnn_is_the_textbook_network(pieces: Tensor) -> None:
    """Pooling before the ReLU only affects speed."""
    torch.manual_seed(0)
    ours = smallcnn(32, widths=[8, 16, 24])
    layers: list[nn.Module] = []
    for before, after in ((3, 8), (8, 16), (16, 24)):
        layers += [
            nn.Conv2d(before, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
    textbook = nn.Sequential(*layers)
    textbook.load_state_dict(ours.state_dict())
    out = []
    for net in (ours, textbook):
        maps = net(pieces)
        features = average(maps[-1] if isinstance(maps, list) else maps)
        features.square().sum().backward()
        out.append([features, *(p.grad for p in net.parameters()), *net.buffers()])
    for a, b in zip(*out, strict=True):
        assert a is not None
        assert b is not None
        assert torch.equal(a, b)
