"""Networks: backbones, encoder, classifier, weights, and initialization."""
