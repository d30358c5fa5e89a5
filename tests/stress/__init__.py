"""References under force: random forks, losses, repetitions, delays and deaths."""
