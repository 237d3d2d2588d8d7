"""CPU implementation of the model: oneDNN, hand-written autograd nodes, compiled decoding loops."""
