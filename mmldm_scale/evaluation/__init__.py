"""Evaluation: metrics, reconstructions of a trained autoencoder, and the ablation of its variants."""
