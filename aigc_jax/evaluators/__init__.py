"""How good a model is: held-out loss, samples, tasks, scores of its text."""
