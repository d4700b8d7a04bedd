"""The GPU delegate: rules, ranges of half floats, and GPU runtimes that can be asked."""
