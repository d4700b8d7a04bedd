"""What `compare` is made of: figures as readings, how they differ, and what models give for the same samples."""
