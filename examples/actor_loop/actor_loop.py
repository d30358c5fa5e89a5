"""A loop of reinforcement learning: `python actor_loop.py` starts a learner and two actors, each a process of its own.

The actors live with their environments and own nothing else. The learner owns the policy; it has each actor play, by a
reference to it, and hands itself along by another: for every step the actor asks the learner what to do. The learner
waits until all actors have asked, and answers them with one pass of the policy over all their observations.
"""

from __future__ import annotations

import argparse
import os
import socket
import threading

import torch
import torch.multiprocessing as mp

from tensorcall import rpc

CELLS, GAMMA, STEPS = 7, 0.95, 20


class Corridor:
    """An environment: a corridor with the prize at one end; each step costs, and a step too far ends it."""

    def reset(self) -> torch.Tensor:
        """Begins in the middle, and tells where that is."""
        self.place = CELLS // 2
        return self.observation()

    def step(self, action: int) -> tuple[torch.Tensor, float, bool]:
        """Moves left (0) or right (1); gives what is seen then, the reward, and whether it's over."""
        self.place += 1 if action else -1
        over = self.place in (0, CELLS - 1)
        return self.observation(), (1.0 if self.place == CELLS - 1 else -0.1), over

    def observation(self) -> torch.Tensor:
        """Shows the place, as one hot cell."""
        return torch.nn.functional.one_hot(torch.tensor(self.place), CELLS).float()


class Actor:
    """Plays in an environment; lives on an actor's worker."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.environment = Corridor()

    def play(self, learner: rpc.RRef) -> list[float]:
        """Plays one episode and gives its rewards."""
        rewards: list[float] = []
        observation, over = self.environment.reset(), False
        while not over and len(rewards) < STEPS:
            action = learner.rpc_sync().choose(self.number, observation)
            observation, reward, over = self.environment.step(action)
            rewards.append(reward)
        learner.rpc_sync().leave(self.number)
        return rewards


class Learner:
    """Owns the policy and improves it."""

    def __init__(self, actors: int) -> None:
        self.policy = torch.nn.Sequential(torch.nn.Linear(CELLS, 32), torch.nn.Tanh(), torch.nn.Linear(32, 2))
        self.optimizer = torch.optim.Adam(self.policy.parameters(), lr=0.02)
        self.me = rpc.RRef(self)
        self.actors = [rpc.remote(f"actor{n}", Actor, args=(n,)) for n in range(1, actors + 1)]
        self.lock = threading.Lock()
        self.begin()

    def begin(self) -> None:
        """Gets ready for an episode."""
        self.playing = set(range(1, len(self.actors) + 1))
        self.asked: dict[int, tuple[torch.Tensor, torch.futures.Future[int]]] = {}
        self.chosen: dict[int, list[torch.Tensor]] = {number: [] for number in self.playing}

    @rpc.functions.async_execution
    def choose(self, actor: int, observation: torch.Tensor) -> torch.futures.Future[int]:
        """Tells an actor what to do, as soon as all who play have asked."""
        answer: torch.futures.Future[int] = torch.futures.Future()
        with self.lock:
            self.asked[actor] = observation, answer
        self.answer_all()
        return answer

    def leave(self, actor: int) -> None:
        """Takes note that an actor's episode is over."""
        with self.lock:
            self.playing.discard(actor)
        self.answer_all()

    def answer_all(self) -> None:
        """Answers if nobody is missing, with one pass over all observations."""
        with self.lock:
            if not self.asked or set(self.asked) != self.playing:
                return
            asked, self.asked = self.asked, {}
            observations = torch.stack([observation for observation, _ in asked.values()])
            choices = torch.distributions.Categorical(logits=self.policy(observations))
            actions = choices.sample()
            for actor, log_probability in zip(asked, choices.log_prob(actions), strict=True):
                self.chosen[actor].append(log_probability)
        for (_, answer), action in zip(asked.values(), actions.tolist(), strict=True):
            answer.set_result(action)

    def episode(self) -> float:
        """Has all actors play once, learns from it, and gives the mean of the sums of their rewards."""
        self.begin()
        played = [actor.rpc_async(timeout=60).play(self.me) for actor in self.actors]
        rewards = torch.futures.wait_all(played)
        losses = []
        for number, received in enumerate(rewards, 1):
            value, returns = 0.0, []
            for reward in reversed(received):
                value = reward + GAMMA * value
                returns.insert(0, value)
            losses += [-chosen * gain for chosen, gain in zip(self.chosen[number], returns, strict=True)]
        self.optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        self.optimizer.step()
        return sum(map(sum, rewards)) / len(rewards)


def run(rank: int, actors: int, episodes: int) -> None:
    """Runs one worker: the learner is rank 0."""
    torch.manual_seed(0)
    rpc.init_rpc("learner" if rank == 0 else f"actor{rank}", rank=rank, world_size=actors + 1)
    if rank == 0:
        learner = Learner(actors)
        rewards = [learner.episode() for _ in range(episodes)]
        tenth = max(1, episodes // 10)
        first, last = sum(rewards[:tenth]) / tenth, sum(rewards[-tenth:]) / tenth
        print(f"reward of an episode: {first:.2f} at first, {last:.2f} at last", flush=True)
        del learner
    rpc.shutdown()


def main() -> None:
    """Starts all workers on this machine."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--episodes", type=int, default=80)
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    if "MASTER_PORT" not in os.environ:
        with socket.create_server(("127.0.0.1", 0)) as free:
            os.environ["MASTER_PORT"] = str(free.getsockname()[1])
    mp.spawn(run, (options.actors, options.episodes), nprocs=options.actors + 1)


if __name__ == "__main__":
    main()
