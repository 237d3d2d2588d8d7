"""The encoder-decoder itself: layers, the model, generation, saving. Plain torch."""
