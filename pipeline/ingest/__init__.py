"""Any trained model becomes a float model here: one file a format, `load` chooses."""
