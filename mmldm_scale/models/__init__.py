"""The models: what must be settled before diffusers is first imported."""

import logging

# diffusers imports xformers wherever it is installed, which then warns that its own kernels want another torch. The
# attention that we ask of it runs on PyTorch's kernels; what cannot run is said by models.attention.
logging.getLogger("xformers").setLevel(logging.ERROR)
