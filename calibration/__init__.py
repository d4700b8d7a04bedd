"""Representative data: load it, doubt it, match it to a model's inputs. Imports numpy and nothing of ours."""
