"""One thread for torch: small nets on a shared machine are several times faster so, and the same bytes come out."""

import torch

torch.set_num_threads(1)
