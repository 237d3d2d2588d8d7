"""Models this small gain nothing from threads, and on a busy machine threads wait for each other (60x)."""

import torch

torch.set_num_threads(1)
