"""A parameter server: `python parameter_server.py` starts one and three trainers, each a process of its own.

The server holds the parameters of a linear model. Trainers have data of their own, which never leaves them: in each
round they take the parameters, compute gradients, and send those. The server waits until all have sent theirs, without
keeping a thread for anyone who waits, and answers all with the new parameters.
"""

from __future__ import annotations

import argparse
import os
import socket
import threading

import torch
import torch.multiprocessing as mp

from tensorcall import rpc

SERVER, FEATURES = "server", 8


class ParameterServer:
    """Parameters that trainers improve together."""

    def __init__(self, trainers: int, learning_rate: float = 0.1) -> None:
        self.model = torch.nn.Linear(FEATURES, 1)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=learning_rate)
        self.trainers = trainers
        self.lock = threading.Lock()
        self.received = 0
        self.round: torch.futures.Future[list[torch.Tensor]] = torch.futures.Future()

    def parameters(self) -> list[torch.Tensor]:
        """Gives the parameters as they are."""
        return [parameter.detach() for parameter in self.model.parameters()]

    @rpc.functions.async_execution
    def improve(self, gradients: list[torch.Tensor]) -> torch.futures.Future[list[torch.Tensor]]:
        """Adds a trainer's gradients; the parameters that all of this round's make are the answer to each."""
        with self.lock:
            this_round = self.round
            for parameter, gradient in zip(self.model.parameters(), gradients, strict=True):
                share = gradient / self.trainers
                parameter.grad = share if parameter.grad is None else parameter.grad + share
            self.received += 1
            last = self.received == self.trainers
            if last:
                self.optimizer.step()
                self.optimizer.zero_grad()
                self.received, self.round = 0, torch.futures.Future()
                parameters = self.parameters()
        if last:
            this_round.set_result(parameters)
        return this_round


def train(server: rpc.RRef, seed: int, rounds: int) -> tuple[float, float]:
    """Trains on data that only this process has; runs on each trainer.

    Returns:
        The mean squared error before and after.
    """
    random = torch.Generator().manual_seed(seed)
    inputs = torch.randn(256, FEATURES, generator=random)
    # What all data has in common: the sum of the features.
    targets = inputs.sum(1, keepdim=True) + 1 + 0.01 * torch.randn(256, 1, generator=random)
    model = torch.nn.Linear(FEATURES, 1)
    parameters = server.rpc_sync().parameters()
    losses = []
    for _ in range(rounds):
        with torch.no_grad():
            for mine, given in zip(model.parameters(), parameters, strict=True):
                mine.copy_(given)
        model.zero_grad()
        loss = torch.nn.functional.mse_loss(model(inputs), targets)
        loss.backward()
        losses.append(loss.item())
        parameters = server.rpc_sync().improve([parameter.grad for parameter in model.parameters()])
    return losses[0], losses[-1]


def run(rank: int, trainers: int, rounds: int) -> None:
    """Runs one worker: the server is rank 0 and tells the trainers what to do."""
    rpc.init_rpc(SERVER if rank == 0 else f"trainer{rank}", rank=rank, world_size=trainers + 1)
    if rank == 0:
        server = rpc.RRef(ParameterServer(trainers))
        runs = [rpc.rpc_async(f"trainer{n}", train, args=(server, n, rounds)) for n in range(1, trainers + 1)]
        for number, losses in enumerate(torch.futures.wait_all(runs), 1):
            print(f"trainer{number}: loss {losses[0]:.3f} -> {losses[1]:.3f}", flush=True)
    rpc.shutdown()


def main() -> None:
    """Starts all workers on this machine."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trainers", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    if "MASTER_PORT" not in os.environ:
        with socket.create_server(("127.0.0.1", 0)) as free:
            os.environ["MASTER_PORT"] = str(free.getsockname()[1])
    mp.spawn(run, (options.trainers, options.rounds), nprocs=options.trainers + 1)


if __name__ == "__main__":
    main()
