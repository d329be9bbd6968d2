"""Trains a small student as one of several processes that torchrun started."""

import sys
from pathlib import Path

import torch
from test_train import teach

if __name__ == "__main__":
    torch.set_num_threads(1)
    teach(Path(sys.argv[1]))
