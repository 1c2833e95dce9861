"""Settings of every test run: one torch thread, no Hub, Triton's interpreter without a GPU, Hypothesis's own pace."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub

import torch
from hypothesis import settings

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton, as some parts of torch do

torch.set_num_threads(1)
settings.register_profile("polybit", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("polybit")
