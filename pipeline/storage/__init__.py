"""Where results lie between builds: the store, who uses it now, and how it is kept small and whole."""
