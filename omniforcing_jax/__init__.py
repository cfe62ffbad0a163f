"""OmniForcing in JAX: streaming joint audio-video generation, from the model to the stream."""
