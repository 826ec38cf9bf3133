"""Running an experiment: train, test, predict, the loop under them, and what shows how it goes."""
