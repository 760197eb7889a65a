"""Labels that predictions contradict: confident learning (Northcutt et al. 2021)."""

import numpy as np

TOLERANCE = 1e-6  # of a threshold


def doubtful(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the images whose label is probably wrong, the most doubtful first, and the class that each seems to be.

    A class has as its threshold the mean probability of this class over the images with this label. An image
    seems to be of the class whose threshold its probability reaches or, if there are several, of the most likely class.
    Its label is doubtful if it is neither that nor the most likely class. The order is by the probability of the label.

    Args:
        probabilities: `N x classes`, of a classifier that was not trained on the image.
        labels: N class indices.

    Returns:
        Positions of D images, and D classes.
    """
    n, classes = probabilities.shape
    known = np.bincount(labels, minlength=classes)
    sums = np.bincount(labels, probabilities[np.arange(n), labels], minlength=classes)
    thresholds = np.where(known > 0, sums / known.clip(1), np.inf)
    confident = probabilities >= thresholds - TOLERANCE
    likely = probabilities.argmax(1)
    seems = np.where(confident.sum(1) > 1, likely, confident.argmax(1))
    wrong = np.flatnonzero(confident.any(1) & (seems != labels) & (likely != labels))
    order = wrong[np.argsort(probabilities[wrong, labels[wrong]], kind="stable")]
    return order, seems[order]
