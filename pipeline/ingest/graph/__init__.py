"""A TensorFlow graph becomes live Keras layers: what every source that is a graph goes through."""
