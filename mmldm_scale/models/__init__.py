"""The models: the DiT, the autoencoder and what they share, as PyTorch modules and functions."""

import logging

# diffusers imports xformers if it is installed, and xformers warns if its kernels were built for another torch. The
# models from diffusers use PyTorch's attention kernels, and models.attention reports an xformers that cannot run, so
# the warning is switched off. This must happen before diffusers is first imported.
logging.getLogger("xformers").setLevel(logging.ERROR)
