"""A float model becomes a flatbuffer here; a flatbuffer is read, run and compared here."""
