"""Distillation: learn the features of a larger network on the own images (Fang et al. 2021, SEED)."""

import numpy as np
import torch
from torch import Tensor, nn

from sslrun.augment import Augment, Rng, moved
from sslrun.base.errors import UserError
from sslrun.base.processes import gathered
from sslrun.config.types import Node, PositiveInt
from sslrun.data.images import Images
from sslrun.device import Device, in_float32
from sslrun.models.encoder import Encoder
from sslrun.models.teacher import teacher_of
from sslrun.models.teacher_features import half_rows, teacher_features
from sslrun.tasks.task import Task

FITTED = 20_000  # images to which the principal components are fitted


class Distill(Task):
    """Prediction of a teacher's features of the plain image from a view of it; labels are not used.

    The features are whitened by principal components of the training images. The loss is the squared error of each
    component, weighted by the root of its singular value, with mean weight 1; it is 1 for a prediction of 0.

    Args:
        teacher, weights: see `teacher_of`.
        components: number of principal components; fewer if there are fewer images.
        augment: of the student's images.
    """

    mean: Tensor
    directions: Tensor
    weight: Tensor
    teacher: Tensor

    def __init__(
        self,
        encoder: Encoder,
        image_size: int,
        *,
        teacher: str | None,
        weights: str | None,
        components: PositiveInt,
        augment: Node | Augment,
    ) -> None:
        super().__init__()
        assert callable(augment)
        self.encoder, self.augment = encoder, augment
        self._teacher = [teacher_of(teacher, weights)]  # in a list: its weights are not the task's
        self.origin = self._teacher[0].origin
        self.head = nn.Linear(encoder.feature_dim, components)
        d = self._teacher[0].encoder.feature_dim
        self.register_buffer("mean", torch.zeros(d))
        self.register_buffer("directions", torch.zeros(components, d))
        self.register_buffer("weight", torch.zeros(components))
        digest = bytearray.fromhex(self._teacher[0].digest())
        self.register_buffer("teacher", torch.frombuffer(digest, dtype=torch.uint8))
        self.register_load_state_dict_pre_hook(_refuse_another_teacher)
        self.features: np.ndarray | None = None

    def extra_repr(self) -> str:
        """Return the teacher, for the log."""
        teacher = self._teacher[0]
        return f"teacher {teacher.name} at {teacher.image_size} px: {teacher.source}"

    def prepare(self, images: Images, device: Device) -> float:
        """Compute the teacher's features, or read them from the cache, and fit their principal components."""
        from sklearn.decomposition import PCA

        self._teacher[0].refuse_other_images(images)
        self.features, saved = teacher_features(self._teacher[0], images, device)
        rows = np.arange(0, len(images), max(1, len(images) // FITTED))
        sample = self.features[rows].astype(np.float32)
        if not np.isfinite(sample).all() or not np.ptp(sample, 0).any():
            raise UserError(f"{self.extra_repr()}: its features are infinite, or the same for all images")
        k = min(len(self.weight), len(sample) - 1, sample.shape[1])
        pca = PCA(k, random_state=0).fit(sample)
        sd = np.sqrt(pca.explained_variance_)
        useful = sd > 1e-6 * sd[0]
        weight = np.sqrt(sd * useful)
        with torch.no_grad():
            self.mean.copy_(torch.from_numpy(pca.mean_))
            scaled = pca.components_ / np.where(useful, sd, 1.0)[:, None]
            self.directions[:k].copy_(torch.from_numpy(scaled))
            self.weight[:k].copy_(torch.from_numpy(weight / weight.sum() * len(self.weight)))
        return saved

    def targets(self, rows: Tensor) -> Tensor:
        """Return the whitened features of images, `N x components`, in float32."""
        assert self.features is not None
        features = moved(half_rows(self.features, rows), self.mean.device)
        with torch.autocast(self.mean.device.type, enabled=False):
            return (features - self.mean) @ self.directions.T

    def views(self, images: Tensor, rng: Rng) -> dict[str, Tensor]:
        """Return the views that the student sees."""
        return {"student": self.augment(images, rng)}

    def forward(self, batch: dict[str, Tensor], rng: Rng) -> dict[str, Tensor]:
        """Return the weighted squared error, and the fraction of the variance of the components that is explained."""
        predicted = in_float32(self.head, self.encoder(self.augment(batch["images"], rng)))
        with torch.autocast(predicted.device.type, enabled=False):
            target = self.targets(batch["rows"])
            loss = ((predicted - target).square() * self.weight).mean()
            every = gathered(target)
            total = ((every - every.mean(0)).square() * self.weight).mean()
        return {"loss": loss, "explained_variance": 1 - loss.detach() / total.clamp(min=1e-6)}


def _refuse_another_teacher(task: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    assert isinstance(task, Distill)
    if not torch.equal(state[f"{prefix}teacher"].cpu(), task.teacher.cpu()):
        raise UserError(
            f"this run learned from another teacher than {task.extra_repr().removeprefix('teacher ')}; bring back its "
            "weights, or start a new run"
        )
