"""Running an experiment: train, test, predict, their loop, and the progress bar."""
