"""What a caller writes: `python client.py 127.0.0.1:50051`."""

import sys

import torch

from tensorcall.client import connect

with connect(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051") as remote:
    print(remote.call("mymodule.add", 1, 2))
    print(remote.call("mymodule.normalize", torch.tensor([[3.0, 4.0]])))
    for number in remote.stream("mymodule.countdown", 3):
        print(number)
