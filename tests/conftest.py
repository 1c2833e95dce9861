"""Settings of every test run: one torch thread, no Hub, Hypothesis without a stopwatch."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("polybit", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("polybit")
