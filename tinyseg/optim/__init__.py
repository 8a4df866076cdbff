"""Optimisers, learning-rate schedules (`optim.schedules`) and gradient clipping."""

from tinyseg.optim import schedules
from tinyseg.optim.adam import Adam, AdamW
from tinyseg.optim.clipping import clip_gradients
from tinyseg.optim.optimiser import Optimiser
from tinyseg.optim.rmsprop import RMSprop
from tinyseg.optim.sgd import SGD

__all__ = ["SGD", "Adam", "AdamW", "Optimiser", "RMSprop", "clip_gradients", "schedules"]
