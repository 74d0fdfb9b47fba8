"""The hierarchical multi-modal autoencoder (section 3.1), its KL-VAE and its discriminators."""
