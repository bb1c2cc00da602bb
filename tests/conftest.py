"""One torch thread in tests: small tensors gain nothing from a second, and lose much beside another process."""

import torch

torch.set_num_threads(1)
