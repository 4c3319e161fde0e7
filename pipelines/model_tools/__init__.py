"""Commands about a model: init, doctor, extend, reward-eval, reward-serve, chat."""
