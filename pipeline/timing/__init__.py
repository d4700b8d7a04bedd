"""Times of models on devices: of a build, kept as baselines, and over the weeks."""
