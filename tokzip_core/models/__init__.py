"""Models: what the tokens of a corpus are likely to be. One file a model; see models/order0.py."""
