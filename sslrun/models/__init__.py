"""Networks: backbones, encoder, classifier, weights, and where a model starts."""
